"""The splits of a data set as flat numpy columns: what charts and choices are made from.

Shapes: n images of a split, M boxes of all its images, crowd regions among them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from numpy.typing import NDArray

from retina_ray.data.prepared.completeness import list_shards
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.info import INFO_FILE
from retina_ray.data.prepared.schema import ROTATED_COLUMN
from retina_ray.storage.uris import open_filesystem

_ORDER = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """The light columns of one prepared set.

    Attributes:
        name: unique on the page.
        dataset: for the pixels.
        places: (n, 3) shard, row group and row of each image.
        image_ids: (n,) original ids, as the names.
        file_names: (n,).
        heights: (n,) pixels, as the widths.
        widths: (n,).
        image_of: (M,) position of the image that holds a box; ascending.
        boxes: (M, 4) XYXY, or (M, 5) rotated where the set has rotated boxes.
        labels: (M,) 0 to K-1.
        crowd: (M,) whether it is a crowd region.
    """

    name: str
    dataset: PreparedDataset
    places: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    file_names: pa.ChunkedArray
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    image_of: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.heights)

    @cached_property
    def single(self) -> NDArray[np.int64]:
        """Positions of the boxes that are no crowd regions."""
        return np.flatnonzero(~self.crowd)

    @cached_property
    def sides(self) -> NDArray[np.float64]:
        """(M, 2) width and height of each box in pixels; of a rotated box, its own sides."""
        boxes = self.boxes.astype(np.float64)
        return boxes[:, 2:4] if boxes.shape[1] == 5 else boxes[:, 2:] - boxes[:, :2]

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """(M, 2) centre of each box, as shares of the image's width and height."""
        boxes = self.boxes.astype(np.float64)
        centre = boxes[:, :2] if boxes.shape[1] == 5 else (boxes[:, :2] + boxes[:, 2:]) / 2
        size = np.stack([self.widths, self.heights], axis=1)[self.image_of]
        return centre / size

    @cached_property
    def boxes_per_image(self) -> NDArray[np.int64]:
        """(n,) boxes of each image, without crowd regions."""
        return np.bincount(self.image_of[self.single], minlength=len(self))

    @cached_property
    def class_images(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Each pair of an image and a class that it holds once: image positions and labels."""
        num_classes = max(1, self.dataset.num_classes)
        keys = self.image_of[self.single] * num_classes + self.labels[self.single]
        keys = np.unique(keys)
        return keys // num_classes, keys % num_classes

    def box_counts(self) -> dict[str, tuple[int, int]]:
        """How many boxes and how many images each class has, by its name."""
        names = self.dataset.class_names
        boxes = np.bincount(self.labels[self.single], minlength=len(names))
        images = np.bincount(self.class_images[1], minlength=len(names))
        return {name: (int(b), int(i)) for name, b, i in zip(names, boxes, images, strict=False)}

    def of_image(self, position: int) -> NDArray[np.int64]:
        """Positions of an image's boxes, crowd regions among them."""
        start, end = np.searchsorted(self.image_of, [position, position + 1])
        return np.arange(start, end)


def open_splits(uri: str | os.PathLike[str]) -> dict[str, PreparedDataset]:
    """Open one prepared set, or all sets that lie in a folder.

    Returns:
        The sets by the name of their split: train, val and test first.

    Raises:
        DataError: neither is there, or one of them is not whole.
    """
    filesystem, path = open_filesystem(uri)
    if filesystem.get_file_info(f"{path}/{INFO_FILE}").is_file:
        dataset = PreparedDataset.open(uri)
        return {dataset.info.split: dataset}
    folders: list[str] = []
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        inside = filesystem.get_file_info(pafs.FileSelector(path))
        folders = [info.base_name for info in inside if info.type == pafs.FileType.Directory]
    found = filesystem.get_file_info([f"{path}/{folder}/{INFO_FILE}" for folder in folders])
    # A folder of shards without its description is a set that is not whole: opening it says so.
    named = [
        folder
        for folder, info in zip(folders, found, strict=True)
        if info.is_file or list_shards(filesystem, f"{path}/{folder}")
    ]
    if not any(info.is_file for info in found):
        return {"": PreparedDataset.open(uri)}  # raises, and says what is missing
    rank = {name: number for number, name in enumerate(_ORDER)}
    named.sort(key=lambda name: (rank.get(name, len(rank)), name))
    base, mark, query = os.fspath(uri).partition("?" if "://" in os.fspath(uri) else "\0")
    base = base.rstrip("/")
    return {name: PreparedDataset.open(f"{base}/{name}{mark}{query}") for name in named}


def read_split(name: str, dataset: PreparedDataset) -> Split:
    """Read the light columns of a set; images are not touched.

    Raises:
        DataError: a shard cannot be read.
    """
    table = dataset.annotations()
    rotated = dataset.box_type == "rotated"
    counts = pc.call_function("list_value_length", [table["labels"]]).to_numpy()
    return Split(
        name=name,
        dataset=dataset,
        places=np.stack([_numbers(table[c]) for c in ("shard", "row_group", "row")], axis=1),
        image_ids=_numbers(table["image_id"]),
        file_names=table["file_name"],
        heights=_numbers(table["height"]),
        widths=_numbers(table["width"]),
        image_of=np.repeat(np.arange(table.num_rows), counts),
        boxes=_flat(table[ROTATED_COLUMN if rotated else "boxes"]).reshape(-1, 5 if rotated else 4),
        labels=_flat(table["labels"]).astype(np.int64),
        crowd=_flat(table["iscrowd"]).astype(np.bool_),
    )


def _numbers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return column.to_numpy().astype(np.int64)


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    """All numbers of a column of lists, or of lists of boxes, one after the other."""
    while not pa.types.is_primitive(column.type):
        column = pc.call_function("list_flatten", [column])
    return column.to_numpy()
