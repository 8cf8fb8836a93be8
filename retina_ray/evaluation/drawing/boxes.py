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


@dataclass(frozen=True)
class AnnotatedImage:
    """An image (H, W, 3), uint8 RGB, with its true boxes and its detections, for `draw_boxes`."""

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
        truth_labels: (M,) 0 to K-1, array or tensor.
        detections: in pixels of `image`.
        score_threshold: detections below it are not drawn.
        legend: add a line below the image that says what is drawn, and how many.

    Returns:
        (H', W', 3) uint8 RGB, a new array. Boxes that are not finite are left out.

    Raises:
        ValueError: the image is not as above, or boxes and labels differ in number.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(
            f"image: expected (H, W, 3) uint8 RGB, got shape {image.shape}, {image.dtype}"
        )
    truth_boxes, truth_labels = _box_array(truth_boxes), _array(truth_labels).ravel()
    if len(truth_boxes) != len(truth_labels):
        raise ValueError(f"{len(truth_boxes)} true boxes, but {len(truth_labels)} labels")
    found_boxes, scores, found_labels = _confident(detections, score_threshold)
    canvas = Canvas.on(image)
    for box in truth_boxes:
        canvas.dashed(box, WHITE)
    # The best detection last, so that it lies on top.
    found = list(zip(found_boxes, scores, found_labels, strict=True))[::-1]
    for box, _, label in found:
        canvas.solid(box, _colour(label))
    for box, label in zip(truth_boxes, truth_labels, strict=True):
        canvas.label(box, _name(class_names, label), DARK, below=True)
    for box, score, label in found:
        canvas.label(box, f"{_name(class_names, label)} {score:.2f}", _colour(label), below=False)
    if not legend:
        return canvas.pixels
    threshold = f"score at least {score_threshold:g}"
    return canvas.with_legend(
        f"dashed: {len(truth_boxes)} true   solid: {len(found)} found ({threshold})"
    )


def _confident(
    detections: Detections | None, score_threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (D, B), scores (D,), labels (D,) of the detections to draw, best first."""
    if detections is None:
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)
    boxes = _box_array(detections.boxes)
    scores, labels = _array(detections.scores), _array(detections.labels)
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
