"""Images of a prepared data set by their position in its index."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from retina_ray.data.augment.views import LazyImage
from retina_ray.data.images.decoding import DecodeError, Pixels, decode_image
from retina_ray.data.limited_cache import LimitedCache
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import ROTATED_COLUMN, BoxType, flat_lists
from retina_ray.errors import DataError
from retina_ray.storage.uris import shown_uri

_MAX_NOTES_BYTES = 64 * 2**20
"""Notes that are kept, about 200 bytes and 20 for each box an image: those of all of COCO."""


@dataclass(frozen=True)
class StoredImage:
    """An image as it lies in the data set, with its boxes (M, 4) XYXY, or (M, 5) rotated ones.

    Attributes:
        data: encoded; empty where it is damaged.
        size: (height, width) in pixels.
        boxes: without crowd regions, which never become targets. Not to be written to.
        labels: (M,), of the boxes. Not to be written to.
        damage: why there is no `data`: its bytes are no longer those that were written.
    """

    data: bytes
    file_name: str
    image_id: int
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    damage: str | None = None

    def lazy(self) -> LazyImage:
        """The same for augmentation, which decodes it (BadImageError) once its size is known."""
        return LazyImage(self._decode, self.size, self.boxes, self.labels)

    def _decode(self, min_shorter_side: int) -> Pixels:
        if self.damage is not None:
            raise BadImageError(self, self.damage)
        try:
            return decode_image(
                self.data, min_shorter_side=min_shorter_side, expected_size=self.size
            )
        except DecodeError as error:
            raise BadImageError(self, str(error)) from error


class BadImageError(DecodeError):
    """A stored image, named in `image`, cannot be decoded."""

    def __init__(self, image: StoredImage, reason: str) -> None:
        super().__init__(reason)
        self.image = image


class StoredImages:
    """The images of a data set by their position in its index.

    Picklable; what it keeps of the images stays behind.

    Args:
        dataset: that holds the images.
        index: `dataset.index()`.
        box_type: which of its boxes are read.

    Raises:
        DataError: the set has no boxes of this kind.
    """

    def __init__(
        self, dataset: PreparedDataset, index: pa.Table, *, box_type: BoxType = "aligned"
    ) -> None:
        dataset.require_box_type(box_type)
        self.dataset = dataset
        self._box_column = "boxes" if box_type == "aligned" else ROTATED_COLUMN
        self.places = np.stack(
            [index[name].to_numpy().astype(np.int32) for name in ("shard", "row_group", "row")],
            axis=1,
        )
        self._notes = self._no_notes()

    @staticmethod
    def _no_notes() -> LimitedCache[tuple[int, int], _Notes]:
        return LimitedCache(_MAX_NOTES_BYTES, lambda notes: notes.num_bytes)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_notes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _notes=self._no_notes())

    def __len__(self) -> int:
        return len(self.places)

    def read(self, positions: Iterable[int]) -> dict[int, StoredImage]:
        """Read images.

        Args:
            positions: in the index; each is read once.

        Returns:
            The image of each position.

        Raises:
            DataError: a shard cannot be read, or was changed.
        """
        wanted = sorted(set(positions))
        places = [(shard, group, row) for shard, group, row in self.places[wanted].tolist()]
        notes = self._notes_of(list(dict.fromkeys(place[:2] for place in places)))
        contents = self.dataset.read_images(places)
        images = {}
        for position, (shard, group, row), content in zip(wanted, places, contents, strict=True):
            damage = None if content is not None else self._damage(shard)
            images[position] = notes[shard, group].image(row, content or b"", damage)
        return images

    def _damage(self, shard: int) -> str:
        return (
            f"its bytes in {self.dataset.info.shards[shard].file} are not those that were written "
            "(CRC-32): the disk or a copy has damaged them; copy or prepare the data set again"
        )

    def _notes_of(self, groups: list[tuple[int, int]]) -> dict[tuple[int, int], _Notes]:
        """What is to be known of the images of row groups; the last ones are kept."""
        found = {group: self._notes.peek(group) for group in groups}
        kept = {group: notes for group, notes in found.items() if notes is not None}
        missing = [group for group in groups if group not in kept]
        if not missing:
            return kept
        columns = ["image_id", "file_name", "height", "width", "labels", "iscrowd"]
        tables = self.dataset.read_light(missing, [*columns, self._box_column])
        made = [self._noted(group, table) for group, table in zip(missing, tables, strict=True)]
        return kept | dict(zip(missing, made, strict=True))

    def _noted(self, group: tuple[int, int], table: pa.Table) -> _Notes:
        """Make the notes of a row group, and keep them."""
        try:
            return self._notes.put(group, _Notes(table, self._box_column))
        except ValueError as error:
            shard, row_group = group
            raise DataError(
                f"{shown_uri(self.dataset.uri)}/{self.dataset.info.shards[shard].file}: row group "
                f"{row_group}: {error}; prepare the data set again"
            ) from error


class _Notes:
    """All of a row group's images but the images, flat: a few arrays, whatever the boxes.

    Raises:
        ValueError: boxes, labels and crowd flags of an image are not equally many.
    """

    def __init__(self, table: pa.Table, box_column: str) -> None:
        self._file_names: list[str] = table["file_name"].to_pylist()
        numbers = [table[name].to_numpy() for name in ("image_id", "height", "width")]
        self._numbers = np.stack([column.astype(np.int64) for column in numbers], axis=1)
        image, (labels,) = flat_lists(table["labels"])
        crowd_image, (crowd,) = flat_lists(table["iscrowd"])
        box_image, boxes = _flat_boxes(table[box_column])
        if not (np.array_equal(image, crowd_image) and np.array_equal(image, box_image)):
            raise ValueError("columns of different lengths")
        kept = ~crowd.astype(np.bool_)
        self._labels, self._boxes = labels[kept], boxes[kept]
        # They are handed out in slices, image by image, again and again.
        self._labels.flags.writeable = self._boxes.flags.writeable = False
        counts = np.bincount(image[kept], minlength=len(numbers[0]))
        self._starts: list[int] = [0, *np.cumsum(counts).tolist()]

    @property
    def num_bytes(self) -> int:
        """Memory that they take, about."""
        arrays = self._numbers.nbytes + self._labels.nbytes + self._boxes.nbytes
        return arrays + sum(map(sys.getsizeof, self._file_names)) + 40 * len(self._starts) + 1000

    def image(self, row: int, data: bytes, damage: str | None) -> StoredImage:
        """An image of the row group, with its image."""
        image_id, height, width = self._numbers[row].tolist()
        boxes = slice(self._starts[row], self._starts[row + 1])
        return StoredImage(
            data,
            self._file_names[row],
            image_id,
            (height, width),
            self._boxes[boxes],
            self._labels[boxes],
            damage,
        )


def _flat_boxes(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of a list column one after the other, and the row that each belongs to."""
    whole = pa.concat_arrays(column.chunks)
    boxes = whole.flatten()
    numbers = boxes.flatten().to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(whole)), np.diff(whole.offsets.to_numpy()))
    return rows, numbers.reshape(-1, boxes.type.list_size)
