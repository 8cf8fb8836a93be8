"""Detections as entries of COCO's results format.

Shapes: D detections of an image, B numbers that make a box.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from retina_ray.ops.rotated.boxes import scale_rotated
from retina_ray.structures import Detections


def to_results(
    detections: Detections,
    *,
    image_id: int,
    original_size: tuple[int, int],
    resized_size: tuple[int, int],
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """Turn the detections of one image into entries of COCO's results format.

    Boxes (D, B) are in pixels of the resized image, without its padding; sizes are (height, width)
    in pixels; `category_ids` has the data set's id of each label.

    Returns:
        D entries: `image_id`, `category_id`, `bbox` as (x, y, width, height) in pixels of the
        original image and inside it, `score`. The `bbox` of a rotated box is (x_center, y_center,
        width, height, angle), and may reach beyond the image.

    Raises:
        ValueError: a size that is not positive, or a label without a category id.
    """
    if min(*original_size, *resized_size) <= 0:
        raise ValueError(
            f"image {image_id}: sizes must be positive (height, width), got original_size="
            f"{tuple(original_size)}, resized_size={tuple(resized_size)}"
        )
    labels = detections.labels.tolist()
    unknown = sorted({label for label in labels if not 0 <= label < len(category_ids)})
    if unknown:
        raise ValueError(
            f"image {image_id}: labels {unknown} have no category id, expected 0 to "
            f"{len(category_ids) - 1}: the model's num_classes differs from the data set's"
        )
    boxes = _original_boxes(detections.boxes, original_size, resized_size)
    return [
        {
            "image_id": int(image_id),
            "category_id": int(category_ids[label]),
            "bbox": box,
            "score": float(score),
        }
        for box, score, label in zip(
            boxes.tolist(), detections.scores.tolist(), labels, strict=True
        )
    ]


def _original_boxes(
    boxes: torch.Tensor, original_size: tuple[int, int], resized_size: tuple[int, int]
) -> torch.Tensor:
    """(D, B) float64: XYXY to XYWH of the original image, rotated boxes to rotated boxes."""
    boxes = boxes.detach().cpu().to(torch.float64)
    height, width = original_size
    if boxes.shape[-1] == 5:
        return scale_rotated(boxes, width / resized_size[1], height / resized_size[0])
    size = torch.tensor([width, height] * 2, dtype=torch.float64)
    resized = torch.tensor([resized_size[1], resized_size[0]] * 2, dtype=torch.float64)
    boxes = boxes.reshape(-1, 4) * (size / resized)
    boxes = torch.minimum(boxes.clamp(min=0), size)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def write_results(path: str | Path, results: Iterable[Mapping[str, Any]]) -> Path:
    """Write results as the JSON list that pycocotools and COCO's evaluation server read."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(results), allow_nan=False), encoding="utf-8")
    return path
