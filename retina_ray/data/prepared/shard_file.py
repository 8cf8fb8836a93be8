"""One shard: a Parquet file of row groups, and what a data set needs to know of it.

Its footer says where each image lies (see `retina_ray.data.prepared.byte_ranges`).

A shard is written by whoever has its records, in any process and in any order of the shards: its
bytes depend on its records alone. The fingerprint of a set is made of a digest for each row group,
so it does not depend on who wrote what either.

Needs numpy and pyarrow only: no PyTorch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from retina_ray.data.prepared.byte_ranges import RangeRecorder
from retina_ray.data.prepared.info import ShardInfo
from retina_ray.data.prepared.record_checks import rotated_boxes_of
from retina_ray.data.prepared.schema import (
    IMAGE_COLUMN,
    BoxType,
    Category,
    Record,
    records_to_table,
    shard_schema,
)
from retina_ray.storage.files import AtomicFile


@dataclass(frozen=True)
class ShardContent:
    """A shard that is written, and what the data set sums up over its shards.

    Attributes:
        group_digests: SHA-256 of each row group's content, in hexadecimal.
        class_counts: boxes without crowd regions, by label.
        num_crowd: crowd regions.
    """

    info: ShardInfo
    group_digests: tuple[str, ...]
    class_counts: tuple[int, ...]
    num_crowd: int

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ShardContent:
        """What `dataclasses.asdict` and JSON made of one."""
        info = dict(data["info"])
        groups = tuple(info.pop("row_group_rows"))
        return cls(
            info=ShardInfo(**info, row_group_rows=groups),
            group_digests=tuple(data["group_digests"]),
            class_counts=tuple(data["class_counts"]),
            num_crowd=data["num_crowd"],
        )


class ShardFile:
    """Write the records of one shard; on a local disk the file gets its name when it is whole.

    Args:
        filesystem: where it goes.
        folder: of the data set, on that file system.
        name: of the file.
        num_classes: K.
        box_type: of the data set.
        rows_per_group: images of a row group.
    """

    def __init__(
        self,
        filesystem: pafs.FileSystem,
        folder: str,
        name: str,
        *,
        num_classes: int,
        box_type: BoxType,
        rows_per_group: int,
    ) -> None:
        self.num_rows = 0
        self._filesystem, self._name, self._path = filesystem, name, f"{folder}/{name}"
        self._box_type: BoxType = box_type
        self._rows_per_group = rows_per_group
        self._pending: list[Record] = []
        self._group_rows: list[int] = []
        self._digests: list[str] = []
        self._counts = np.zeros(num_classes, np.int64)
        self._num_crowd = 0
        self._file = AtomicFile(filesystem, self._path)
        self._ranges = RangeRecorder(self._file.sink)
        recorded = pa.PythonFile(self._ranges, mode="w")
        self._parquet = _parquet_writer(recorded, shard_schema(box_type))

    def add(self, record: Record) -> None:
        """Append an image that is known to be fine."""
        crowd = np.asarray(record.iscrowd, np.bool_)
        labels = np.asarray(record.labels)[~crowd]
        self._counts += np.bincount(labels, minlength=len(self._counts)).astype(np.int64)
        self._num_crowd += int(crowd.sum())
        self._pending.append(record)
        self.num_rows += 1
        if len(self._pending) == self._rows_per_group:
            self._flush()

    def _flush(self) -> None:
        """Write the pending records as a row group."""
        if not self._pending:
            return
        table = records_to_table(self._pending, box_type=self._box_type)
        self._parquet.write_table(table, row_group_size=len(self._pending))
        self._ranges.locate(record.image for record in self._pending)
        self._digests.append(_group_digest(self._pending, self._box_type).hex())
        self._group_rows.append(len(self._pending))
        self._pending = []

    def close(self) -> ShardContent:
        """Finish the file."""
        self._flush()
        self._parquet.add_key_value_metadata(self._ranges.footer)
        self._parquet.close()
        self._file.commit()
        size = self._filesystem.get_file_info(self._path).size
        return ShardContent(
            info=ShardInfo(self._name, self.num_rows, int(size or 0), tuple(self._group_rows)),
            group_digests=tuple(self._digests),
            class_counts=tuple(self._counts.tolist()),
            num_crowd=self._num_crowd,
        )

    def abort(self) -> None:
        """Leave no file."""
        self._parquet.close()
        self._file.abort()


def fingerprint(categories: Sequence[Category], contents: Iterable[ShardContent]) -> str:
    """SHA-256 of a set's content and its order in row groups, whatever the files."""
    digest = _begin(categories)
    for content in contents:
        for group in content.group_digests:
            digest.update(bytes.fromhex(group))
    return digest.hexdigest()


class ContentHash:
    """Recompute a fingerprint from what was read, to see whether it still holds."""

    def __init__(self, categories: Sequence[Category], box_type: BoxType) -> None:
        self._box_type: BoxType = box_type
        self._digest = _begin(categories)

    def add_group(self, records: Sequence[Record]) -> None:
        """Add the next row group."""
        self._digest.update(_group_digest(records, self._box_type))

    @property
    def hexdigest(self) -> str:
        """The fingerprint of what was added."""
        return self._digest.hexdigest()


def _begin(categories: Sequence[Category]) -> hashlib._Hash:
    return hashlib.sha256(json.dumps([asdict(c) for c in categories]).encode())


def _group_digest(records: Sequence[Record], box_type: BoxType) -> bytes:
    """SHA-256 of the content of a row group."""
    digest = hashlib.sha256()
    for record in records:
        _hash_record(digest, record, box_type)
    return digest.digest()


def _hash_record(digest: hashlib._Hash, record: Record, box_type: BoxType) -> None:
    """Add a record's content, each part with its length before it."""
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


def shard_name(index: int, generation: int = 0) -> str:
    """Name of the file of a set's shard; sets of different generations lie side by side."""
    return f"shard-{generation}-{index:05d}.parquet" if generation else f"shard-{index:05d}.parquet"


def _leaf_path(column: pa.Field) -> str:
    """The name by which Parquet knows the values of a (nested) column."""
    path, kind = column.name, column.type
    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        path, kind = f"{path}.list.item", kind.value_type
    return path


def _parquet_writer(sink: pa.NativeFile, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a Parquet file: images as they are (they are compressed already), the rest small."""
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
