"""The shards of a prepared set, opened as they are needed: tables, and where the images lie.

Needs numpy and pyarrow only: Ray Data's tasks import it without PyTorch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from retina_ray.data.limited_cache import LimitedCache
from retina_ray.data.prepared.byte_ranges import RANGES_KEY, decode_ranges
from retina_ray.data.prepared.info import INFO_FILE, DatasetInfo
from retina_ray.data.prepared.schema import shard_schema
from retina_ray.errors import DataError, Fault
from retina_ray.storage.uris import open_filesystem, shown_uri

OTHER_COLUMNS = "shard with other columns"
"""Kind of the fault of a shard that another version or program wrote."""

S = TypeVar("S")
T = TypeVar("T")

_MAX_CACHED_BYTES = 128 * 2**20
"""Row groups that are kept whole, for whoever reads them so."""
_NUM_OPEN_FILES = 32
_MAX_RANGES_BYTES = 32 * 2**20
"""Ranges that are kept: those of two million images."""
_NUM_THREADS = 16
"""Questions that a process asks a remote storage at once."""


class ShardReader:
    """Reads the shards of a set; safe to be used by several threads, not to be pickled."""

    def __init__(self, uri: str, info: DatasetInfo) -> None:
        self.uri, self.info = uri, info
        self._locks = [threading.Lock() for _ in info.shards]
        self._files: LimitedCache[int, pq.ParquetFile] = LimitedCache(_NUM_OPEN_FILES)
        self._ranges: LimitedCache[int, tuple[np.ndarray | None]] = LimitedCache(
            _MAX_RANGES_BYTES, lambda kept: _num_bytes(kept[0])
        )
        self._groups: LimitedCache[tuple[int, int], pa.Table] = LimitedCache(
            _MAX_CACHED_BYTES, _num_bytes
        )

    @cached_property
    def _place(self) -> tuple[pafs.FileSystem, str]:
        return open_filesystem(self.uri)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="shards")

    @property
    def is_local(self) -> bool:
        """Whether the set lies on a disk of this machine, or one that is mounted like one."""
        return isinstance(self._place[0], pafs.LocalFileSystem)

    def shown(self, shard: int) -> str:
        """A shard's name in messages."""
        return f"{shown_uri(self.uri)}/{self.info.shards[shard].file}"

    def check_place(self, shard: int, row_group: int, row: int = 0) -> None:
        """Refuse a place that the set does not have.

        Raises:
            DataError: it has none such.
        """
        shards = self.info.shards
        if not 0 <= shard < len(shards) or not 0 <= row_group < len(shards[shard].row_group_rows):
            raise DataError(f"{shown_uri(self.uri)}: has no row group {row_group} in shard {shard}")
        if not 0 <= row < shards[shard].row_group_rows[row_group]:
            raise DataError(f"{self.shown(shard)}: has no row {row} in row group {row_group}")

    def each(self, function: Callable[[S], T], items: Iterable[S]) -> list[T]:
        """Read several things: one after the other from a disk, some at once from afar."""
        items = list(items)
        if len(items) < 2 or self.is_local:
            return [function(item) for item in items]
        return list(self._pool.map(function, items))

    def row_group(self, shard: int, row_group: int) -> pa.Table:
        """Read a row group with its images; the last few are kept.

        Raises:
            DataError: there is no such row group, or it cannot be read.
        """
        self.check_place(shard, row_group)
        read = partial(self.table, shard, [row_group], None)
        return self._groups.get((shard, row_group), read)

    def table(
        self, shard: int, row_groups: Sequence[int], columns: Sequence[str] | None
    ) -> pa.Table:
        """Read row groups of a shard, one after the other in one table.

        Args:
            shard: position in `info.shards`.
            row_groups: positions in that shard.
            columns: those to read, in their order; None: all.

        Raises:
            DataError: it cannot be read, lacks values, or has other columns or rows than the
                version or the description says.
        """
        names = None if columns is None else list(columns)
        with self._parquet(shard) as parquet:
            table = parquet.read_row_groups(list(row_groups), columns=names, use_threads=False)
        expected = sum(self.info.shards[shard].row_group_rows[group] for group in row_groups)
        if table.num_rows != expected:
            raise DataError(
                f"{self.shown(shard)}: {table.num_rows} rows where {INFO_FILE} says {expected}; "
                "the shard does not belong to this data set: prepare it again"
            )
        known = [n for n in shard_schema(self.info.box_type).names if n in table.column_names]
        if lacking := [name for name in known if _has_nulls(table[name])]:
            raise DataError(
                f"{self.shown(shard)}: rows without a value in {', '.join(lacking)}: another "
                "program changed the shard; prepare the data set again"
            )
        return table.select(names) if names else table

    def image_ranges(self, shard: int) -> np.ndarray | None:
        """Where the images of a shard lie.

        Returns:
            (rows of the shard,) `IMAGE_RANGE`; None where its footer does not say.

        Raises:
            DataError: the shard cannot be read, or its footer tells of another file.
        """
        return self._ranges.get(shard, lambda: (self._read_ranges(shard),))[0]

    def _read_ranges(self, shard: int) -> np.ndarray | None:
        info = self.info.shards[shard]
        with self._parquet(shard) as parquet:
            pairs = parquet.metadata.metadata or {}
        value = pairs.get(RANGES_KEY.encode())
        if value is None:
            return None
        try:
            return decode_ranges(value, num_rows=info.num_rows, num_bytes=info.num_bytes)
        except ValueError as error:
            raise DataError(
                f"{self.shown(shard)}: its footer does not say where the images lie ({error}); "
                "the shard was changed after it was written: copy or prepare it again"
            ) from error

    def open_bytes(self, shard: int) -> pa.NativeFile:
        """Open a shard to read any of its bytes.

        Raises:
            DataError: it cannot be opened.
        """
        filesystem, folder = self._place
        path = f"{folder}/{self.info.shards[shard].file}"
        try:
            # Not a memory map: a file that is cut short then is an error, not the process's end.
            return pa.OSFile(path) if self.is_local else filesystem.open_input_file(path)
        except (OSError, pa.ArrowException) as error:
            raise self.unreadable(shard, error) from error

    def unreadable(self, shard: int, error: Exception) -> DataError:
        """The error of a shard that cannot be read."""
        said = " ".join(str(error).split())  # Arrow's messages may have several lines
        return DataError(f"{self.shown(shard)}: cannot be read ({said}); copy or prepare it again")

    @contextmanager
    def _parquet(self, shard: int) -> Iterator[pq.ParquetFile]:
        """The Parquet file of a shard, opened when it is first read, for one thread at a time.

        Raises:
            DataError: it cannot be read, or is of another version or data set.
        """
        with self._locks[shard]:
            try:
                yield self._files.get(shard, partial(self._open_parquet, shard))
            except (OSError, pa.ArrowException) as error:
                raise self.unreadable(shard, error) from error

    def _open_parquet(self, shard: int) -> pq.ParquetFile:
        parquet = pq.ParquetFile(self.open_bytes(shard), pre_buffer=not self.is_local)
        self._check(shard, parquet)
        return parquet

    def _check(self, shard: int, parquet: pq.ParquetFile) -> None:
        """Refuse a shard of another version, or of another data set, when it is opened.

        pyarrow passes over the name of a column that is not there, and reads another type as it
        comes: a training would end in the middle, or learn from what was not annotated.

        Raises:
            DataError: it has other columns or row groups.
        """
        found, expected = parquet.schema_arrow, shard_schema(self.info.box_type)
        if wrong := [text for field in expected if (text := _difference(found, field))]:
            message = (
                f"{self.shown(shard)}: not the columns of this version: {', '.join(wrong)}; "
                "another version or program wrote it: prepare the data set again"
            )
            raise DataError([Fault(OTHER_COLUMNS, message)])
        metadata, said = parquet.metadata, self.info.shards[shard].row_group_rows
        rows = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        if rows != said:
            raise DataError(
                f"{self.shown(shard)}: its row groups hold other numbers of rows than {INFO_FILE} "
                f"says ({sum(rows)} and {sum(said)} in all); the shard does not belong to this "
                "data set: copy or prepare it again"
            )


def _num_bytes(kept: Any) -> int:
    """Of a table or an array in memory; 0 of None."""
    return 0 if kept is None else kept.nbytes


def _difference(schema: pa.Schema, expected: pa.Field) -> str | None:
    """How a column differs from the one expected, in words; None: it does not."""
    places = schema.get_all_field_indices(expected.name)
    if len(places) != 1:
        return f"{expected.name} is {'there twice' if places else 'missing'}"
    found = schema.field(places[0]).type
    # Names of list items are not compared: they differ from program to program.
    same = found.equals(expected.type)
    return None if same else f"{expected.name} is {found}, not {expected.type}"


def _has_nulls(column: pa.ChunkedArray) -> bool:
    """Whether a value of a column, or in its lists, is missing."""
    level = list(column.chunks)
    while level:
        if any(chunk.null_count for chunk in level):
            return True
        level = [chunk.flatten() for chunk in level if pa.types.is_nested(chunk.type)]
    return False
