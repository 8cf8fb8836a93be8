"""Records and prepared sets of a few images; without PyTorch, so that subprocesses start fast."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import Category, ImageClasses, Record
from retina_ray.data.prepared.writer import ShardWriter

CATEGORIES = [Category(3, "cat"), Category(90, "dog")]


def make_record(i: int, boxes=((1, 2, 11, 22.5),), *, image: bytes | None = None, **changes):
    """Image i, 64 x 48 pixels: boxes XYXY, of both classes in turn, none of them a crowd region."""
    num = len(boxes)
    fields: dict[str, Any] = {
        "image": f"pixels {i}".encode() * 50 if image is None else image,
        "file_name": f"{i}.jpg",
        "image_id": 100 + i,
        "height": 48,
        "width": 64,
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "labels": np.arange(num, dtype=np.int32) % 2,
        "iscrowd": np.zeros(num, np.bool_),
        "area": np.full(num, 33.25),
        "annotation_id": 10 * i + 1 + np.arange(num),
    }
    return Record(**{**fields, **changes})


def annotated(rows, first_id=1) -> dict[str, Any]:
    """Fields of a record from (x0, y0, x1, y1, label, iscrowd) of each box."""
    boxes = np.array([row[:4] for row in rows], np.float32).reshape(-1, 4)
    return {
        "boxes": boxes,
        "labels": np.array([row[4] for row in rows], np.int32),
        "iscrowd": np.array([row[5] for row in rows], np.bool_),
        "area": (boxes[:, 2:] - boxes[:, :2]).prod(1).astype(np.float64),
        "annotation_id": first_id + np.arange(len(rows)),
    }


def write_set(uri, records: Iterable[Record], **options) -> PreparedDataset:
    """Write records, by `ShardWriter`'s options, and open the set."""
    options = {"name": "tiny", "split": "train", "categories": CATEGORIES, **options}
    with ShardWriter(uri, **options) as writer:
        for record in records:
            writer.add(record)
    return PreparedDataset.open(uri)


def image_classes(labels: list[set[int]], num_classes: int) -> ImageClasses:
    """The classes of each image."""
    pairs = [(i, label) for i, own in enumerate(labels) for label in sorted(own)]
    image, label = (np.array([p[k] for p in pairs], np.int32) for k in (0, 1))
    return ImageClasses(image, label, len(labels), num_classes)
