"""Images with their true and predicted boxes.

True boxes are dashed and white, with their class below them; predicted boxes are solid, in the
colour of their class, with class and score above them.

Shapes: H and W pixels, M true boxes, D detections, B numbers that make a box. Boxes are XYXY in
pixels of the image given, or rotated: (x_center, y_center, width, height, angle).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from retina_ray.evaluation.drawing.canvas import DARK, WHITE, Canvas, Colour
from retina_ray.structures import Detections

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


_NOTHING = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with its true boxes and its detections.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        class_names: K names; a label beyond them is drawn as its number.
        truth_boxes: (M, B) in pixels of `image`, array or tensor.
        truth_labels: (M,) 0 to K-1, array or tensor.
        detections: in pixels of `image`.
        caption: what identifies the image, e.g. its file name.
        score_threshold: detections below it are not drawn.
    """

    image: np.ndarray
    class_names: Sequence[str]
    truth_boxes: Any = ()
    truth_labels: Any = ()
    detections: Detections = _NOTHING
    caption: str = ""
    score_threshold: float = 0.3

    def draw(self, *, legend: bool = True) -> np.ndarray:
        """Draw the boxes on a copy of the image, but for those that are not finite.

        An image with a longer side below 384 pixels is enlarged by a whole factor, so that lines
        and letters stay legible. The legend is a line below it that says what is drawn.

        Returns:
            (H', W', 3) uint8 RGB.

        Raises:
            ValueError: the image is not (H, W, 3) uint8 with at least one pixel, or boxes and
                labels differ in number.
        """
        image = self.image
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(
                f"image: expected (H, W, 3) uint8 RGB, got shape {image.shape}, {image.dtype}"
            )
        truth_boxes, truth_labels = _box_array(self.truth_boxes), _array(self.truth_labels).ravel()
        if len(truth_boxes) != len(truth_labels):
            raise ValueError(f"{len(truth_boxes)} true boxes, but {len(truth_labels)} labels")
        canvas = Canvas.on(image)
        for box in truth_boxes:
            canvas.dashed(box, WHITE)
        found = self._confident()
        for box, _, label in found:
            canvas.solid(box, _colour(label))
        for box, label in zip(truth_boxes, truth_labels, strict=True):
            canvas.label(box, _name(self.class_names, label), DARK, below=True)
        for box, score, label in found:
            name = _name(self.class_names, label)
            canvas.label(box, f"{name} {score:.2f}", _colour(label), below=False)
        if not legend:
            return canvas.pixels
        threshold = f"score at least {self.score_threshold:g}"
        return canvas.with_legend(
            f"dashed: {len(truth_boxes)} true   solid: {len(found)} found ({threshold})"
        )

    def _confident(self) -> list[tuple[np.ndarray, float, int]]:
        """Box, score and label of the detections to draw, the best last: it lies on top."""
        found = self.detections
        scores = _array(found.scores)
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= self.score_threshold][::-1]
        boxes, labels = _box_array(found.boxes), _array(found.labels)
        return list(zip(boxes[order], scores[order], labels[order], strict=True))


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
