"""Pictures of true and predicted boxes.

True boxes are dashed and white, with their class below them; predicted boxes are solid, in the
colour of their class, with class and score above them.

Shapes: H and W pixels, M true boxes, D detections, B numbers that make a box. Boxes are XYXY in
pixels of the image given, or rotated: (x_center, y_center, width, height, angle).
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from retina_ray.ops.rotated.boxes import rotated_corners
from retina_ray.structures import Detections

Colour = tuple[int, int, int]

_WHITE: Colour = (255, 255, 255)
_DARK: Colour = (24, 24, 24)
_BACKGROUND: Colour = (245, 245, 245)
# Okabe and Ito's colours, told apart by the colour-blind too; black is left out.
_PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_MIN_SIDE_PX = 384  # the longer side of a picture: smaller images are enlarged to it
_FONT_SCALE = 0.42
_FONT_SIDE_PX = 640  # text and lines grow with the picture from this size on


@dataclass(frozen=True)
class Picture:
    """An image with what is in it and what was found in it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        truth_boxes: (M, B), array or tensor.
        truth_labels: (M,) 0 to K-1, array or tensor.
        detections: of the same image, in the same pixels.
        class_names: K names.
        caption: what identifies the image, e.g. its file name.
        score_threshold: detections below it are not drawn.
    """

    image: np.ndarray
    truth_boxes: Any
    truth_labels: Any
    detections: Detections
    class_names: Sequence[str]
    caption: str = ""
    score_threshold: float = 0.3

    def draw(self) -> np.ndarray:
        """The image with both kinds of boxes and a legend; (H', W', 3) uint8 RGB."""
        return draw_boxes(
            self.image,
            truth_boxes=self.truth_boxes,
            truth_labels=self.truth_labels,
            detections=self.detections,
            class_names=self.class_names,
            score_threshold=self.score_threshold,
            legend=True,
        )


def draw_boxes(
    image: np.ndarray,
    *,
    class_names: Sequence[str],
    truth_boxes: Any = (),
    truth_labels: Any = (),
    detections: Detections | None = None,
    score_threshold: float = 0.3,
    legend: bool = False,
) -> np.ndarray:
    """Draw true and predicted boxes on a copy of an image.

    Args:
        image: (H, W, 3) uint8 RGB. Images with a longer side below 384 pixels are enlarged by a
            whole factor, so that lines and letters stay legible.
        class_names: K names; a label beyond them is drawn as its number.
        truth_boxes: (M, B) in pixels of `image`, array or tensor.
        truth_labels: (M,) labels, array or tensor.
        detections: in pixels of `image`.
        score_threshold: detections below it are not drawn.
        legend: add a line below the image that says what is drawn, and how many.

    Returns:
        (H', W', 3) uint8 RGB, a new array. Boxes that are not finite are left out.

    Raises:
        ValueError: the image is not (H, W, 3) uint8 with at least one pixel, or boxes and labels
            differ in number.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(
            f"image: expected (H, W, 3) uint8 RGB, got shape {image.shape}, {image.dtype}"
        )
    truth_boxes, truth_labels = _box_array(truth_boxes), _array(truth_labels).ravel()
    if len(truth_boxes) != len(truth_labels):
        raise ValueError(f"{len(truth_boxes)} true boxes, but {len(truth_labels)} labels")
    found_boxes, scores, found_labels = _confident(detections, score_threshold)
    factor = math.ceil(_MIN_SIDE_PX / max(image.shape[:2]))
    pen = _Pen.on(image, factor=max(1, factor))
    for box in truth_boxes:
        pen.dashed(box, _WHITE)
    # The best detection last, so that it lies on top.
    found = list(zip(found_boxes, scores, found_labels, strict=True))[::-1]
    for box, _, label in found:
        pen.solid(box, _colour(label))
    for box, label in zip(truth_boxes, truth_labels, strict=True):
        pen.label(box, _name(class_names, label), _DARK, below=True)
    for box, score, label in found:
        pen.label(box, f"{_name(class_names, label)} {score:.2f}", _colour(label), below=False)
    if not legend:
        return pen.canvas
    threshold = f"score at least {score_threshold:g}"
    return pen.with_legend(
        f"dashed: {len(truth_boxes)} true   solid: {len(found)} found ({threshold})"
    )


def contact_sheet(
    images: Sequence[np.ndarray], *, num_columns: int | None = None, cell_px: int = 640
) -> np.ndarray:
    """Lay pictures out in a grid, row by row.

    Args:
        images: (H, W, 3) uint8 RGB each, sizes may differ.
        num_columns: null takes as many as make the sheet about square.
        cell_px: larger pictures are shrunk until their longer side is this.

    Raises:
        ValueError: no images.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    cells = [_shrink(image, cell_px) for image in images]
    num_columns = min(num_columns or math.ceil(math.sqrt(len(cells))), len(cells))
    num_rows = math.ceil(len(cells) / num_columns)
    gap = 8
    height = max(cell.shape[0] for cell in cells) + gap
    width = max(cell.shape[1] for cell in cells) + gap
    sheet = np.full((num_rows * height + gap, num_columns * width + gap, 3), 245, np.uint8)
    for i, cell in enumerate(cells):
        h, w = cell.shape[:2]
        y = gap + i // num_columns * height + (height - gap - h) // 2
        x = gap + i % num_columns * width + (width - gap - w) // 2
        sheet[y : y + h, x : x + w] = cell
    return sheet


def write_png(path: str | Path, image: np.ndarray) -> Path:
    """Write an (H, W, 3) uint8 RGB picture as a PNG; its folder is made.

    Raises:
        OSError: it cannot be written there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes())
    return path


