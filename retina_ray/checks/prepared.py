"""A prepared set under check: is it what its `dataset.json` says, record by record."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import numpy as np

from retina_ray.checks.images import ImageItem
from retina_ray.data.importers.box_checks import CheckedBoxes
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.info import INFO_FILE, DatasetInfo
from retina_ray.data.prepared.record_checks import record_faults
from retina_ray.data.prepared.schema import BoxType, Category, Record, record_from_row, shard_schema
from retina_ray.data.prepared.shard_file import ContentHash
from retina_ray.data.prepared.shard_reader import OTHER_COLUMNS
from retina_ray.errors import DataError, Fault
from retina_ray.storage.uris import open_filesystem

WRONG_RANGES = "shard that misplaces its images"


class PreparedSplit:
    """One prepared set; goes on where a shard is missing or damaged.

    Args:
        uri: folder that holds a `dataset.json`.

    Attributes:
        categories: in the order of the labels.
        num_images: as `dataset.json` says.
        faults: of the set as a whole; complete once all of `items` was taken.

    Raises:
        DataError: there is no such set, or its description cannot be read.
    """

    def __init__(self, uri: str) -> None:
        self.faults: list[Fault] = []
        try:
            dataset = PreparedDataset.open(uri)
        except DataError as error:
            info = _read_info(uri)
            if info is None:
                raise
            self.faults += error.faults
            dataset = PreparedDataset(uri, info)
        self._dataset = dataset
        self._known_bad = {os.path.basename(fault.file or "") for fault in self.faults}
        self.name = dataset.info.split
        self.categories: list[Category] = list(dataset.info.categories)
        self.num_images = dataset.num_images
        self.is_local = "://" not in dataset.uri
        self._image_ids: set[int] = set()
        self._annotation_ids: set[int] = set()
        self._counts = np.zeros(len(self.categories), np.int64)
        self._num_crowd = 0
        self._misleading: set[int] = set()

    def items(self) -> Iterator[ImageItem]:
        """Yield every image that can be reached; then judge the whole against its description.

        Row groups are read one after the other: the fingerprint depends on their order.
        """
        info = self._dataset.info
        content = ContentHash(info.categories, info.box_type)
        whole = True
        for shard, shard_info in enumerate(info.shards):
            for group in range(len(shard_info.row_group_rows)):
                try:
                    table = self._dataset.read_row_group(shard, group)
                    rows = table.select(shard_schema(info.box_type).names).to_pylist()
                    records = [record_from_row(row) for row in rows]
                except DataError as error:
                    whole = False
                    if shard_info.file not in self._known_bad:
                        left = sum(shard_info.row_group_rows[group:])
                        kind = error.faults[0].kind
                        self.faults.append(
                            Fault(
                                kind if kind == OTHER_COLUMNS else "unreadable shard",
                                f"{error}; {left} images were not checked",
                            )
                        )
                    break
                self._check_ranges(shard, group, records)
                content.add_group(records)
                for record in records:
                    yield self._item(record)
        if not whole:
            return
        if content.hexdigest != info.fingerprint:
            message = (
                f"the content has {content.hexdigest[:12]}..., {INFO_FILE} says "
                f"{info.fingerprint[:12]}..."
            )
            self.faults.append(Fault("fingerprint differs", message, INFO_FILE))
        self.faults += self._wrong_counts()

    def _check_ranges(self, shard: int, group: int, records: list[Record]) -> None:
        """Judge what a shard says of where its images lie; it is named once."""
        if shard in self._misleading:
            return
        try:
            self._dataset.check_images(shard, group, [record.image for record in records])
        except DataError as error:
            self._misleading.add(shard)
            self.faults.append(Fault(WRONG_RANGES, str(error)))

    def _item(self, record: Record) -> ImageItem:
        """Judge a record by the rules of a set; its pixels and boxes are looked at later."""
        info = self._dataset.info
        faults = list(
            record_faults(
                record,
                num_classes=len(self.categories),
                box_type=info.box_type,
                image_ids=self._image_ids,
                annotation_ids=self._annotation_ids,
            )
        )
        self._image_ids.add(record.image_id)
        self._annotation_ids.update(record.annotation_id.tolist())
        labels = record.labels[~record.iscrowd] if len(record.labels) == len(record.iscrowd) else []
        known = [label for label in labels if 0 <= label < len(self._counts)]
        self._counts += np.bincount(np.array(known, np.int64), minlength=len(self._counts))
        self._num_crowd += int(record.iscrowd.sum())
        return ImageItem(
            file_name=record.file_name,
            image_id=record.image_id,
            height=record.height,
            width=record.width,
            read=partial(_image_of, record),
            boxes=partial(_usable_boxes, record, faults, info.box_type),
            apply_orientation=False,
        )

    def _wrong_counts(self) -> Iterator[Fault]:
        """Compare the numbers of the description with those found."""
        info = self._dataset.info
        found = {
            "num_images": (info.num_images, len(self._image_ids)),
            "num_boxes": (info.num_boxes, int(self._counts.sum())),
            "num_crowd": (info.num_crowd, self._num_crowd),
        }
        for category, count in zip(self.categories, self._counts.tolist(), strict=True):
            said = info.class_counts.get(category.name, 0)
            found[f"class_counts of {category.name!r}"] = (said, count)
        for what, (said, count) in found.items():
            if said != count:
                message = f"{what} is {said} in {INFO_FILE}, the shards hold {count}"
                yield Fault("counts differ", message, INFO_FILE)


def _read_info(uri: str) -> DatasetInfo | None:
    """Read the description of a set that could not be opened; None where there is none.

    Raises:
        DataError: it is there and cannot be read.
    """
    filesystem, path = open_filesystem(uri)
    if not filesystem.get_file_info(f"{path}/{INFO_FILE}").is_file:
        return None
    with filesystem.open_input_stream(f"{path}/{INFO_FILE}") as stream:
        return DatasetInfo.from_json(stream.readall(), uri=uri)


def _image_of(record: Record) -> bytes:
    return record.image


def _usable_boxes(
    record: Record, faults: list[Fault], box_type: BoxType, height: int, width: int
) -> tuple[CheckedBoxes, list[Fault]]:
    """The boxes of a record that no fault names; none where its columns do not fit each other."""
    bad = {fault.annotation_id for fault in faults}
    lengths = {len(record.labels), len(record.boxes), len(record.iscrowd), len(record.xywh)}
    keep = np.zeros(0, np.int64)
    if len(lengths | {len(record.area), len(record.annotation_id)}) == 1:
        ids = record.annotation_id.tolist()
        keep = np.array([i for i, id_ in enumerate(ids) if id_ not in bad], np.int64)
    rotated = np.zeros((0, 5))
    if box_type == "rotated" and record.rotated_boxes is not None:
        if len(record.rotated_boxes) == len(record.labels):
            rotated = record.rotated_boxes.astype(np.float64)[keep]
    checked = CheckedBoxes(
        boxes=record.boxes.astype(np.float64)[keep],
        bbox=record.xywh[keep],
        labels=record.labels[keep],
        iscrowd=record.iscrowd[keep],
        area=record.area[keep],
        annotation_id=record.annotation_id[keep],
        rotated=rotated,
    )
    return checked, faults
