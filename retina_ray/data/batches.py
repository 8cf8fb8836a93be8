"""From rows of a run's plan to ready batches: read, decode, augment, pack; all in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import cv2
import numpy as np
import pyarrow as pa

from retina_ray.config import ExperimentConfig
from retina_ray.data.image_source import ImageSource, StoredImage
from retina_ray.data.packing import BATCH_SCHEMA, pack_batch
from retina_ray.data.plan_rows import TRAIN, VAL
from retina_ray.data.schema import BoxType, DataError, Fault
from retina_ray.data.shards import PreparedDataset
from retina_ray.data.target_checks import check_targets
from retina_ray.data.transforms import (
    DecodeError,
    Flip,
    Sample,
    augment,
    decode_image,
    image_stream,
    resize_image,
    shortest_edge_size,
)

__all__ = ["BATCH_SCHEMA", "BatchLoader"]

NUM_SPARES = 8
"""Images that follow a training row in the index and stand in when none of its own can be decoded:
a worker whose batches hold one image goes on after a bad one."""

T = TypeVar("T")


class BatchLoader:
    """Makes ready batches of plan rows. Picklable, so that it can travel to Ray's tasks.

    The result depends on the plan row, the data and the arguments here alone, not on the process,
    the order or the number of threads. An image that cannot be decoded, or whose size is not the
    annotated one, is named in `bad_images` and replaced: in training by the next image of the plan
    row that can be decoded (from the first again after the last; see also `NUM_SPARES`), in
    validation by a black picture of its size, so that every image is still evaluated.

    Args:
        train: the set that training rows refer to; None where only validation rows will come.
        val: the set that validation rows refer to, or None.
        train_index: `train.index()`, the same table that the plan was made from.
        val_index: `val.index()`, likewise.
        seed: of the run.
        flip: which flips happen in training.
        min_box_size_px: boxes with a side below this after resizing are left out.
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
        flip: Flip,
        min_box_size_px: float,
        size_divisibility_px: int,
        box_type: BoxType = "aligned",
        num_threads: int = 1,
    ) -> None:
        pairs = ((TRAIN, train, train_index), (VAL, val, val_index))
        lone = [kind for kind, data, index in pairs if (data is None) != (index is None)]
        if lone:
            raise ValueError(f"{lone}: a data set and its index are needed together")
        self._sources = {
            kind: ImageSource(data, index, box_type=box_type)
            for kind, data, index in pairs
            if data is not None and index is not None
        }
        self._seed, self._min_box_size_px = seed, min_box_size_px
        self._flip: Flip = flip
        self._divisor, self._num_threads = size_divisibility_px, num_threads
        self._box_dim = 5 if box_type == "rotated" else 4

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
            flip=config.input.flip,
            min_box_size_px=config.input.min_box_size_px,
            size_divisibility_px=config.input.size_divisibility_px,
            box_type=config.model.box_type,
            num_threads=num_threads,
        )

    def load(self, plan_row: Mapping[str, Any]) -> pa.Table:
        """Make the batch of one plan row; see `load_table`.

        Args:
            plan_row: a value for each column of the plan, as `Table.to_pylist` gives it.

        Returns:
            A table of one row (`BATCH_SCHEMA`).
        """
        return self._load_rows([plan_row])

    def load_table(self, plan_table: pa.Table) -> pa.Table:
        """Make the batches of several plan rows; a row group that they share is read once.

        Args:
            plan_table: rows of a plan.

        Returns:
            A table of as many rows in the same order (`BATCH_SCHEMA`).

        Raises:
            DataError: a shard cannot be read; a training image has a box that no model can learn,
                or a label that is no class (see `check_targets`); or no image of a training row can
                be decoded, nor any of the spares; names them.
        """
        return self._load_rows(plan_table.to_pylist())

    def _load_rows(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        cv2.setNumThreads(0)  # tasks and `num_threads` share the cores; OpenCV's pool would not
        stored: dict[str, dict[int, StoredImage]] = {}
        for kind in {row["kind"] for row in rows}:
            positions = [i for row in rows if row["kind"] == kind for i in row["images"]]
            stored[kind] = self._source(kind).read(positions)
        batches = []
        for row in rows:
            images = [stored[row["kind"]][position] for position in row["images"]]
            batches.append(
                self._train(row, images) if row["kind"] == TRAIN else self._val(row, images)
            )
        return pa.concat_tables(batches) if batches else BATCH_SCHEMA.empty_table()

    def _source(self, kind: str) -> ImageSource:
        if kind not in self._sources:
            raise ValueError(f"a {kind} row came, but the loader was given no {kind} set")
        return self._sources[kind]

    def _train(self, row: Mapping[str, Any], images: list[StoredImage]) -> pa.Table:
        """Augment the images of a training row and replace the bad ones."""
        self._check_targets(images)

        def sample(image: StoredImage) -> Sample | DecodeError:
            target = shortest_edge_size(*image.size, row["size_px"], row["max_size_px"])
            try:
                pixels = _decode(image, target)
            except DecodeError as error:
                return error
            return augment(
                pixels,
                image.boxes,
                image.labels,
                source_size=image.size,
                target_size=target,
                flip=self._flip,
                min_box_size_px=self._min_box_size_px,
                rng=image_stream(self._seed, row["epoch"], image.image_id),
            )

        tried = list(zip(images, self._map(sample, images), strict=True))
        bad = [(image, result) for image, result in tried if isinstance(result, DecodeError)]
        if len(bad) == len(tried):
            used = [self._spare(row, bad, sample)] * len(tried)
        else:
            used = _without_bad(tried)
        return self._pack(row, used, bad)

    def _spare(
        self,
        row: Mapping[str, Any],
        bad: Sequence[tuple[StoredImage, DecodeError]],
        sample: Callable[[StoredImage], Sample | DecodeError],
    ) -> tuple[StoredImage, Sample]:
        """Find an image for a training row of which none can be decoded."""
        source = self._source(TRAIN)
        for k in range(1, NUM_SPARES + 1):
            position = (row["images"][-1] + k) % len(source)
            spare = source.read([position])[position]
            self._check_targets([spare])
            result = sample(spare)
            if isinstance(result, Sample):
                return spare, result
        raise DataError(
            [
                Fault(
                    "image that cannot be decoded",
                    f"{error}; nothing in plan row {row['plan_index']} can be decoded, nor the "
                    f"{NUM_SPARES} images after it: repair or remove them",
                    image.file_name,
                    image.image_id,
                )
                for image, error in bad
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

    def _val(self, row: Mapping[str, Any], images: list[StoredImage]) -> pa.Table:
        """Resize the images of a validation row; bad ones become black."""

        def sample(image: StoredImage) -> tuple[Sample, DecodeError | None]:
            target = shortest_edge_size(*image.size, row["size_px"], row["max_size_px"])
            error = None
            try:
                pixels = resize_image(_decode(image, target), *target)
            except DecodeError as caught:
                pixels, error = np.zeros((*target, 3), np.uint8), caught
            boxes = np.zeros((0, self._box_dim), np.float32)
            return Sample(pixels, boxes, np.zeros(0, np.int32)), error

        results = self._map(sample, images)
        used = [(image, result) for image, (result, _) in zip(images, results, strict=True)]
        bad = [(image, e) for image, (_, e) in zip(images, results, strict=True) if e is not None]
        return self._pack(row, used, bad)

    def _pack(
        self,
        row: Mapping[str, Any],
        used: Sequence[tuple[StoredImage, Sample]],
        bad: Sequence[tuple[StoredImage, DecodeError]],
    ) -> pa.Table:
        return pack_batch(row, used, bad, size_divisibility_px=self._divisor, box_dim=self._box_dim)

    def _map(self, function: Callable[[StoredImage], T], images: Sequence[StoredImage]) -> list[T]:
        if self._num_threads == 1 or len(images) < 2:
            return [function(image) for image in images]
        with ThreadPoolExecutor(self._num_threads) as pool:
            return list(pool.map(function, images))


def _without_bad(
    tried: Sequence[tuple[StoredImage, Sample | DecodeError]],
) -> list[tuple[StoredImage, Sample]]:
    """Put the next good image in the place of each bad one; at least one image is good."""
    used: list[tuple[StoredImage, Sample]] = []
    following: tuple[StoredImage, Sample] | None = None
    # Backwards, twice round: the second time every bad image has a good one after it.
    for image, result in [*tried, *tried][::-1]:
        if isinstance(result, Sample):
            following = (image, result)
        if following is not None:
            used.append(following)
    return used[::-1][: len(tried)]


def _decode(image: StoredImage, target: tuple[int, int]) -> np.ndarray:
    """Decode an image that will be resized to `target`, checked against its annotation."""
    return decode_image(image.data, min_shorter_side=min(target), expected_size=image.size)