@dataclass(frozen=True)
class _Pen:
    """A canvas, what its pixels are in pixels of the image, and how thick to draw on it."""

    canvas: np.ndarray
    factor: int
    size: float

    @classmethod
    def on(cls, image: np.ndarray, *, factor: int) -> _Pen:
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
        height, width = self.canvas.shape[:2]
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
        if (corners := self.corners(box)) is not None:
            self._frame(box, corners, colour, round(2 * self.size))

    def dashed(self, box: np.ndarray, colour: Colour) -> None:
        """A dashed frame on a dark one, to be seen on light and on dark images."""
        if (corners := self.corners(box)) is None:
            return
        thickness, dash = round(self.size), round(6 * self.size)
        self._frame(box, corners, _DARK, thickness)
        for start, end in ((0, 1), (3, 2), (0, 3), (1, 2)):
            way = (corners[end] - corners[start]).astype(float)
            length = max(float(np.hypot(*way)), 1.0)
            for at in np.arange(0, length + 1, 2 * dash):
                one, other = (
                    (corners[start] + way * min(part / length, 1)).round().astype(int).tolist()
                    for part in (at, at + dash)
                )
                cv2.line(self.canvas, one, other, colour, thickness)

    def _frame(self, box: np.ndarray, corners: np.ndarray, colour: Colour, thickness: int) -> None:
        smooth = cv2.LINE_AA if len(box) == 5 else cv2.LINE_8
        cv2.polylines(self.canvas, [corners], True, colour, thickness, smooth)

    def label(self, box: np.ndarray, text: str, colour: Colour, *, below: bool) -> None:
        """Text on a filled strip above or below a box, moved inside where there is no room."""
        if (corners := self.corners(box)) is None:
            return
        scale, thickness = _FONT_SCALE * self.size, max(1, round(self.size))
        (width, height), baseline = cv2.getTextSize(text, _FONT, scale, thickness)
        strip, room = height + baseline + 2, np.array(self.canvas.shape[:2])
        x, y = corners[corners[:, 1].argmax() if below else corners[:, 1].argmin()].tolist()
        # At the left end of an aligned box's edge, about the outermost corner of a rotated one.
        left = x - width // 2 if len(box) == 5 else int(corners[:, 0].min())
        top = y + 1 if below else y - strip
        top, left = np.clip((top, left), 0, np.maximum(room - (strip, width + 4), 0)).tolist()
        cv2.rectangle(self.canvas, (left, top), (left + width + 4, top + strip), colour, -1)
        ink = _DARK if sum(colour) > 330 else _WHITE
        origin = (left + 2, top + height + 2)
        cv2.putText(self.canvas, text, origin, _FONT, scale, ink, thickness, cv2.LINE_AA)

    def with_legend(self, text: str) -> np.ndarray:
        """The canvas with a line of text below it, in letters that fit its width."""
        width = self.canvas.shape[1]
        (full, _), _ = cv2.getTextSize(text, _FONT, 1.0, 1)
        scale = min(_FONT_SCALE * self.size, max(width - 8, 1) / full)
        strip = round(20 * self.size)
        legend = np.full((strip, width, 3), _BACKGROUND, np.uint8)
        origin = (4, round(0.7 * strip))
        cv2.putText(legend, text, origin, _FONT, scale, _DARK, 1, cv2.LINE_AA)
        return np.concatenate([self.canvas, legend])


def _confident(
    detections: Detections | None, score_threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (D, B), scores (D,), labels (D,) of the detections to draw, best first."""
    if detections is None:
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)
    boxes, scores, labels = (
        _box_array(detections.boxes),
        *map(_array, (detections.scores, detections.labels)),
    )
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= score_threshold]
    return boxes[order], scores[order], labels[order]


def _array(values: Any) -> np.ndarray:
    """A tensor on any device, an array or a list as a NumPy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values)


def _box_array(values: Any) -> np.ndarray:
    """Boxes as a NumPy array (M, B); M may be 0."""
    boxes = _array(values)
    return boxes.reshape(-1, boxes.shape[-1]) if boxes.size else np.zeros((0, 4))


def _colour(label: int) -> Colour:
    return _PALETTE[int(label) % len(_PALETTE)]


def _name(class_names: Sequence[str], label: int) -> str:
    """A class name in the letters that OpenCV's font has."""
    label = int(label)
    name = class_names[label] if 0 <= label < len(class_names) else f"class {label}"
    return unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode() or str(label)


def _shrink(image: np.ndarray, longest_px: int) -> np.ndarray:
    factor = longest_px / max(image.shape[:2])
    if factor >= 1:
        return image
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
