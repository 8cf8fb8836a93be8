"""Writing a prepared data set: shards first, `dataset.json` last.

Needs numpy and pyarrow only: no PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from retina_ray.data.dataset_info import INFO_FILE, DatasetInfo, ShardInfo, open_filesystem
from retina_ray.data.record_checks import check_categories, record_faults, rotated_boxes_of
from retina_ray.data.schema import (
    IMAGE_COLUMN,
    BoxType,
    Category,
    DataError,
    Record,
    records_to_table,
    shard_schema,
)

__all__ = ["ShardWriter", "delete_dataset", "list_shards"]


def list_shards(filesystem: pafs.FileSystem, path: str) -> list[pafs.FileInfo]:
    """The shard files in a folder, in order, whether or not a `dataset.json` names them."""
    selector = pafs.FileSelector(path, allow_not_found=True)
    infos = [
        info
        for info in filesystem.get_file_info(selector)
        if info.base_name.startswith("shard-") and info.base_name.endswith(".parquet")
    ]
    return sorted(infos, key=lambda info: info.base_name)


def delete_dataset(uri: str | os.PathLike[str]) -> None:
    """Delete a prepared data set, complete or not; other files of its folder stay.

    Args:
        uri: folder of the set; nothing happens where there is none.
    """
    filesystem, path = open_filesystem(uri)
    info_path = f"{path}/{INFO_FILE}"
    if filesystem.get_file_info(info_path).type != pafs.FileType.NotFound:
        filesystem.delete_file(info_path)
    for info in list_shards(filesystem, path):
        filesystem.delete_file(info.path)


class ShardWriter:
    """Write a prepared data set; use it as a context manager.

    Records are checked as they come: whatever the source, a written set has labels within the
    classes, boxes within the images, and unique ids.

    Args:
        uri: folder of the set; made where it is missing.
        name: of the data set.
        split: e.g. "train".
        categories: in the order of the labels.
        source: where it came from, in words.
        rows_per_group: images of a row group, the unit of reading. Small groups shuffle better.
        rows_per_shard: images of a file.
        box_type: "rotated": each record has rotated boxes besides the aligned ones.
        report: what the import changed; may also be filled until the end of the `with` block.
        overwrite: replace a complete data set that is already there; it is deleted at the start.

    Raises:
        DataError: a complete set is there already; or, at the end, the set is empty or has no box.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        *,
        name: str,
        split: str,
        categories: Sequence[Category],
        source: str = "",
        rows_per_group: int = 32,
        rows_per_shard: int = 2048,
        box_type: BoxType = "aligned",
        report: dict[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        if rows_per_group < 1 or rows_per_shard < 1:
            raise ValueError(
                f"rows_per_group = {rows_per_group} and rows_per_shard = {rows_per_shard} "
                "must be at least 1"
            )
        if box_type not in get_args(BoxType):
            raise ValueError(f"box_type = {box_type!r}: expected one of {get_args(BoxType)}")
        self.uri = os.fspath(uri)
        self.report: dict[str, Any] = {} if report is None else report
        self._name, self._split, self._source = name, split, source
        self._categories = tuple(categories)
        check_categories(self._categories)
        self._rows_per_group, self._rows_per_shard = rows_per_group, rows_per_shard
        self._box_type: BoxType = box_type
        self._overwrite = overwrite
        self._filesystem, self._path = open_filesystem(uri)
        self._pending: list[Record] = []
        self._group_rows: list[int] = []
        self._shards: list[ShardInfo] = []
        self._parquet: pq.ParquetWriter | None = None
        self._sink: pa.NativeFile | None = None
        self._image_ids: set[int] = set()
        self._annotation_ids: set[int] = set()
        self._counts = np.zeros(len(self._categories), np.int64)
        self._num_crowd = 0
        self._hash = hashlib.sha256()
        self._hash.update(json.dumps([asdict(c) for c in self._categories]).encode())

    def __enter__(self) -> ShardWriter:
        info_path = f"{self._path}/{INFO_FILE}"
        exists = self._filesystem.get_file_info(info_path).type != pafs.FileType.NotFound
        if exists and not self._overwrite:
            raise DataError(
                f"{self.uri}: holds a complete data set already; give another folder, or ask to "
                "overwrite it"
            )
        delete_dataset(self.uri)
        self._filesystem.create_dir(self._path, recursive=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._finish()
        except BaseException:
            self._abort()
            raise
        if error is not None:
            self._abort()

    def add(self, record: Record) -> None:
        """Append an image.

        Args:
            record: with boxes within the image and ids that were not added before.

        Raises:
            DataError: the record breaks the schema's rules; all its faults at once.
        """
        faults = list(
            record_faults(
                record,
                num_classes=len(self._categories),
                box_type=self._box_type,
                image_ids=self._image_ids,
                annotation_ids=self._annotation_ids,
            )
        )
        if faults:
            raise DataError(faults)
        self._image_ids.add(record.image_id)
        self._annotation_ids.update(int(i) for i in record.annotation_id)
        crowd = np.asarray(record.iscrowd, np.bool_)
        labels = np.asarray(record.labels)[~crowd]
        self._counts += np.bincount(labels, minlength=len(self._counts)).astype(np.int64)
        self._num_crowd += int(crowd.sum())
        self._pending.append(record)
        if len(self._pending) == min(
            self._rows_per_group, self._rows_per_shard - sum(self._group_rows)
        ):
            self._flush()

    def _flush(self) -> None:
        """Write the pending records as a row group; close the shard when it is full."""
        if not self._pending:
            return
        if self._parquet is None:
            path = f"{self._path}/{_shard_name(len(self._shards))}"
            self._sink = self._filesystem.open_output_stream(path)
            self._parquet = _parquet_writer(self._sink, shard_schema(self._box_type))
        table = records_to_table(self._pending, box_type=self._box_type)
        self._parquet.write_table(table, row_group_size=len(self._pending))
        self._hash.update(b"group")
        for record in self._pending:
            _hash_record(self._hash, record, self._box_type)
        self._group_rows.append(len(self._pending))
        self._pending = []
        if sum(self._group_rows) >= self._rows_per_shard:
            self._close_shard()

    def _close_shard(self) -> None:
        """Finish the open file and note its size."""
        if self._parquet is None or self._sink is None:
            return
        self._parquet.close()
        self._sink.close()
        self._parquet = self._sink = None
        name = _shard_name(len(self._shards))
        size = self._filesystem.get_file_info(f"{self._path}/{name}").size
        groups = tuple(self._group_rows)
        self._shards.append(ShardInfo(name, sum(groups), int(size or 0), groups))
        self._group_rows = []

    def _finish(self) -> None:
        """Write what is left, and `dataset.json` last."""
        self._flush()
        self._close_shard()
        if not self._image_ids:
            raise DataError(f"{self.uri}: the data set is empty: no image was left to write")
        if not self._counts.sum():
            raise DataError(
                f"{self.uri}: none of the {len(self._image_ids)} images has a box that is not a "
                "crowd region; there is nothing to train on or to evaluate"
            )
        names = [c.name for c in self._categories]
        info = DatasetInfo(
            name=self._name,
            split=self._split,
            source=self._source,
            categories=self._categories,
            num_images=len(self._image_ids),
            num_boxes=int(self._counts.sum()),
            num_crowd=self._num_crowd,
            class_counts=dict(zip(names, self._counts.tolist(), strict=True)),
            shards=tuple(self._shards),
            fingerprint=self._hash.hexdigest(),
            report=self.report,
            box_type=self._box_type,
        )
        _write_whole(self._filesystem, f"{self._path}/{INFO_FILE}", info.to_json().encode())

    def _abort(self) -> None:
        """Leave nothing that could be taken for a data set."""
        for stream in (self._parquet, self._sink):
            if stream is not None:
                stream.close()
        self._parquet = self._sink = None
        delete_dataset(self.uri)


def _shard_name(index: int) -> str:
    return f"shard-{index:05d}.parquet"


def _leaf_path(column: pa.Field) -> str:
    """The name by which Parquet knows the values of a (nested) column."""
    path, kind = column.name, column.type
    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        path, kind = f"{path}.list.item", kind.value_type
    return path


def _parquet_writer(sink: pa.NativeFile, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a Parquet file: pictures as they are (they are compressed already), the rest small."""
    compression: Any = {
        _leaf_path(column): "NONE" if column.name == IMAGE_COLUMN else "ZSTD" for column in schema
    }
    return pq.ParquetWriter(
        sink,
        schema,
        compression=compression,
        use_dictionary=False,
        write_statistics=False,
        use_compliant_nested_type=False,
    )


def _hash_record(digest: hashlib._Hash, record: Record, box_type: BoxType) -> None:
    """Add a record's content to the fingerprint, each part with its length before it."""
    parts = [
        record.image,
        record.file_name.encode(),
        np.array([record.image_id, record.height, record.width], "<i8").tobytes(),
        np.asarray(record.boxes, "<f4").tobytes(),
        np.asarray(record.labels, "<i4").tobytes(),
        np.asarray(record.iscrowd, np.bool_).tobytes(),
        np.asarray(record.area, "<f8").tobytes(),
        np.asarray(record.annotation_id, "<i8").tobytes(),
        record.xywh.astype("<f8").tobytes(),
    ]
    if box_type == "rotated":
        parts.append(rotated_boxes_of(record).astype("<f4").tobytes())
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)


def _write_whole(filesystem: pafs.FileSystem, path: str, content: bytes) -> None:
    """Write a file so that no reader ever sees half of it.

    Object stores show a file when it is closed; on a disk it is written aside and renamed.
    """
    local = isinstance(filesystem, pafs.LocalFileSystem)
    target = f"{path}.partial" if local else path
    with filesystem.open_output_stream(target) as stream:
        stream.write(content)
    if local:
        os.replace(target, path)
