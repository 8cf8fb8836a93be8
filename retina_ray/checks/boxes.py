"""Data issues in the usable boxes of one image: those that repeat another or get too small.

Shapes: M boxes of an image.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from retina_ray.data.augment.transforms import shortest_edge_size
from retina_ray.data.importers.box_checks import CheckedBoxes
from retina_ray.data.rotated_boxes import scale_rotated, shorter_sides

DUPLICATE_BOX = "duplicate box"
TINY_BOX = "box under a pixel at the training size"

DUPLICATE_IOU = 0.99
_ROWS_AT_ONCE = 512


def tiny_boxes(
    checked: CheckedBoxes,
    size: tuple[int, int],
    *,
    train_size_px: int,
    train_max_size_px: int,
    min_box_size_px: float,
) -> Iterator[tuple[int, str]]:
    """Find boxes that training leaves out because they become too small.

    Args:
        checked: usable boxes of an image.
        size: (height, width) of the image in pixels.
        train_size_px: shorter side in training.
        train_max_size_px: limit of the longer side.
        min_box_size_px: boxes with a side below this are left out.

    Yields:
        Annotation id and message; crowd regions are no targets, and passed over.
    """
    if 0 in size or not len(checked.labels):
        return
    height, width = shortest_edge_size(*size, train_size_px, train_max_size_px)
    factors = np.array([width / size[1], height / size[0]])
    if checked.rotated.size:
        scaled = scale_rotated(checked.rotated, *factors)
        in_file, sides = checked.rotated[:, 2:4], scaled[:, 2:4]
        shorter = shorter_sides(scaled)
    else:
        in_file = checked.boxes[:, 2:] - checked.boxes[:, :2]
        sides = in_file * factors
        shorter = sides.min(axis=1)
    for i in np.flatnonzero((shorter < min_box_size_px) & ~checked.iscrowd):
        message = (
            f"{_short(sides[i, 0])} x {_short(sides[i, 1])} px at {width} x {height}, "
            f"{_short(in_file[i, 0])} x {_short(in_file[i, 1])} px in the file"
        )
        yield int(checked.annotation_id[i]), message


def _short(side: float) -> str:
    """A length with two figures where it is short."""
    return f"{side:.2g}" if side < 10 else f"{side:.0f}"


def repeated_boxes(checked: CheckedBoxes) -> Iterator[tuple[int, str]]:
    """Find boxes of one class on the same place: IoU of `DUPLICATE_IOU` at least.

    Yields:
        Annotation id and message of each box that repeats an earlier one; crowd regions are passed
        over.
    """
    single = np.flatnonzero(~checked.iscrowd)
    for label in np.unique(checked.labels[single]):
        members = single[checked.labels[single] == label]
        boxes = checked.boxes[members]
        rotated = checked.rotated[members] if checked.rotated.size else None
        for later, earlier, iou in _first_matches(boxes, rotated):
            one, other = (int(checked.annotation_id[members[k]]) for k in (later, earlier))
            shown = ", ".join(f"{value:g}" for value in boxes[later])
            message = f"XYXY ({shown}) lies on annotation {other} of the same class, IoU {iou:.3f}"
            yield one, message


def _first_matches(
    boxes: NDArray[np.float64], rotated: NDArray[np.float64] | None
) -> Iterator[tuple[int, int, float]]:
    """Yield (box, earlier box, IoU) for each that repeats one; in slices, for thousands of boxes.

    Rotated ones must agree in their own sides and angle too (a square turned by 90 degrees is left
    out as another box).
    """
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    for start in range(0, len(boxes), _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, len(boxes)))
        low = np.maximum(boxes[rows, None, :2], boxes[None, : rows.stop, :2])
        high = np.minimum(boxes[rows, None, 2:], boxes[None, : rows.stop, 2:])
        inner = np.clip(high - low, 0, None).prod(axis=2)
        iou = inner / (areas[rows, None] + areas[None, : rows.stop] - inner)
        same = np.tril(iou >= DUPLICATE_IOU, k=start - 1)
        if rotated is not None:
            sides = rotated[rows, None, 2:4] / rotated[None, : rows.stop, 2:4]
            turn = rotated[rows, None, 4] - rotated[None, : rows.stop, 4]
            same &= (np.abs(sides - 1) < 1 - DUPLICATE_IOU).all(axis=2)
            same &= np.abs((turn + 90) % 180 - 90) < 1
        for row in np.flatnonzero(same.any(axis=1)):
            first = int(same[row].argmax())
            yield start + int(row), first, float(iou[row, first])
