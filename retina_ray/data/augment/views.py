"""Which part of an image is shown, how large and which way up.

A view is drawn from numbers alone, before anything is decoded. So a JPEG is decoded only as large
as its view needs, and only the pixels that will be seen are resized.

Rectangles are (x0, y0, x1, y1) in pixels, sizes (height, width). M boxes of an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from retina_ray.data.augment.crops import Rectangle, are_visible
from retina_ray.data.augment.transforms import (
    LabeledImage,
    flip_boxes,
    place_boxes,
    resize_image,
    rotate90_boxes,
    rotate90_size,
)
from retina_ray.data.images.decoding import Pixels
from retina_ray.data.rotated_boxes import are_rotated


@dataclass(frozen=True)
class LazyImage:
    """An image that is not decoded yet, with its boxes.

    Attributes:
        decode: takes the length in pixels that the shorter side of the whole image must keep, and
            returns (H, W, 3) uint8 RGB of this size, or smaller by 1/2, 1/4 or 1/8 (see
            `retina_ray.data.images.decoding.decode_image`). May raise DecodeError.
        size: (height, width) that the boxes refer to.
        boxes: (M, 4) float32 XYXY in pixels, or (M, 5) rotated.
        labels: (M,) int32.
    """

    decode: Callable[[int], Pixels]
    size: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int32]


@dataclass(frozen=True)
class View:
    """A part of an image. It is rotated, cropped, resized, cut again and flipped, in this order.

    Attributes:
        quarter_turns: counter-clockwise, 0 to 3.
        crop: of the rotated image, in its pixels.
        scaled_size: (height, width) to which the crop is resized.
        window: of the resized crop, in its pixels: what is shown of it.
    """

    quarter_turns: int
    crop: Rectangle
    scaled_size: tuple[int, int]
    window: Rectangle
    horizontal: bool
    vertical: bool

    @classmethod
    def of_crop(
        cls, crop: Rectangle, *, quarter_turns: int, horizontal: bool, vertical: bool
    ) -> View:
        """Make the view of a crop in its own size."""
        x0, y0, x1, y1 = crop
        size, window = (y1 - y0, x1 - x0), (0, 0, x1 - x0, y1 - y0)
        return cls(quarter_turns, crop, size, window, horizontal, vertical)

    def resized(self, scaled_size: tuple[int, int], window: Rectangle | None = None) -> View:
        """Make the same view in another size; all of the crop where no window is given."""
        if window is None:
            window = (0, 0, scaled_size[1], scaled_size[0])
        return replace(self, scaled_size=scaled_size, window=window)

    @property
    def crop_size(self) -> tuple[int, int]:
        """(height, width) of the crop, in pixels of the source."""
        x0, y0, x1, y1 = self.crop
        return y1 - y0, x1 - x0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what is shown; a side is 0 where nothing is."""
        x0, y0, x1, y1 = self.window
        return y1 - y0, x1 - x0

    def min_shorter_side(self, source_size: tuple[int, int]) -> int:
        """Length that the image's shorter side must have, lest the view be enlarged from less."""
        height, width = rotate90_size(source_size, self.quarter_turns)
        x0, y0, x1, y1 = self.crop
        sides = height * self.scaled_size[0] / (y1 - y0), width * self.scaled_size[1] / (x1 - x0)
        return max(1, math.ceil(min(sides)))

    def part_of(self, rotated: tuple[int, int], decoded: tuple[int, int]) -> Rectangle:
        """Find the shown part in whole pixels of the decoded image, one pixel at least.

        Args:
            rotated: (height, width) that boxes and crop refer to, after rotation.
            decoded: (height, width) of the decoded image, after rotation.

        Returns:
            The rectangle whose borders are nearest to those of the view.
        """
        borders = []
        for axis, side in enumerate((1, 0)):  # x with widths, y with heights
            start, end = self.crop[axis], self.crop[axis + 2]
            factor = (end - start) / self.scaled_size[side]
            low, high = (start + self.window[i] * factor for i in (axis, axis + 2))
            pixels = decoded[side] / rotated[side]
            first = min(math.floor(low * pixels + 0.5), decoded[side] - 1)
            last = min(math.floor(high * pixels + 0.5), decoded[side])
            borders.append((first, max(first + 1, last)))
        (x0, x1), (y0, y1) = borders
        return x0, y0, x1, y1


def scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Multiply both sides, rounding half up; a side is at least 1 pixel."""
    height, width = (max(1, math.floor(side * factor + 0.5)) for side in size)
    return height, width


def show(
    source: LazyImage, view: View, *, min_visible: float, out: Pixels | None = None
) -> LabeledImage:
    """Decode an image and make the view of it, with its boxes.

    Boxes are cut where the view ends, and dropped where less than `min_visible` of their area is
    left. Rotated ones are not cut: they stay where their centre is seen, and as much of the
    rectangle around them.

    The view's borders are moved to the nearest borders of pixels, and the boxes with them.

    Args:
        source: the image.
        view: of it; shows at least one pixel.
        min_visible: share of a box's area inside the image.
        out: uint8 to write the image to where it has its size; a promise of nothing: the sample
            may hold other memory all the same.

    Returns:
        An image of `view.size`, with boxes in its pixels.

    Raises:
        DecodeError: of `source.decode`.
    """
    pixels = source.decode(view.min_shorter_side(source.size))
    rotated = rotate90_size(source.size, view.quarter_turns)
    decoded = rotate90_size(pixels.shape[:2], view.quarter_turns)
    part = view.part_of(rotated, decoded)
    if out is not None and out.shape[:2] != view.size:
        out = None
    image = _shown_pixels(pixels, view, part, decoded, out)
    boxes, labels = source.boxes, np.asarray(source.labels, np.int32)
    if view.quarter_turns:
        boxes = rotate90_boxes(boxes, *source.size, view.quarter_turns)
    if part != (0, 0, decoded[1], decoded[0]):
        # Whole pixels of the source wherever it was decoded whole.
        sides = np.array([rotated[1], rotated[0]] * 2)
        rectangle = np.array(part) * sides / np.array([decoded[1], decoded[0]] * 2)
        keep = are_visible(boxes, rotated, rectangle, min_visible)
        boxes, labels = _moved(boxes[keep], -rectangle[0], -rectangle[1]), labels[keep]
        rotated = (rectangle[3] - rectangle[1], rectangle[2] - rectangle[0])
    boxes = place_boxes(boxes, rotated, view.size)
    boxes = flip_boxes(boxes, *view.size, horizontal=view.horizontal, vertical=view.vertical)
    return LabeledImage(image, boxes, labels)


def _shown_pixels(
    pixels: Pixels,
    view: View,
    part: Rectangle,
    decoded: tuple[int, int],
    out: Pixels | None,
) -> Pixels:
    """Cut, resize, rotate and flip: the largest step first makes the image small.

    Written to `out` by the first step that can; OpenCV flips it in place.
    """
    turns = view.quarter_turns
    x0, y0, x1, y1 = part
    if turns:
        x0, y0, x1, y1 = rotate90_boxes(np.array([part]), *decoded, -turns)[0].astype(int).tolist()
    resized = rotate90_size(view.size, turns)
    image = resize_image(pixels[y0:y1, x0:x1], *resized, None if turns else out)
    if turns:
        codes = cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE
        image = np.asarray(cv2.rotate(image, codes[turns - 1], dst=out), np.uint8)
    if view.horizontal or view.vertical:
        code = -1 if view.horizontal and view.vertical else int(view.horizontal)
        image = np.asarray(cv2.flip(image, code, dst=out), np.uint8)
    return image


def _moved(boxes: NDArray, x: float, y: float) -> NDArray[np.float64]:
    """Move boxes to the right and down."""
    return boxes + np.array([x, y, 0, 0, 0] if are_rotated(boxes) else [x, y, x, y], np.float64)
