"""The boxes of a data set as training meets them: at the training size, without crowd regions.

Shapes: M boxes, P images (an image at one of the training sizes).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from retina_ray.config import AugmentConfig, InputConfig
from retina_ray.data.augment.transforms import place_boxes, shortest_edge_size
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import nested_rows
from retina_ray.errors import DataError

NUM_LENGTHS_OF_RANGE = 5
"""Lengths, evenly spaced and both ends included, that stand for a range of training sizes."""


@dataclass(frozen=True)
class TrainingBoxes:
    """Boxes at the training sizes: each image that was sampled, at each size it may be trained at.

    Attributes:
        boxes: (M, 4) float32 XYXY in pixels of its image.
        labels: (M,) int64.
        image: (M,) int64 position in `sizes`, ascending.
        sizes: (P, 2) int64 (height, width) of the images.
        class_names: in the order of the labels.
        lengths_px: the lengths of the shorter side that stand for the training sizes.
        num_crowd: crowd regions left out; they are no training targets.
        num_too_small: boxes left out, at any of the sizes, because a side is below
            `input.min_box_size_px` there.
        size_divisibility_px: images are padded to multiples of it.
        not_considered: augmentations of the config that change boxes and are left out here.
    """

    boxes: Tensor
    labels: Tensor
    image: Tensor
    sizes: Tensor
    class_names: tuple[str, ...]
    lengths_px: tuple[int, ...]
    num_images: int
    num_images_in_set: int
    num_crowd: int
    num_too_small: int
    size_divisibility_px: int
    not_considered: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def from_dataset(
        cls, dataset: PreparedDataset, config: InputConfig, *, max_images: int, seed: int = 0
    ) -> TrainingBoxes:
        """Read the light columns of a set and bring its boxes to the training sizes.

        Flips change nothing here. Other augmentation is not carried out: see `not_considered`.

        Args:
            dataset: a prepared set.
            config: the training sizes, the padding and the smallest box.
            max_images: of a larger set, this many images are drawn.
            seed: of the draw.

        Raises:
            DataError: no box is left.
        """
        table = dataset.annotations()
        sample = _sample(table.num_rows, max_images, seed)
        lengths = _lengths(config)
        found = _Collector(config)
        for image in _images(table.take(pa.array(sample))):
            for length in lengths:
                found.add(*image, length)
        result = cls(
            boxes=torch.from_numpy(np.concatenate([np.zeros((0, 4), np.float32), *found.boxes])),
            labels=torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *found.labels])),
            image=torch.repeat_interleave(
                torch.arange(len(found.sizes)),
                torch.tensor([len(b) for b in found.boxes], dtype=torch.int64),
            ),
            sizes=torch.tensor(found.sizes, dtype=torch.int64).reshape(-1, 2),
            class_names=dataset.class_names,
            lengths_px=lengths,
            num_images=len(sample),
            num_images_in_set=table.num_rows,
            num_crowd=found.num_crowd // len(lengths),
            num_too_small=found.num_too_small,
            size_divisibility_px=config.size_divisibility_px,
            not_considered=_not_considered(config.augment),
        )
        if not len(result):
            raise DataError(
                f"{dataset.uri}: no box is left in {len(sample)} images at "
                f"input.train_sizes_px = {list(config.train_sizes_px)} ({result.num_crowd} crowd "
                f"regions and {found.num_too_small} boxes below input.min_box_size_px = "
                f"{config.min_box_size_px:g} left out): there is nothing to compare anchors with"
            )
        return result

    def padded_sizes(self) -> Tensor:
        """(P, 2) (height, width) of the images with the padding that each has by itself.

        A batch may pad further. No anchor whose centre lies there can match at an IoU above 0.5, as
        at most half of it overlaps a box inside the image; nor is it ever a box's best.
        """
        step = self.size_divisibility_px
        return (self.sizes + step - 1) // step * step

    def subset(self, max_boxes: int, seed: int = 0) -> TrainingBoxes:
        """At most this many boxes, drawn at random; the images stay."""
        if len(self) <= max_boxes:
            return self
        keep = torch.from_numpy(_sample(len(self), max_boxes, seed))
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("boxes", "labels", "image"):
            fields[name] = fields[name][keep]
        return TrainingBoxes(**fields)


class _Collector:
    """Gathers the boxes of one image after the other."""

    def __init__(self, config: InputConfig) -> None:
        self._config = config
        self.boxes: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self.sizes: list[tuple[int, int]] = []
        self.num_crowd = 0
        self.num_too_small = 0

    def add(
        self,
        size: tuple[int, int],
        boxes: np.ndarray,
        labels: np.ndarray,
        crowd: np.ndarray,
        length_px: int,
    ) -> None:
        """Take an image of a (height, width) at one training length."""
        target = shortest_edge_size(*size, length_px, self._config.train_max_size_px)
        placed = place_boxes(boxes, size, target)
        sides = np.minimum(placed[:, 2] - placed[:, 0], placed[:, 3] - placed[:, 1])
        # As `data.transforms.augment` keeps them; NaN fails both comparisons.
        large_enough = (sides >= self._config.min_box_size_px) & (sides > 0)
        keep = large_enough & ~crowd
        self.num_crowd += int(crowd.sum())
        self.num_too_small += int((~large_enough & ~crowd).sum())
        self.boxes.append(placed[keep])
        self.labels.append(labels[keep].astype(np.int64))
        self.sizes.append(target)


def _images(table: pa.Table):
    """Yield (height, width), boxes (m, 4), labels (m,) and iscrowd (m,) of each row."""
    sizes = zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True)
    columns = [nested_rows(table[name]) for name in ("boxes", "labels", "iscrowd")]
    for size, boxes, labels, crowd in zip(sizes, *columns, strict=True):
        yield size, boxes, labels, crowd.astype(bool)


def _sample(num: int, most: int, seed: int) -> np.ndarray:
    """Draw at most so many positions, ascending."""
    if num <= most:
        return np.arange(num)
    return np.sort(np.random.default_rng(seed).choice(num, most, replace=False))


def _lengths(config: InputConfig) -> tuple[int, ...]:
    """Lengths of the shorter side, each as probable as the others in training."""
    sizes = config.train_sizes_px
    if config.train_size_sampling == "choice":
        return sizes
    spread = np.linspace(sizes[0], sizes[1], NUM_LENGTHS_OF_RANGE).round().astype(int)
    return tuple(dict.fromkeys(spread.tolist()))


def _not_considered(augment: AugmentConfig) -> tuple[str, ...]:
    active = {
        "rotate_90": augment.rotate_90,
        "crop_prob": augment.crop_prob > 0,
        "scale_jitter": augment.scale_jitter is not None,
        "mosaic_prob": augment.mosaic_prob > 0,
    }
    return tuple(f"input.augment.{name}" for name, on in active.items() if on)
