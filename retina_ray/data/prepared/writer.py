"""Writing a prepared data set: shards first, `dataset.json` last.

Needs numpy and pyarrow only: no PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, get_args

import numpy as np

from retina_ray.data.prepared.completeness import begin_dataset, clean_up, delete_dataset
from retina_ray.data.prepared.info import INFO_FILE, DatasetInfo
from retina_ray.data.prepared.record_checks import check_categories, record_faults
from retina_ray.data.prepared.schema import BoxType, Category, Record
from retina_ray.data.prepared.shard_file import (
    ShardContent,
    ShardFile,
    fingerprint,
    shard_name,
)
from retina_ray.errors import DataError
from retina_ray.storage.files import write_whole
from retina_ray.storage.uris import open_filesystem, shown_uri


def check_group_sizes(*, rows_per_group: int, rows_per_shard: int) -> None:
    """Refuse row groups and shards of no rows.

    Raises:
        ValueError: a number is below 1.
    """
    if rows_per_group < 1 or rows_per_shard < 1:
        raise ValueError(
            f"rows_per_group = {rows_per_group} and rows_per_shard = {rows_per_shard} "
            "must be at least 1"
        )


def finish_dataset(
    uri: str | os.PathLike[str],
    *,
    name: str,
    split: str,
    source: str,
    categories: Sequence[Category],
    contents: Sequence[ShardContent],
    report: Mapping[str, Any],
    box_type: BoxType,
) -> None:
    """Write `dataset.json`, which makes the shards a data set, and clean up.

    Args:
        uri: folder of the set.
        name: of the data set.
        split: e.g. "train".
        source: where it came from, in words.
        categories: in the order of the labels.
        contents: of the shards, in order.
        report: what the import changed.
        box_type: of the set.

    Raises:
        DataError: the set is empty or has no box, or a shard is not where it was written to.
    """
    filesystem, path = open_filesystem(uri)
    num_images = sum(content.info.num_rows for content in contents)
    counts = np.zeros(len(categories), np.int64)
    for content in contents:
        counts += np.asarray(content.class_counts, np.int64)
    if not num_images:
        raise DataError(f"{shown_uri(uri)}: the data set is empty: no image was left to write")
    if not counts.sum():
        raise DataError(
            f"{shown_uri(uri)}: none of the {num_images} images has a box that is not a crowd "
            "region; there is nothing to train on or to evaluate"
        )
    files = filesystem.get_file_info([f"{path}/{content.info.file}" for content in contents])
    lost = [
        content.info.file
        for content, file in zip(contents, files, strict=True)
        if file.size != content.info.num_bytes
    ]
    if lost:
        raise DataError(
            f"{shown_uri(uri)}: {len(lost)} shards that were written are not there "
            f"({', '.join(lost[:3])}): several machines need a folder that all of them see"
        )
    names = [category.name for category in categories]
    info = DatasetInfo(
        name=name,
        split=split,
        source=source,
        categories=tuple(categories),
        num_images=num_images,
        num_boxes=int(counts.sum()),
        num_crowd=sum(content.num_crowd for content in contents),
        class_counts=dict(zip(names, counts.tolist(), strict=True)),
        shards=tuple(content.info for content in contents),
        fingerprint=fingerprint(categories, contents),
        report=report,
        box_type=box_type,
    )
    write_whole(filesystem, f"{path}/{INFO_FILE}", info.to_json().encode())
    clean_up(filesystem, path, keep=[shard.file for shard in info.shards])


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
        check_group_sizes(rows_per_group=rows_per_group, rows_per_shard=rows_per_shard)
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
        self._file: ShardFile | None = None
        self._contents: list[ShardContent] = []
        self._image_ids: set[int] = set()
        self._annotation_ids: set[int] = set()

    def __enter__(self) -> ShardWriter:
        begin_dataset(self.uri, overwrite=self._overwrite)
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
        if self._file is None:
            self._file = ShardFile(
                self._filesystem,
                self._path,
                shard_name(len(self._contents)),
                num_classes=len(self._categories),
                box_type=self._box_type,
                rows_per_group=self._rows_per_group,
            )
        self._file.add(record)
        if self._file.num_rows == self._rows_per_shard:
            self._close_shard()

    def _close_shard(self) -> None:
        """Finish the open file and note what is in it."""
        if self._file is not None:
            self._contents.append(self._file.close())
            self._file = None

    def _finish(self) -> None:
        """Write what is left, and `dataset.json` last."""
        self._close_shard()
        finish_dataset(
            self.uri,
            name=self._name,
            split=self._split,
            source=self._source,
            categories=self._categories,
            contents=self._contents,
            report=self.report,
            box_type=self._box_type,
        )

    def _abort(self) -> None:
        """Leave nothing that could be taken for a data set."""
        if self._file is not None:
            self._file.abort()
            self._file = None
        delete_dataset(self.uri)
