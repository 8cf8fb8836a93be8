"""From a decoded image to a resized, flipped one with its boxes.

Boxes are (M, 4) float32 XYXY in pixels; pixel (i, j) covers `[j, j+1) x [i, i+1)`, so resizing
multiplies coordinates and a flip is `W - x`. Or they are (M, 5) rotated boxes, see
`retina_ray.data.rotated_boxes`. Images are (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from retina_ray.data.images.decoding import Pixels
from retina_ray.data.rotated_boxes import (
    are_rotated,
    flip_rotated,
    rotate90_rotated,
    scale_rotated,
)

Boxes = NDArray[np.float32]
Size = tuple[int, int]
Flip = Literal["none", "horizontal", "vertical", "both"]


@dataclass(frozen=True)
class LabeledImage:
    """An image ready for a batch.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes: (M, 4) float32 XYXY in pixels of `image`, or (M, 5) rotated.
        labels: (M,) int32.
    """

    image: Pixels
    boxes: Boxes
    labels: NDArray[np.int32]


def shortest_edge_size(height: int, width: int, size_px: int, max_size_px: int) -> tuple[int, int]:
    """Size at which the shorter side is `size_px`, or the longer `max_size_px` where that is less.

    The rounding is detectron2's (`ResizeShortestEdge`): both sides are scaled in floating point,
    then rounded half up. A side is at least 1 pixel, where detectron2 may give 0.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        size_px: wanted length of the shorter side.
        max_size_px: limit of the longer side.

    Returns:
        (height, width) in pixels.
    """
    scale = size_px * 1.0 / min(height, width)
    new_height, new_width = (
        (size_px * 1.0, scale * width) if height < width else (scale * height, size_px * 1.0)
    )
    longest = max(new_height, new_width)
    if longest > max_size_px:
        scale = max_size_px * 1.0 / longest
        new_height, new_width = new_height * scale, new_width * scale
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def resize_image(image: Pixels, height: int, width: int, out: Pixels | None = None) -> Pixels:
    """Resize bilinearly, without aliasing when shrinking.

    Up to a factor of 2, which is all that is left to do for a JPEG that was decoded at a reduced
    size, the image is first blurred by just so much that blur and interpolation together have the
    width (second moment) of the triangle filter that antialiased bilinear resizing uses. Beyond
    that, areas are averaged; for small factors this would cost three times as much.

    Args:
        image: (H, W, 3) uint8.
        height: of the result, pixels.
        width: of the result, pixels.
        out: (height, width, 3) uint8 to write to, instead of new memory.

    Returns:
        (height, width, 3) uint8; the image itself where nothing changes, else `out` if it is given.
    """
    if image.shape[:2] == (height, width):
        return image
    factors = image.shape[0] / height, image.shape[1] / width
    if max(factors) > 2:
        shrinks = factors[0] * factors[1] > 1
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    else:
        method = cv2.INTER_LINEAR
        taps_y, taps_x = (_taps_before(factor) for factor in factors)
        if len(taps_y) + len(taps_x) > 2:
            image = np.asarray(cv2.sepFilter2D(image, -1, taps_x, taps_y), np.uint8)
    return np.asarray(cv2.resize(image, (width, height), dst=out, interpolation=method), np.uint8)


def _taps_before(factor: float) -> NDArray[np.float64]:
    """The one or three taps to blur with along an axis before shrinking it.

    The triangle filter that is stretched by the factor f has the variance f**2 / 6, linear
    interpolation alone 1 / 6. Taps (a, 1 - 2 a, a) have the variance 2 a, so a = (f**2 - 1) / 12.
    In whole 256ths OpenCV computes with integers, so every machine gets the same pixels.
    """
    side = round(256 * (factor**2 - 1) / 12) if factor > 1 else 0
    return np.array([side, 256 - 2 * side, side] if side else [256]) / 256


def flip_boxes(boxes: Boxes, height: int, width: int, *, horizontal: bool, vertical: bool) -> Boxes:
    """Flip boxes in an image of height x width pixels: x becomes W - x, y becomes H - y.

    Args:
        boxes: (M, 4) XYXY, or (M, 5) rotated.
        height: of the image.
        width: of the image.
        horizontal: left becomes right.
        vertical: top becomes bottom.

    Returns:
        (M, 4) XYXY, `x0 < x1` and `y0 < y1` as before, or (M, 5).
    """
    if are_rotated(boxes):
        return flip_rotated(boxes, height, width, horizontal=horizontal, vertical=vertical)
    flipped = np.array(boxes, np.float32)
    if horizontal:
        flipped[:, 0], flipped[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
    if vertical:
        flipped[:, 1], flipped[:, 3] = height - boxes[:, 3], height - boxes[:, 1]
    return flipped


def rotate90_size(size: Size, quarter_turns: int) -> Size:
    """(height, width) of an image after quarter turns: exchanged by an odd number of them."""
    return (size[1], size[0]) if quarter_turns % 2 else (size[0], size[1])


def rotate90_boxes(
    boxes: NDArray, height: int, width: int, quarter_turns: int
) -> NDArray[np.float64]:
    """Rotate boxes with their image, counter-clockwise: by a quarter, (x, y) becomes (y, W - x).

    Args:
        boxes: (M, 4) XYXY, or (M, 5) rotated.
        height: of the image before.
        width: of the image before.
        quarter_turns: any number; below 0 they are clockwise.

    Returns:
        (M, 4) float64 XYXY in the rotated image, or (M, 5).
    """
    if are_rotated(boxes):
        return rotate90_rotated(boxes, height, width, quarter_turns)
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    for _ in range(quarter_turns % 4):
        x0, y0, x1, y1 = boxes.T
        boxes = np.stack([y0, width - x1, y1, width - x0], axis=1)
        height, width = width, height
    return boxes


def place_boxes(
    boxes: NDArray, source_size: tuple[float, float], target_size: tuple[int, int]
) -> Boxes:
    """Scale boxes with their image, and clip what lies outside.

    Args:
        boxes: (M, 4) XYXY in pixels of the source, or (M, 5) rotated, which are not clipped.
        source_size: (height, width).
        target_size: (height, width).

    Returns:
        (M, 4) float32 XYXY in pixels of the target, or (M, 5).
    """
    height, width = target_size
    scale_x, scale_y = width / source_size[1], height / source_size[0]
    if are_rotated(boxes):
        return scale_rotated(boxes, scale_x, scale_y)
    scaled = boxes.reshape(-1, 4) * np.array([scale_x, scale_y, scale_x, scale_y])
    limits = np.array([width, height, width, height])
    return np.minimum(np.maximum(scaled, 0), limits).astype(np.float32)
