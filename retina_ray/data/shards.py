"""Prepared data sets: Parquet shards in small row groups beside a `dataset.json`, on any storage.

`ShardWriter` writes one; `PreparedDataset` reads it. `dataset.json` is written last, so a set whose
preparation was interrupted never looks whole. URIs are local paths or whatever
`pyarrow.fs.FileSystem.from_uri` knows (`s3://`, `gs://`, `hdfs://`, `file://`).

Needs numpy and pyarrow only: Ray Data's tasks import it without PyTorch.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from retina_ray.data.dataset_info import (
    FORMAT_VERSION,
    INFO_FILE,
    DatasetInfo,
    ShardInfo,
    open_filesystem,
    shown_uri,
)
from retina_ray.data.sampling import ImageClasses
from retina_ray.data.schema import (
    LIGHT_COLUMNS,
    ROTATED_COLUMN,
    BoxType,
    DataError,
    Fault,
    flat_lists,
    nested_rows,
)
from retina_ray.data.shard_writer import ShardWriter, list_shards

__all__ = [
    "FORMAT_VERSION",
    "INFO_FILE",
    "DatasetInfo",
    "PreparedDataset",
    "ShardInfo",
    "ShardWriter",
]

# Row groups that are kept: a shuffle's window, whose images come in any order, unless it is large.
_NUM_CACHED_GROUPS = 16
_MAX_CACHED_BYTES = 128 * 2**20
_NUM_OPEN_FILES = 32


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
        self._lock = threading.Lock()
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()

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
            DataError: no such set, half-written, shards missing or cut, or of a newer format.
        """
        filesystem, path = open_filesystem(uri)
        text = os.fspath(uri)
        name = path if isinstance(filesystem, pafs.LocalFileSystem) else text.rstrip("/")
        info_path = f"{path}/{INFO_FILE}"
        if filesystem.get_file_info(info_path).type != pafs.FileType.File:
            raise DataError(_why_not_a_dataset(filesystem, path, text))
        with filesystem.open_input_stream(info_path) as stream:
            info = DatasetInfo.from_json(stream.readall(), uri=text)
        faults = _shard_faults(filesystem, path, info)
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

    def read_row_group(self, shard: int, row_group: int) -> pa.Table:
        """Read a row group with its images; memory-mapped on a local disk, the last few are kept.

        Args:
            shard: position in `info.shards`.
            row_group: position in that shard.

        Returns:
            A table of `shard_schema(self.box_type)`.

        Raises:
            DataError: there is no such row group, or it cannot be read.
        """
        shards = self.info.shards
        if not 0 <= shard < len(shards) or not 0 <= row_group < len(shards[shard].row_group_rows):
            raise DataError(f"{shown_uri(self.uri)}: has no row group {row_group} in shard {shard}")
        key = (shard, row_group)
        with self._lock:
            if key not in self._groups:
                self._groups[key] = self._read(shard, [row_group], None)
                while len(self._groups) > _NUM_CACHED_GROUPS or (
                    len(self._groups) > 1
                    and sum(group.nbytes for group in self._groups.values()) > _MAX_CACHED_BYTES
                ):
                    self._groups.popitem(last=False)
            self._groups.move_to_end(key)
            return self._groups[key]

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
        boxes = "bbox" if box_type == "aligned" else ROTATED_COLUMN
        table = self.annotations()
        images = table.select(["image_id", "file_name", "height", "width"]).rename_columns(
            ["id", "file_name", "height", "width"]
        )
        nested = [
            nested_rows(table[name])
            for name in ("labels", boxes, "area", "iscrowd", "annotation_id")
        ]
        annotations = []
        for image_id, *columns in zip(table["image_id"].to_pylist(), *nested, strict=True):
            for label, bbox, area, crowd, annotation_id in zip(*columns, strict=True):
                annotations.append(
                    {
                        "id": int(annotation_id),
                        "image_id": image_id,
                        "category_id": self.category_ids[label],
                        "bbox": [float(value) for value in bbox],
                        "area": float(area),
                        "iscrowd": int(crowd),
                    }
                )
        categories = [{"id": c.id, "name": c.name} for c in self.info.categories]
        return {"images": images.to_pylist(), "annotations": annotations, "categories": categories}

    def _light(self, columns: Sequence[str]) -> pa.Table:
        """Read light columns of all shards, with each row's place before them."""
        tables = []
        for shard, info in enumerate(self.info.shards):
            with self._lock:
                table = self._read(shard, list(range(len(info.row_group_rows))), list(columns))
            sizes = np.asarray(info.row_group_rows)
            groups = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
            rows = np.concatenate([np.arange(size) for size in sizes]).astype(np.int32)
            places = [np.full(len(groups), shard, np.int32), groups, rows]
            tables.append(
                pa.table(
                    [*(pa.array(place) for place in places), *table.columns],
                    names=["shard", "row_group", "row", *columns],
                )
            )
        return pa.concat_tables(tables)

    def _read(self, shard: int, row_groups: list[int], columns: list[str] | None) -> pa.Table:
        """Read row groups of a shard; the caller holds the lock."""
        info = self.info.shards[shard]
        try:
            table = self._file(shard).read_row_groups(
                row_groups, columns=columns, use_threads=False
            )
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{shown_uri(self.uri)}/{info.file}: cannot be read ({error}); copy or prepare it "
                "again"
            ) from error
        expected = sum(info.row_group_rows[group] for group in row_groups)
        if table.num_rows != expected:
            raise DataError(
                f"{shown_uri(self.uri)}/{info.file}: {table.num_rows} rows where {INFO_FILE} says "
                f"{expected}; the shard does not belong to this data set: prepare it again"
            )
        return table.select(columns) if columns else table

    def _file(self, shard: int) -> pq.ParquetFile:
        """The open file of a shard; the caller holds the lock."""
        if shard not in self._files:
            filesystem, path = open_filesystem(self.uri)
            path = f"{path}/{self.info.shards[shard].file}"
            local = isinstance(filesystem, pafs.LocalFileSystem)
            source = pa.memory_map(path) if local else filesystem.open_input_file(path)
            self._files[shard] = pq.ParquetFile(source, pre_buffer=not local)
            if len(self._files) > _NUM_OPEN_FILES:
                self._files.popitem(last=False)
        self._files.move_to_end(shard)
        return self._files[shard]


