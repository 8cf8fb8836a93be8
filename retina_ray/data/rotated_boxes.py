"""Rotated boxes in numpy, for writing shards and for augmenting where there is no PyTorch.

A rotated box is (x_center, y_center, width, height, angle): pixels, and degrees counter-clockwise
as the image is looked at, with y pointing down (detectron2's `RotatedBoxes`). The vector along
its width is (cos a, -sin a), the one along its height (sin a, cos a). Shapes: M boxes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]


def are_rotated(boxes: NDArray) -> bool:
    """Whether boxes are (M, 5) with an angle, not (M, 4) XYXY."""
    return boxes.shape[-1] == 5


def enclosing_boxes(boxes: NDArray) -> NDArray[np.float64]:
    """Find the smallest aligned boxes around rotated ones.

    Args:
        boxes: (M, 5).

    Returns:
        (M, 4) float64 XYXY.
    """
    x, y, w, h, angle = _columns(boxes)
    cos, sin = np.abs(np.cos(angle)), np.abs(np.sin(angle))
    dx, dy = (w * cos + h * sin) / 2, (w * sin + h * cos) / 2
    return np.stack([x - dx, y - dy, x + dx, y + dy], axis=1)


def cut_enclosing_boxes(boxes: NDArray, height: int, width: int) -> Boxes:
    """Find the aligned boxes around rotated ones, cut at the border of their image.

    Args:
        boxes: (M, 5) in pixels of the image.
        height: of the image.
        width: of the image.

    Returns:
        (M, 4) float32 XYXY; without an area where a box lies outside the image.
    """
    return np.clip(enclosing_boxes(boxes), 0, [width, height, width, height]).astype(np.float32)


def scale_rotated(boxes: NDArray, scale_x: float, scale_y: float) -> Boxes:
    """Scale rotated boxes with their image, as detectron2's `RotatedBoxes.scale` does.

    Under unequal factors a turned rectangle becomes a parallelogram. The box that stands for it has
    the lengths of the parallelogram's two middle lines, and the direction of the one along its
    height: with factors f and g and angle a, w sqrt((f cos a)^2 + (g sin a)^2), h sqrt((f sin a)^2
    + (g cos a)^2) and atan2(f sin a, g cos a). For multiples of 90 degrees this is exact.

    Args:
        boxes: (M, 5).
        scale_x: factor on horizontal lengths.
        scale_y: factor on vertical lengths.

    Returns:
        (M, 5) float32; under equal factors the angles stay as they are.
    """
    x, y, w, h, angle = _columns(boxes)
    cos, sin = np.cos(angle), np.sin(angle)
    turned = np.asarray(boxes, np.float64).reshape(-1, 5)[:, 4]
    if scale_x != scale_y:
        turned = np.rad2deg(np.arctan2(scale_x * sin, scale_y * cos))
    w = w * np.hypot(scale_x * cos, scale_y * sin)
    h = h * np.hypot(scale_x * sin, scale_y * cos)
    return np.stack([x * scale_x, y * scale_y, w, h, turned], axis=1).astype(np.float32)


def flip_rotated(
    boxes: NDArray, height: int, width: int, *, horizontal: bool, vertical: bool
) -> Boxes:
    """Flip rotated boxes: x becomes W - x or y becomes H - y, and each flip turns the angle over.

    Args:
        boxes: (M, 5) in an image of height x width pixels.
        height: of the image.
        width: of the image.
        horizontal: left becomes right.
        vertical: top becomes bottom.

    Returns:
        (M, 5) float32, as wide and as high as before.
    """
    x, y, w, h, angle = np.asarray(boxes, np.float64).reshape(-1, 5).T
    if horizontal:
        x, angle = width - x, 0 - angle
    if vertical:
        y, angle = height - y, 0 - angle
    return np.stack([x, y, w, h, angle], axis=1).astype(np.float32)


def rotate90_rotated(
    boxes: NDArray, height: int, width: int, quarter_turns: int
) -> NDArray[np.float64]:
    """Turn rotated boxes with their image, counter-clockwise: each quarter adds 90 degrees.

    Args:
        boxes: (M, 5) in an image of height x width pixels.
        height: of the image before.
        width: of the image before.
        quarter_turns: any number; below 0 they are clockwise.

    Returns:
        (M, 5) float64, as wide and as high as before, with angles in [-180, 180); those of boxes
        that are not turned stay as they are.
    """
    x, y, w, h, angle = np.array(boxes, np.float64).reshape(-1, 5).T
    for _ in range(quarter_turns % 4):
        x, y, angle = y, width - x, (angle + 270) % 360 - 180
        height, width = width, height
    return np.stack([x, y, w, h, angle], axis=1)


def least_rotated(boxes: NDArray) -> NDArray[np.float64]:
    """Write the same rectangles with angles in [-45, 45).

    A quarter turn with width and height exchanged, like a half turn, gives the same rectangle.

    Args:
        boxes: (M, 5).

    Returns:
        (M, 5) float64.
    """
    boxes = np.array(boxes, np.float64).reshape(-1, 5)
    quarters = np.floor((boxes[:, 4] + 45) / 90)
    boxes[:, 4] -= 90 * quarters
    odd = quarters % 2 == 1
    boxes[odd, 2:4] = boxes[odd, 3:1:-1]
    return boxes


def shorter_sides(boxes: NDArray) -> NDArray:
    """(M,) the shorter side of each (M, 5) box; NaN where any of its numbers is not finite."""
    finite = np.isfinite(boxes).all(axis=1)
    return np.where(finite, boxes[:, 2:4].min(axis=1), np.nan)


def _columns(boxes: NDArray) -> NDArray[np.float64]:
    """(5, M) float64 with the angle in radians."""
    columns = np.array(boxes, np.float64).reshape(-1, 5).T
    columns[4] = np.deg2rad(columns[4])
    return columns
