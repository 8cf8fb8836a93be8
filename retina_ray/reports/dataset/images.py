"""Images for a page: as stored, crops of them, and what training makes of them.

Each is a small JPEG and boxes in pixels of the full image; the page draws the boxes over the JPEG,
so that they stay sharp at any size.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image  # matplotlib needs it anyway

from retina_ray.config import ExperimentConfig
from retina_ray.data.augment.transforms import resize_image
from retina_ray.data.images.decoding import DecodeError, decode_image
from retina_ray.data.loading.batch_loader import BatchLoader
from retina_ray.data.loading.unpack import PlannedBatch, unpack_batch
from retina_ray.data.plan.run_plan import RunPlan
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import IMAGE_COLUMN
from retina_ray.errors import DataError
from retina_ray.ops.rotated.boxes import rotated_corners
from retina_ray.reports.dataset.choice import Extreme
from retina_ray.reports.dataset.splits import Split

_LONGER_SIDE_PX, _QUALITY = 480, 80
_CROP_FACTOR, _MIN_CROP_PX = 6.0, 64.0  # how much of its surroundings a small box is shown with
_CROP_BELOW = 0.15  # share of the image's longer side below which a box is shown in a crop


@dataclass(frozen=True)
class Mark:
    """A box to draw: corners (4, 2) in pixels of the image, and what it is."""

    corners: NDArray[np.float64]
    label: int
    crowd: bool = False
    pale: bool = False


@dataclass(frozen=True)
class Shot:
    """An image with its boxes.

    Attributes:
        width: of the full image, pixels; so is the height.
        jpeg: the image, maybe smaller; empty where there is none.
        problem: why there is none.
        cropped: it is a part of the stored image.
    """

    width: int
    height: int
    marks: Sequence[Mark] = ()
    jpeg: bytes = b""
    caption: str = ""
    problem: str = ""
    cropped: bool = False


@dataclass
class Album:
    """Reads the stored images of a split, and counts the formats in the row groups it read."""

    split: Split
    formats: dict[str, int] = field(default_factory=dict)
    groups: set[tuple[int, int]] = field(default_factory=set)

    def stored(self, position: int) -> Shot:
        """An image as it is stored, with all its boxes."""
        split, boxes = self.split, self.split.of_image(position)
        return self._shot(position, [_stored_mark(split, box) for box in boxes.tolist()])

    def extreme(self, extreme: Extreme) -> Shot:
        """An image with the box in question, cut out of its surroundings where it is small."""
        split, position = self.split, extreme.image
        if extreme.box is None:
            return self.stored(position)
        marks = [
            _stored_mark(split, box, pale=box != extreme.box)
            for box in split.of_image(position).tolist()
        ]
        marks.sort(key=lambda mark: not mark.pale)  # the pale ones below the one in question
        span = np.ptp(box_corners(split.boxes[[extreme.box]])[0], axis=0).max()
        size = np.array([split.widths[position], split.heights[position]], np.float64)
        if span >= _CROP_BELOW * size.max():
            return self._shot(position, marks)
        side = np.minimum(max(_CROP_FACTOR * span, _MIN_CROP_PX), size).round()
        centre = split.centres[extreme.box] * size
        corner = np.clip((centre - side / 2).round(), 0, size - side)
        return self._shot(position, marks, crop=(*corner.astype(int), *side.astype(int)))

    def _shot(
        self,
        position: int,
        marks: Sequence[Mark],
        crop: tuple[int, int, int, int] | None = None,
    ) -> Shot:
        height, width = int(self.split.heights[position]), int(self.split.widths[position])
        try:
            pixels = decode_image(
                self._data(position),
                min_shorter_side=None if crop else _LONGER_SIDE_PX,
                expected_size=(height, width),
            )
        except DecodeError as error:
            return Shot(width, height, marks, problem=f"cannot be decoded: {error}")
        if crop is None:
            return Shot(width, height, marks, _jpeg(pixels))
        x, y, w, h = crop
        moved = [
            Mark(mark.corners - np.array([x, y]), mark.label, mark.crowd, mark.pale)
            for mark in marks
            if (mark.corners.max(axis=0) > (x, y)).all()
            and (mark.corners.min(axis=0) < (x + w, y + h)).all()
        ]
        return Shot(w, h, moved, _jpeg(pixels[y : y + h, x : x + w]), cropped=True)

    def _data(self, position: int) -> bytes:
        """The encoded image."""
        shard, group, row = self.split.places[position].tolist()
        images = self.split.dataset.read_row_group(shard, group)[IMAGE_COLUMN]
        if (shard, group) not in self.groups:
            self.groups.add((shard, group))
            for image in images:
                kind = _format_of(image.as_buffer()[:4].to_pybytes())
                self.formats[kind] = self.formats.get(kind, 0) + 1
        return images[row].as_py()


def training_shots(
    dataset: PreparedDataset, positions: Sequence[int], config: ExperimentConfig, *, epochs: int
) -> Iterator[list[Shot]]:
    """What a worker gets of some images, made by the training pipeline itself.

    The images of the row groups concerned are planned as a run of batches of one, so that nothing
    else of the set is read, and other images that an augmentation mixes in are neighbours, as in a
    run. Random changes depend on seed, epoch and image alone: a run with the same recipe draws the
    same ones, only the target size is drawn for the whole batch there.

    Args:
        dataset: that holds the images.
        positions: of the images, in the order of storage.
        config: of the run.
        epochs: how often each image is made.

    Yields:
        For each image, what each epoch makes of it.

    Raises:
        DataError: the recipe wants rotated boxes, and the set has none.
    """
    index = dataset.index()
    near = _same_groups(index, positions)
    place_of = {position: place for place, position in enumerate(near.tolist())}
    index = index.take(near)
    config = _one_by_one(config, epochs)
    rows = RunPlan.from_config(config, index, None).table
    first = np.array([images[0] for images in rows["images"].to_pylist()], np.int64)
    loader = BatchLoader.from_config(config, dataset, None, index, None)
    for position in positions:
        of_image = rows.take(np.flatnonzero(first == place_of[position]))
        yield [_training_shot(loader, of_image.slice(number, 1)) for number in range(len(of_image))]


def _one_by_one(config: ExperimentConfig, epochs: int) -> ExperimentConfig:
    """The same run with batches of one, and every image once an epoch."""
    train = {"epochs": epochs, "batch_size": 1, "num_workers": 1, "eval_every_epochs": 1}
    inputs = {"sampling": "all", "skip_empty": False}
    return config.model_copy(
        update={
            "train": config.train.model_copy(update=train),
            "input": config.input.model_copy(update=inputs),
        }
    )


def _same_groups(index: pa.Table, positions: Sequence[int]) -> NDArray[np.int64]:
    """Positions of all images in the row groups of the given ones."""
    groups = np.stack([index[name].to_numpy() for name in ("shard", "row_group")], axis=1)
    _, number = np.unique(groups, axis=0, return_inverse=True)
    number = number.reshape(-1)
    return np.flatnonzero(np.isin(number, number[list(positions)]))


def _training_shot(loader: BatchLoader, row: pa.Table) -> Shot:
    epoch, size = row["epoch"][0].as_py(), row["size_px"][0].as_py()
    try:
        planned = unpack_batch(loader.load_table(row))
    except DataError as error:
        return Shot(4, 3, caption=f"epoch {epoch}", problem=str(error))
    batch = planned.batch
    if batch.bad_images:
        file_name, reason = batch.bad_images[0]
        return Shot(4, 3, caption=f"epoch {epoch}", problem=f"{file_name}: {reason}")
    return _batch_shot(planned, f"epoch {epoch}, shorter side {size}")


def _batch_shot(planned: PlannedBatch, start: str) -> Shot:
    """The one image of a batch, without its padding."""
    batch = planned.batch
    height, width = batch.images.sizes[0].tolist()
    pixels = batch.images.pixels[0, :, :height, :width].permute(1, 2, 0).numpy()
    labels = batch.targets.labels[0].numpy()
    boxes = batch.targets.boxes[0].numpy()[labels >= 0]
    marks = [
        Mark(corners, int(label))
        for corners, label in zip(box_corners(boxes), labels[labels >= 0], strict=True)
    ]
    return Shot(width, height, marks, _jpeg(pixels), caption=start)


def _stored_mark(split: Split, box: int, *, pale: bool = False) -> Mark:
    corners = box_corners(split.boxes[[box]])[0]
    return Mark(corners, int(split.labels[box]), bool(split.crowd[box]), pale)


def box_corners(boxes: np.ndarray) -> NDArray[np.float64]:
    """(M, 4, 2) corners of aligned or rotated boxes."""
    if boxes.shape[-1] == 5:
        return rotated_corners(torch.as_tensor(boxes, dtype=torch.float64)).numpy()
    boxes = boxes.reshape(-1, 4).astype(np.float64)
    return boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)


def _jpeg(pixels: np.ndarray) -> bytes:
    """A JPEG of at most 480 pixels; small ones stay as they are."""
    height, width = pixels.shape[:2]
    factor = min(1.0, _LONGER_SIDE_PX / max(height, width))
    pixels = resize_image(
        np.ascontiguousarray(pixels), max(1, round(height * factor)), max(1, round(width * factor))
    )
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="jpeg", quality=_QUALITY, optimize=True)
    return out.getvalue()


def _format_of(start: bytes) -> str:
    if start.startswith(b"\xff\xd8"):
        return "JPEG"
    return "PNG" if start == b"\x89PNG" else "other"