def _why_not_a_dataset(filesystem: pafs.FileSystem, path: str, uri: str) -> str:
    """Say why a folder without `dataset.json` is not a prepared data set, and what to do."""
    if filesystem.get_file_info(path).type == pafs.FileType.NotFound:
        return f"{uri}: no such folder; prepare the data set first (see datasets/README.md)"
    if list_shards(filesystem, path):
        return (
            f"{uri}: holds shards but no {INFO_FILE}: its preparation was interrupted, or is still "
            "going on; prepare it again"
        )
    selector = pafs.FileSelector(path)
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        folders = [
            info.base_name
            for info in filesystem.get_file_info(selector)
            if info.type == pafs.FileType.Directory
        ]
        found = filesystem.get_file_info([f"{path}/{f}/{INFO_FILE}" for f in folders])
        inner = [f for f, info in zip(folders, found, strict=True) if info.is_file]
        if inner:
            choices = ", ".join(f"{uri.rstrip('/')}/{folder}" for folder in sorted(inner))
            return f"{uri}: holds no {INFO_FILE}, but these folders do: {choices}; name one of them"
    return f"{uri}: holds no {INFO_FILE}; prepare the data set first (see datasets/README.md)"


def _shard_faults(filesystem: pafs.FileSystem, path: str, info: DatasetInfo) -> list[Fault]:
    """Find shards that are missing or of another size than `dataset.json` says."""
    found = filesystem.get_file_info([f"{path}/{shard.file}" for shard in info.shards])
    faults = []
    for shard, file_info in zip(info.shards, found, strict=True):
        where = f"{path}/{shard.file}"
        if file_info.type == pafs.FileType.NotFound:
            faults.append(Fault("missing shard", "is missing; copy or prepare it again", where))
        elif file_info.size != shard.num_bytes:
            faults.append(
                Fault(
                    "damaged shard",
                    f"has {file_info.size} bytes, expected {shard.num_bytes}: it was cut or "
                    "changed; copy or prepare it again",
                    where,
                )
            )
    return faults
