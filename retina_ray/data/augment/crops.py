"""Crops and windows: which rectangle of an image is kept, and which boxes with it.

Rectangles are (x0, y0, x1, y1) in pixels, sizes (height, width). M boxes of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retina_ray.data.rotated_boxes import are_rotated, enclosing_boxes

Rectangle = tuple[int, int, int, int]

CROP_TRIES = 50
"""Rectangles that are tried before an image stays whole (as in SSD's code)."""
_WIDEST = 2.0  # the aspect ratio of a crop lies in [1/2, 2], as in SSD
_ROUNDING = 1e-6  # a share of an area counts as reached within this


def draw_crop(
    rng: np.random.Generator,
    size: tuple[int, int],
    boxes: NDArray,
    *,
    min_ious: Sequence[float],
    min_scale: float,
    min_visible: float,
) -> Rectangle:
    """Draw a crop that keeps a smallest IoU with some box (SSD, arXiv:1512.02325, section 2.2).

    Sides are drawn uniformly between `min_scale` and all of the image's, then the place. Of
    `CROP_TRIES` rectangles the first is taken that is at most twice as long as wide and whose IoU
    with some box reaches the one drawn; with no box, the first of that form.

    Args:
        rng: for the crops of this image.
        size: (height, width) of the image.
        boxes: (M, 4) XYXY or (M, 5) rotated, for which the rectangles around them stand in.
        min_ious: one of them is drawn.
        min_scale: shortest side of the crop as a share of the image's.
        min_visible: the box whose IoU counts must also keep this share of its area.

    Returns:
        The crop, in whole pixels; all of the image where none was found.
    """
    height, width = size
    min_iou = min_ious[int(rng.integers(len(min_ious)))]
    draws = rng.random((CROP_TRIES, 4))
    sides = np.array([width, height])
    lengths = np.maximum(1, np.rint(sides * (min_scale + (1 - min_scale) * draws[:, :2])))
    starts = np.floor((sides - lengths + 1) * draws[:, 2:])
    crops = np.concatenate([starts, starts + lengths], axis=1)  # (CROP_TRIES, 4)
    ratios = lengths[:, 0] / lengths[:, 1]
    good = (ratios >= 1 / _WIDEST) & (ratios <= _WIDEST)
    inside = _inside(boxes, size)
    if len(inside):
        shared = _shared_areas(inside[None], crops[:, None])  # (CROP_TRIES, M)
        areas = _areas(inside)
        near = shared >= min_iou * (areas + _areas(crops)[:, None] - shared)
        kept = shared >= min_visible * areas * (1 - _ROUNDING)
        good &= (near & kept & (shared > 0)).any(axis=1)
    if not good.any():
        return 0, 0, width, height
    x0, y0, x1, y1 = crops[good.argmax()].astype(int).tolist()
    return x0, y0, x1, y1


def draw_window(
    rng: np.random.Generator, scaled_size: tuple[int, int], canvas: tuple[int, int]
) -> Rectangle:
    """Draw the place of a window on an image that may be larger or smaller than its canvas.

    Args:
        rng: two numbers are drawn.
        scaled_size: (height, width) of the image.
        canvas: (height, width) that it is to fill.

    Returns:
        At most as large as the canvas, anywhere on the image.
    """
    borders = []
    for side, room, draw in zip(scaled_size, canvas, rng.random(2), strict=True):
        start = math.floor(max(0, side - room + 1) * draw)
        borders.append((start, start + min(side, room)))
    (y0, y1), (x0, x1) = borders
    return x0, y0, x1, y1


def corner_window(
    scaled_size: tuple[int, int], room: tuple[int, int], *, right: bool, bottom: bool
) -> Rectangle:
    """Make the window that starts in a corner of an image and is as large as there is room.

    Args:
        scaled_size: (height, width) of the image.
        room: (height, width).
        right: the corner is at the right.
        bottom: the corner is at the bottom.

    Returns:
        The window, in pixels of the image.
    """
    height, width = min(scaled_size[0], room[0]), min(scaled_size[1], room[1])
    x0 = scaled_size[1] - width if right else 0
    y0 = scaled_size[0] - height if bottom else 0
    return x0, y0, x0 + width, y0 + height


def are_visible(
    boxes: NDArray, size: tuple[int, int], rectangle: NDArray, min_visible: float
) -> NDArray[np.bool_]:
    """Find the boxes of which enough lies in a rectangle.

    Args:
        boxes: (M, 4) XYXY, or (M, 5) rotated: of those the rectangles around them count, and their
            centres must be inside, too.
        size: (height, width) of the image; what a box has outside does not count.
        rectangle: (4,) XYXY.
        min_visible: share of the area that must lie inside; something always must.

    Returns:
        (M,) flags.
    """
    inside = _inside(boxes, size)
    shared = _shared_areas(inside, rectangle)
    keep = (shared >= min_visible * _areas(inside) * (1 - _ROUNDING)) & (shared > 0)
    if are_rotated(boxes):
        centres = boxes[:, :2]
        keep &= ((centres >= rectangle[:2]) & (centres <= rectangle[2:])).all(axis=1)
    return keep


def _inside(boxes: NDArray, size: tuple[int, int]) -> NDArray[np.float64]:
    """(M, 4) XYXY: the boxes, or those around rotated ones, cut at the image's border."""
    aligned = enclosing_boxes(boxes) if are_rotated(boxes) else boxes.astype(np.float64)
    return np.clip(aligned, 0, [size[1], size[0]] * 2)


def _areas(boxes: NDArray) -> NDArray[np.float64]:
    """Areas of (..., 4) XYXY."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _shared_areas(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    """Areas that (..., 4) XYXY share with others; NaN where a box has one."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return np.maximum(sides, 0).prod(axis=-1)
