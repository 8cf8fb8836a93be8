"""From rows of a run's plan to ready batches: read, decode, augment, pack; all in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import cv2
import numpy as np
import pyarrow as pa

from retina_ray.config import ExperimentConfig
from retina_ray.data.augment.augmenter import Augmenter
from retina_ray.data.augment.transforms import LabeledImage, Size, resize_image, shortest_edge_size
from retina_ray.data.images.decoding import Pixels
from retina_ray.data.loading.packing import join_batches, pack_batch, padded_batch
from retina_ray.data.loading.stored_images import BadImageError, StoredImage, StoredImages
from retina_ray.data.loading.target_checks import check_targets
from retina_ray.data.plan.layout import TRAIN, VAL
from retina_ray.data.plan.order import NUM_MOSAIC_SOURCES
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import BoxType
from retina_ray.data.random_streams import image_stream
from retina_ray.errors import DataError, Fault

NUM_SPARES = 8
"""Images that follow a training row in the index and stand in when none of its own can be decoded:
a worker whose batches hold one image goes on after a bad one."""

S = TypeVar("S")
T = TypeVar("T")


class BatchLoader:
    """Makes ready batches of plan rows. Picklable, so that it can travel to Ray's tasks.

    The result depends on the plan row, the data and the arguments here alone, not on the process,
    the order or the number of threads. An image that cannot be decoded, or whose size is not the
    annotated one, is named in `bad_images` and replaced: in training by the next image of the plan
    row that can be decoded (from the first again after the last; see also `NUM_SPARES`), in
    validation by a black image of its size, so that every image is still evaluated. An image that
    was to be mixed into another is left out of it.

    Args:
        train: the set that training rows refer to; None where only validation rows will come.
        val: the set that validation rows refer to, or None.
        train_index: `train.index()`, the same table that the plan was made from.
        val_index: `val.index()`, likewise.
        seed: of the run.
        augmenter: changes training images at random.
        size_divisibility_px: batches are padded to multiples of this.
        box_type: "rotated": the batches carry the sets' rotated boxes, with five numbers each.
        num_threads: images decoded at once; in Ray, tasks run side by side instead.

    Raises:
        DataError: rotated boxes are wanted, and a set has none.
        ValueError: a set without its index, or the other way round.
    """

    def __init__(
        self,
        *,
        train: PreparedDataset | None,
        val: PreparedDataset | None,
        train_index: pa.Table | None,
        val_index: pa.Table | None,
        seed: int,
        augmenter: Augmenter,
        size_divisibility_px: int,
        box_type: BoxType = "aligned",
        num_threads: int = 1,
    ) -> None:
        pairs = ((TRAIN, train, train_index), (VAL, val, val_index))
        lone = [kind for kind, data, index in pairs if (data is None) != (index is None)]
        if lone:
            raise ValueError(f"{lone}: a data set and its index are needed together")
        self._sources = {
            kind: StoredImages(data, index, box_type=box_type)
            for kind, data, index in pairs
            if data is not None and index is not None
        }
        self._seed, self._augmenter = seed, augmenter
        self._num_threads = num_threads
        self._packing = {
            "size_divisibility_px": size_divisibility_px,
            "box_dim": 5 if box_type == "rotated" else 4,
        }

    @classmethod
    def from_config(
        cls,
        config: ExperimentConfig,
        train: PreparedDataset | None,
        val: PreparedDataset | None,
        train_index: pa.Table | None,
        val_index: pa.Table | None,
        *,
        num_threads: int = 1,
    ) -> BatchLoader:
        """Build the loader that a config describes."""
        return cls(
            train=train,
            val=val,
            train_index=train_index,
            val_index=val_index,
            seed=config.train.seed,
            augmenter=Augmenter.from_config(config.input),
            size_divisibility_px=config.input.size_divisibility_px,
            box_type=config.model.box_type,
            num_threads=num_threads,
        )

    def load_table(self, plan_table: pa.Table) -> pa.Table:
        """Make the batches of several plan rows; a row group that they share is read once.

        Args:
            plan_table: rows of a plan; repeats and partners may be missing.

        Returns:
            A table of as many rows in the same order (`BATCH_SCHEMA`).

        Raises:
            DataError: a shard cannot be read; a training image has a box that no model can learn,
                or a label that is no class (see `check_targets`); or no image of a training row can
                be decoded, nor any of the spares; names them.
        """
        rows = plan_table.to_pylist()
        cv2.setNumThreads(0)  # tasks and `num_threads` share the cores; OpenCV's pool would not
        stored: dict[str, dict[int, StoredImage]] = {}
        for kind in {row["kind"] for row in rows}:
            positions = [i for row in rows if row["kind"] == kind for i in _positions(row)]
            stored[kind] = self._source(kind).read(positions)
        batches = [
            (self._train if row["kind"] == TRAIN else self._val)(row, stored[row["kind"]])
            for row in rows
        ]
        return join_batches(batches)

    def _source(self, kind: str) -> StoredImages:
        if kind not in self._sources:
            raise ValueError(f"a {kind} row came, but the loader was given no {kind} set")
        return self._sources[kind]

    def _train(self, row: Mapping[str, Any], stored: Mapping[int, StoredImage]) -> pa.Table:
        """Augment the images of a training row and replace the bad ones."""
        images = [stored[position] for position in row["images"]]
        repeats = row.get("repeats") or [0] * len(images)
        mixes = [[stored[p] for p in own] for own in _mix_sources(row)] or [[] for _ in images]
        self._check_targets([*images, *(other for own in mixes for other in own)])
        sizes, room, places = self._room(row, images)
        mixed = list(zip(images, sizes, repeats, mixes, places, strict=True))
        results = self._map(lambda one: self._sample(row, *one), mixed)
        tried = [(image, sample) for image, (sample, _) in zip(images, results, strict=True)]
        bad = [fault for _, faults in results for fault in faults]
        if tried and all(sample is None for _, sample in tried):
            used = [self._spare(row, bad)] * len(tried)
        else:
            used = _without_bad(tried)
        return pack_batch(row, used, bad, room=room, **self._packing)

    def _room(
        self, row: Mapping[str, Any], images: Sequence[StoredImage]
    ) -> tuple[list[Size], Pixels, list[Pixels]]:
        """The size that each image is to get, room for the batch, and the place of each in it."""
        limits = row["size_px"], row["max_size_px"]
        sizes = [shortest_edge_size(*image.size, *limits) for image in images]
        room = padded_batch(sizes, self._packing["size_divisibility_px"])
        places = [
            place[:height, :width] for place, (height, width) in zip(room, sizes, strict=True)
        ]
        return sizes, room, places

    def _sample(
        self,
        row: Mapping[str, Any],
        image: StoredImage,
        size: Size,
        repeat: int = 0,
        mix_sources: Sequence[StoredImage] = (),
        place: Pixels | None = None,
    ) -> tuple[LabeledImage | None, list[BadImageError]]:
        """Augment an image, unmixed where one of the others is bad; None where itself is."""
        bad: list[BadImageError] = []
        for others in [mix_sources, ()] if mix_sources else [()]:
            try:
                sample = self._augmenter(
                    image.lazy(),
                    [other.lazy() for other in others],
                    target_size=size,
                    size_px=row["size_px"],
                    max_size_px=row["max_size_px"],
                    rng=image_stream(self._seed, row["epoch"], image.image_id, repeat),
                    mosaic=len(others) >= NUM_MOSAIC_SOURCES,
                    mixup=len(others) % NUM_MOSAIC_SOURCES == 1,
                    out=place,
                )
                return sample, bad
            except BadImageError as error:
                bad.append(error)
                if error.image is image:
                    break
        return None, bad

    def _spare(
        self, row: Mapping[str, Any], bad: Sequence[BadImageError]
    ) -> tuple[StoredImage, LabeledImage]:
        """Find an image for a training row of which none can be decoded."""
        source = self._source(TRAIN)
        for k in range(1, NUM_SPARES + 1):
            position = (row["images"][-1] + k) % len(source)
            spare = source.read([position])[position]
            self._check_targets([spare])
            size = shortest_edge_size(*spare.size, row["size_px"], row["max_size_px"])
            sample, _ = self._sample(row, spare, size)
            if sample is not None:
                return spare, sample
        raise DataError(
            [
                Fault(
                    "image that cannot be decoded",
                    f"{error}; nothing in plan row {row['plan_index']} can be decoded, nor the "
                    f"{NUM_SPARES} images after it: repair or remove them",
                    error.image.file_name,
                    error.image.image_id,
                )
                for error in bad
            ]
        )

    def _check_targets(self, images: Sequence[StoredImage]) -> None:
        """Refuse bad boxes and labels, before augmentation clips or drops what gives them away."""
        check_targets(
            [image.boxes for image in images],
            [image.labels for image in images],
            [image.size for image in images],
            num_classes=self._source(TRAIN).dataset.num_classes,
            image_ids=[image.image_id for image in images],
        )

    def _val(self, row: Mapping[str, Any], stored: Mapping[int, StoredImage]) -> pa.Table:
        """Resize the images of a validation row; bad ones become black."""
        images = [stored[position] for position in row["images"]]
        sizes, room, places = self._room(row, images)

        def sample(
            image: StoredImage, size: Size, place: Pixels
        ) -> tuple[LabeledImage, BadImageError | None]:
            error = None
            try:
                pixels = resize_image(image.lazy().decode(min(size)), *size, place)
            except BadImageError as caught:
                pixels, error = np.zeros((*size, 3), np.uint8), caught
            boxes = np.zeros((0, self._packing["box_dim"]), np.float32)
            return LabeledImage(pixels, boxes, np.zeros(0, np.int32)), error

        results = self._map(lambda one: sample(*one), list(zip(images, sizes, places, strict=True)))
        used = [(image, result) for image, (result, _) in zip(images, results, strict=True)]
        bad = [error for _, error in results if error is not None]
        return pack_batch(row, used, bad, room=room, **self._packing)

    def _map(self, function: Callable[[S], T], images: Sequence[S]) -> list[T]:
        if self._num_threads == 1 or len(images) < 2:
            return [function(image) for image in images]
        with ThreadPoolExecutor(self._num_threads) as pool:
            return list(pool.map(function, images))


def _positions(row: Mapping[str, Any]) -> list[int]:
    """The images of a plan row, and those that are mixed into them."""
    return [*row["images"], *(p for own in _mix_sources(row) for p in own)]


def _mix_sources(row: Mapping[str, Any]) -> list[list[int]]:
    """For each image of a plan row, what is mixed into it; empty where nothing is in any."""
    return row.get("partners") or []


def _without_bad(
    tried: Sequence[tuple[StoredImage, LabeledImage | None]],
) -> list[tuple[StoredImage, LabeledImage]]:
    """Put the next good image in the place of each bad one; at least one image is good."""
    used: list[tuple[StoredImage, LabeledImage]] = []
    following: tuple[StoredImage, LabeledImage] | None = None
    # Backwards, twice round: the second time every bad image has a good one after it.
    for image, sample in [*tried, *tried][::-1]:
        if sample is not None:
            following = (image, sample)
        if following is not None:
            used.append(following)
    return used[::-1][: len(tried)]
