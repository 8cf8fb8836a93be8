"""Validation images with what is in them and what was found, as pictures to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retina_ray.data.rotated_boxes import scale_rotated
from retina_ray.evaluation.drawing import AnnotatedImage
from retina_ray.train.engine.validation import Sample


def to_pictures(
    samples: Sequence[Sample], truth: dict[str, Any], class_names: Sequence[str]
) -> list[AnnotatedImage]:
    """Join samples with their true boxes, from COCO ground truth in original pixels.

    `class_names` are in the order of the labels, which is that of `truth["categories"]`.
    """
    images = {image["id"]: image for image in truth["images"]}
    labels = {category["id"]: i for i, category in enumerate(truth["categories"])}
    wanted = {sample.image_id for sample in samples}
    boxes: dict[int, list[tuple[list[float], int]]] = {i: [] for i in wanted}
    for annotation in truth["annotations"]:
        if annotation["image_id"] in wanted and not annotation["iscrowd"]:
            entry = (annotation["bbox"], labels[annotation["category_id"]])
            boxes[annotation["image_id"]].append(entry)
    return [_picture(s, images[s.image_id], boxes[s.image_id], class_names) for s in samples]


def _picture(
    sample: Sample,
    image: dict[str, Any],
    boxes: Sequence[tuple[list[float], int]],
    class_names: Sequence[str],
) -> AnnotatedImage:
    height, width = sample.pixels.shape[:2]
    scale = (width / image["width"], height / image["height"])
    return AnnotatedImage(
        image=sample.pixels,
        truth_boxes=_scaled([box for box, _ in boxes], *scale),
        truth_labels=np.array([label for _, label in boxes], dtype=np.int64),
        detections=sample.detections,
        class_names=class_names,
        caption=str(image.get("file_name", sample.image_id)),
    )


def _scaled(boxes: Sequence[Sequence[float]], scale_x: float, scale_y: float) -> np.ndarray:
    """XYWH as XYXY, rotated boxes as they are, in pixels of a resized image; float32."""
    if any(len(box) == 5 for box in boxes):
        return scale_rotated(np.array(boxes), scale_x, scale_y)
    xywh = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    return (xyxy * ([scale_x, scale_y] * 2)).astype(np.float32)
