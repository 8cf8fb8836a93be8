"""Prepared data sets: Parquet shards in small row groups beside a `dataset.json`, on any storage.

`ShardWriter` writes one; `PreparedDataset` reads it. `dataset.json` is written last, so a set whose
preparation was interrupted never looks whole. URIs are local paths or whatever
`pyarrow.fs.FileSystem.from_uri` knows (`s3://`, `gs://`, `hdfs://`, `file://`).

Needs numpy and pyarrow only: Ray Data's tasks import it without PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from retina_ray.data.prepared.completeness import shard_faults, why_not_a_dataset
from retina_ray.data.prepared.ground_truth import coco_dict
from retina_ray.data.prepared.image_reader import ImageReader
from retina_ray.data.prepared.info import INFO_FILE, DatasetInfo
from retina_ray.data.prepared.schema import (
    LIGHT_COLUMNS,
    ROTATED_COLUMN,
    BoxType,
    ImageClasses,
    flat_lists,
)
from retina_ray.data.prepared.shard_reader import ShardReader
from retina_ray.errors import DataError
from retina_ray.storage.uris import open_filesystem, shown_uri


class PreparedDataset:
    """A prepared data set, opened for reading. Picklable: open files and caches stay behind.

    Attributes:
        uri: folder of the set; local paths are absolute.
        info: the content of `dataset.json`.
    """

    def __init__(self, uri: str, info: DatasetInfo) -> None:
        self.uri = uri
        self.info = info
        self._reset()

    def _reset(self) -> None:
        self._shards = ShardReader(self.uri, self.info)
        self._images = ImageReader(self._shards)

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "info": self.info}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.uri, self.info = state["uri"], state["info"]
        self._reset()

    def __repr__(self) -> str:
        return f"PreparedDataset({shown_uri(self.uri)!r}, {self.info.num_images} images)"

    @classmethod
    def open(cls, uri: str | os.PathLike[str]) -> PreparedDataset:
        """Open a set and check that it is whole, without reading its shards.

        Args:
            uri: folder that holds a `dataset.json`: a local path or a URI.

        Raises:
            DataError: no such set, half-written, shards missing or cut, or of another format.
        """
        filesystem, path = open_filesystem(uri)
        text, shown = os.fspath(uri), shown_uri(uri)
        name = path if isinstance(filesystem, pafs.LocalFileSystem) else text.rstrip("/")
        info_path = f"{path}/{INFO_FILE}"
        if filesystem.get_file_info(info_path).type != pafs.FileType.File:
            raise DataError(why_not_a_dataset(filesystem, path, shown))
        with filesystem.open_input_stream(info_path) as stream:
            info = DatasetInfo.from_json(stream.readall(), uri=shown)
        faults = shard_faults(filesystem, path, info)
        if faults:
            raise DataError(faults)
        return cls(name, info)

    @property
    def num_images(self) -> int:
        """Images in the set."""
        return self.info.num_images

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.info.categories)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the labels."""
        return tuple(category.name for category in self.info.categories)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Original ids in the order of the labels."""
        return tuple(category.id for category in self.info.categories)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content and its order, whatever the path."""
        return self.info.fingerprint

    @property
    def report(self) -> dict[str, Any]:
        """What the import dropped, clipped or changed."""
        return dict(self.info.report)

    @property
    def box_type(self) -> BoxType:
        """Which boxes there are: every set has aligned ones, a "rotated" one has both kinds."""
        return self.info.box_type

    def require_box_type(self, box_type: BoxType) -> None:
        """Refuse a set that has no boxes of the wanted kind.

        Raises:
            DataError: rotated boxes are wanted, and the set has aligned ones only.
        """
        if box_type == "rotated" and self.box_type != "rotated":
            raise DataError(
                f"{shown_uri(self.uri)}: has no rotated boxes: set model.box_type to aligned, or "
                "prepare the set with rotated boxes (see datasets/README.md)"
            )

    def index(self) -> pa.Table:
        """What planning needs to know of every image; the image column is never read.

        Returns:
            A row for each image in the order of the shards: shard int32, row_group int32, row int32
            (within its row group), image_id int64, file_name, height and width int32 in pixels,
            num_boxes int32 (without crowd regions).
        """
        light = self._light(("image_id", "file_name", "height", "width", "iscrowd"))
        image, (crowd,) = flat_lists(light["iscrowd"])
        num_boxes = np.bincount(image[~crowd], minlength=light.num_rows)
        return light.drop_columns(["iscrowd"]).append_column(
            "num_boxes", pa.array(num_boxes, pa.int32())
        )

    def image_classes(self) -> ImageClasses:
        """Which classes each image of `index` holds, crowd regions left out."""
        light = self._light(("labels", "iscrowd"))
        image, (label, crowd) = flat_lists(light["labels"], light["iscrowd"])
        pairs = np.unique(image[~crowd] * self.num_classes + label[~crowd])
        return ImageClasses(
            image=(pairs // self.num_classes).astype(np.int32),
            label=(pairs % self.num_classes).astype(np.int32),
            num_images=light.num_rows,
            num_classes=self.num_classes,
        )

    def annotations(self) -> pa.Table:
        """All columns but the image, after shard, row_group and row as in `index`."""
        rotated = (ROTATED_COLUMN,) if self.box_type == "rotated" else ()
        return self._light((*LIGHT_COLUMNS, *rotated))

    def read_images(self, places: Sequence[tuple[int, int, int]]) -> list[bytes | None]:
        """Read images, each alone: see `retina_ray.data.prepared.image_reader`.

        Args:
            places: shard, row group and row of each, as `index` has them.

        Returns:
            The encoded images in the order of the places; None for one whose bytes are no longer
            those that were written.

        Raises:
            DataError: there is no such place, a shard cannot be read, or was changed.
        """
        return self._images.read(places)

    def read_light(
        self, groups: Sequence[tuple[int, int]], columns: Sequence[str]
    ) -> list[pa.Table]:
        """Read columns other than the image of row groups, from afar several at once.

        Returns:
            A table for each row group.

        Raises:
            DataError: there is no such row group, or it cannot be read.
        """
        for group in groups:
            self._shards.check_place(*group)
        return self._shards.each(lambda one: self._shards.table(one[0], [one[1]], columns), groups)

    def read_row_group(self, shard: int, row_group: int) -> pa.Table:
        """Read a row group with its images; the last few are kept.

        Args:
            shard: position in `info.shards`.
            row_group: position in that shard.

        Returns:
            A table of `shard_schema(self.box_type)`, and of whatever else another program added.

        Raises:
            DataError: there is no such row group, or it cannot be read.
        """
        return self._shards.row_group(shard, row_group)

    def check_images(self, shard: int, row_group: int, images: Sequence[bytes]) -> None:
        """Compare what a shard's footer says of its images with what a row group holds.

        Args:
            shard: position in `info.shards`.
            row_group: position in that shard.
            images: of `read_row_group`.

        Raises:
            DataError: they differ.
        """
        self._images.check(shard, row_group, images)

    def ground_truth(self, *, box_type: BoxType = "aligned") -> dict[str, Any]:
        """The annotations as a COCO dict, from the light columns only.

        Original category, image and annotation ids; `bbox` is what was annotated (XYWH, float64),
        so COCOeval gives the figures of the original file. Note that pycocotools takes an
        annotation of id 0 for "not matched": ids made by this package start at 1.

        Args:
            box_type: "rotated": `bbox` is (x_center, y_center, width, height, angle).

        Returns:
            images, annotations and categories.

        Raises:
            DataError: rotated boxes are wanted, and the set has aligned ones only.
        """
        self.require_box_type(box_type)
        return coco_dict(self.annotations(), self.info.categories, box_type=box_type)

    def _light(self, columns: Sequence[str]) -> pa.Table:
        """Read light columns of all shards, with each row's place before them."""

        def read(shard: int) -> pa.Table:
            sizes = np.asarray(self.info.shards[shard].row_group_rows)
            table = self._shards.table(shard, range(len(sizes)), columns)
            groups = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
            rows = np.concatenate([np.arange(size) for size in sizes]).astype(np.int32)
            places = [np.full(len(groups), shard, np.int32), groups, rows]
            return pa.table(
                [*(pa.array(place) for place in places), *table.columns],
                names=["shard", "row_group", "row", *columns],
            )

        light = pa.concat_tables(self._shards.each(read, range(len(self.info.shards))))
        if light.num_rows != self.info.num_images:
            raise DataError(
                f"{shown_uri(self.uri)}/{INFO_FILE}: says {self.info.num_images} images, its "
                f"shards hold {light.num_rows}; copy it or prepare the data set again"
            )
        return light
