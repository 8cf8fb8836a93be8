"""The annotations of a prepared set as pycocotools wants them.

Needs numpy and pyarrow only: Ray Data's tasks import it without PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from retina_ray.data.prepared.schema import ROTATED_COLUMN, BoxType, Category, nested_rows


def coco_dict(
    table: pa.Table, categories: Sequence[Category], *, box_type: BoxType
) -> dict[str, Any]:
    """Turn light columns into a COCO dict; see `PreparedDataset.ground_truth`.

    Args:
        table: all columns of the set but the image.
        categories: in the order of the labels.
        box_type: which boxes.

    Returns:
        images, annotations and categories.
    """
    boxes = "bbox" if box_type == "aligned" else ROTATED_COLUMN
    images = table.select(["image_id", "file_name", "height", "width"]).rename_columns(
        ["id", "file_name", "height", "width"]
    )
    nested = [
        nested_rows(table[name]) for name in ("labels", boxes, "area", "iscrowd", "annotation_id")
    ]
    annotations = []
    for image_id, *columns in zip(table["image_id"].to_pylist(), *nested, strict=True):
        for label, bbox, area, crowd, annotation_id in zip(*columns, strict=True):
            annotations.append(
                {
                    "id": int(annotation_id),
                    "image_id": image_id,
                    "category_id": categories[label].id,
                    "bbox": [float(value) for value in bbox],
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
    return {
        "images": images.to_pylist(),
        "annotations": annotations,
        "categories": [{"id": c.id, "name": c.name} for c in categories],
    }
