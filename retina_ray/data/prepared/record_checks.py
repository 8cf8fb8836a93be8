"""What every record of a prepared data set must hold to, wherever it comes from.

Needs numpy only: no PyTorch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from typing import Any, TypeGuard

import numpy as np

from retina_ray.data.prepared.schema import BoxType, Category, Record
from retina_ray.errors import DataError, Fault


def is_id(value: Any) -> TypeGuard[int]:
    """Whether a value is an integer that a column of ids can hold: of at most 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def check_categories(categories: Sequence[Category]) -> None:
    """Refuse no categories, and ids or names that are not unique.

    Raises:
        DataError: all of them at once.
    """
    if not categories:
        raise DataError("the data set has no categories")
    faults = []
    for what in ("id", "name"):
        values = [getattr(category, what) for category in categories]
        for value in sorted(value for value, count in Counter(values).items() if count > 1):
            faults.append(
                Fault(f"duplicate category {what}", f"category {what} {value!r} is not unique")
            )
    if faults:
        raise DataError(faults)


def record_faults(
    record: Record,
    *,
    num_classes: int,
    box_type: BoxType,
    image_ids: Set[int],
    annotation_ids: Set[int],
) -> Iterator[Fault]:
    """Yield what breaks the rules: lengths, ids, labels, and boxes of both kinds.

    Args:
        record: that is to be added.
        num_classes: K.
        box_type: of the set.
        image_ids: that were added before.
        annotation_ids: that were added before.
    """

    def fault(kind: str, message: str, annotation: int | None = None) -> Fault:
        return Fault(kind, message, record.file_name, record.image_id, annotation)

    if problem := _rotated_problem(record, box_type):
        yield fault("record", problem)
        return
    sizes = {
        name: len(getattr(record, name))
        for name in ("boxes", "labels", "iscrowd", "area", "annotation_id")
    }
    sizes["bbox"] = len(record.xywh)
    if box_type == "rotated":
        sizes["rotated_boxes"] = len(rotated_boxes_of(record))
    if len(set(sizes.values())) > 1:
        yield fault("record", f"columns of different lengths: {sizes}")
        return
    if record.image_id in image_ids:
        yield fault("duplicate image id", "this id was added before; ids must be unique")
    ids = [int(i) for i in record.annotation_id]
    for i in (int(record.image_id), *ids):
        if not is_id(i):
            yield fault("id out of range", f"id {i} needs more than 64 bits: give it another")
    for i in sorted(i for i, count in Counter(ids).items() if count > 1 or i in annotation_ids):
        yield fault("duplicate annotation id", "this id was added before", i)
    for i, label, box in zip(ids, record.labels, np.asarray(record.boxes), strict=True):
        if not 0 <= label < num_classes:
            yield fault("label out of range", f"label {label} is not in 0..{num_classes - 1}", i)
        x0, y0, x1, y1 = (float(v) for v in box)
        if not (0 <= x0 < x1 <= record.width and 0 <= y0 < y1 <= record.height):
            yield fault(
                "bad box",
                f"XYXY ({x0:g}, {y0:g}, {x1:g}, {y1:g}) is not a box within "
                f"{record.width} x {record.height} pixels",
                i,
            )
    for i, box in zip(ids, rotated_boxes_of(record), strict=False):
        if not (np.isfinite(box).all() and box[2] > 0 and box[3] > 0):
            numbers = ", ".join(f"{value:g}" for value in box)
            yield fault(
                "bad rotated box",
                f"({numbers}) must be finite (x, y, width, height, angle) with sides above 0",
                i,
            )


def rotated_boxes_of(record: Record) -> np.ndarray:
    """(M, 5) float32, as they are stored; none where the record has none."""
    if record.rotated_boxes is None:
        return np.zeros((0, 5), np.float32)
    return np.asarray(record.rotated_boxes, np.float32).reshape(-1, 5)


def _rotated_problem(record: Record, box_type: BoxType) -> str | None:
    """Say what is wrong with a record's rotated boxes as a whole."""
    if record.rotated_boxes is None:
        return None
    if box_type == "aligned":
        return 'has rotated boxes, but the set was begun without box_type="rotated"'
    shape = np.shape(record.rotated_boxes)
    if shape != (0,) and (len(shape) != 2 or shape[1] != 5):
        return f"rotated_boxes of shape {shape}: expected (M, 5)"
    return None
