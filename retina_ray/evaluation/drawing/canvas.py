"""Frames and labels on an enlarged copy of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from retina_ray.ops.rotated import rotated_corners

Colour = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)
DARK: Colour = (24, 24, 24)
_BACKGROUND: Colour = (245, 245, 245)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_MIN_SIDE_PX = 384  # the longer side of a drawing: smaller images are enlarged to it
_FONT_SCALE = 0.42
_FONT_SIDE_PX = 640  # text and lines grow with the drawing from this size on


@dataclass(frozen=True)
class Canvas:
    """What is drawn on: pixels (H, W, 3), uint8 RGB."""

    pixels: np.ndarray
    factor: int  # pixels of the canvas for one of the image
    size: float  # of letters and lines, 1 on a canvas of 640 pixels or less

    @classmethod
    def on(cls, image: np.ndarray) -> Canvas:
        """A copy of an image (H, W, 3), enlarged by a whole factor to at least 384 pixels."""
        factor = max(1, math.ceil(_MIN_SIDE_PX / max(image.shape[:2])))
        canvas = np.ascontiguousarray(image).copy()
        if factor > 1:
            canvas = cv2.resize(
                canvas, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC
            ).reshape(image.shape[0] * factor, image.shape[1] * factor, 3)
        return cls(canvas, factor, max(1.0, max(canvas.shape[:2]) / _FONT_SIDE_PX))

    def corners(self, box: np.ndarray) -> np.ndarray | None:
        """(4, 2) corner pixels on the canvas, clockwise; None for a box that cannot be drawn.

        An aligned box that reaches beyond the canvas is drawn along its border, a rotated one is
        drawn as far as it can be seen.
        """
        if not np.isfinite(box).all():
            return None
        height, width = self.pixels.shape[:2]
        if len(box) == 5:
            corners = rotated_corners(torch.as_tensor(box, dtype=torch.float64)).numpy()
            far = 4 * max(height, width)  # OpenCV takes no numbers of any size
            pixels = np.clip(corners * self.factor - 0.5, -far, far)
            return pixels.round().astype(np.int32)
        x0, y0, x1, y1 = (np.clip(box, -1e6, 1e6) * self.factor).round().astype(int).tolist()
        x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
        x1, y1 = min(max(x1 - 1, 0), width - 1), min(max(y1 - 1, 0), height - 1)
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.int32)

    def solid(self, box: np.ndarray, colour: Colour) -> None:
        """A solid frame."""
        if (corners := self.corners(box)) is not None:
            self._frame(box, corners, colour, round(2 * self.size))

    def dashed(self, box: np.ndarray, colour: Colour) -> None:
        """A dashed frame on a dark one, to be seen on light and on dark images."""
        if (corners := self.corners(box)) is None:
            return
        thickness, dash = round(self.size), round(6 * self.size)
        self._frame(box, corners, DARK, thickness)
        for start, end in ((0, 1), (3, 2), (0, 3), (1, 2)):
            way = (corners[end] - corners[start]).astype(float)
            length = max(float(np.hypot(*way)), 1.0)
            for at in np.arange(0, length + 1, 2 * dash):
                one, other = (
                    (corners[start] + way * min(part / length, 1)).round().astype(int).tolist()
                    for part in (at, at + dash)
                )
                cv2.line(self.pixels, one, other, colour, thickness)

    def _frame(self, box: np.ndarray, corners: np.ndarray, colour: Colour, thickness: int) -> None:
        smooth = cv2.LINE_AA if len(box) == 5 else cv2.LINE_8
        cv2.polylines(self.pixels, [corners], True, colour, thickness, smooth)

    def label(self, box: np.ndarray, text: str, colour: Colour, *, below: bool) -> None:
        """Text on a filled strip above or below a box, moved inside where there is no room."""
        if (corners := self.corners(box)) is None:
            return
        scale, thickness = _FONT_SCALE * self.size, max(1, round(self.size))
        (width, height), baseline = cv2.getTextSize(text, _FONT, scale, thickness)
        strip, room = height + baseline + 2, np.array(self.pixels.shape[:2])
        x, y = corners[corners[:, 1].argmax() if below else corners[:, 1].argmin()].tolist()
        # At the left end of an aligned box's edge, about the outermost corner of a rotated one.
        left = x - width // 2 if len(box) == 5 else int(corners[:, 0].min())
        top = y + 1 if below else y - strip
        top, left = np.clip((top, left), 0, np.maximum(room - (strip, width + 4), 0)).tolist()
        cv2.rectangle(self.pixels, (left, top), (left + width + 4, top + strip), colour, -1)
        ink = DARK if sum(colour) > 330 else WHITE
        origin = (left + 2, top + height + 2)
        cv2.putText(self.pixels, text, origin, _FONT, scale, ink, thickness, cv2.LINE_AA)

    def with_legend(self, text: str) -> np.ndarray:
        """The canvas with a line of text below it, in letters that fit its width."""
        width = self.pixels.shape[1]
        (full, _), _ = cv2.getTextSize(text, _FONT, 1.0, 1)
        scale = min(_FONT_SCALE * self.size, max(width - 8, 1) / full)
        strip = round(20 * self.size)
        legend = np.full((strip, width, 3), _BACKGROUND, np.uint8)
        origin = (4, round(0.7 * strip))
        cv2.putText(legend, text, origin, _FONT, scale, DARK, 1, cv2.LINE_AA)
        return np.concatenate([self.pixels, legend])
