"""Small prepared sets and configs whose anchors can be worked out by hand."""

import numpy as np
import tiny_sets
from builders import small_config
from tiny_sets import annotated, make_record

from retina_ray.config import AnchorConfig
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import Category

CATEGORIES = [Category(1, "cat"), Category(2, "dog"), Category(3, "newt")]


def simple_config(**overrides):
    """One square anchor a cell: 16, 32 and 64 px at strides 8, 16 and 32; images of 64 px.

    The centres are at 4, 12, ..., 60; at 8, 24, 40, 56; and at 16, 48.
    """
    square = {"octave_scales": (1.0,), "aspect_ratios": (1.0,)}
    return small_config(
        **{
            "model.anchors": AnchorConfig(sizes=(16.0, 32.0, 64.0), **square),
            "input.train_max_size_px": 1000,
            "input.eval_max_size_px": 1000,
            "train.batch_size": 2,
            **overrides,
        }
    )


def write_set(folder, images, *, size=(64, 64)) -> PreparedDataset:
    """A set of images without pixels.

    Args:
        folder: where to.
        images: for each image a list of (x0, y0, x1, y1), (x0, y0, x1, y1, label) or
            (x0, y0, x1, y1, label, iscrowd).
        size: (height, width) of all.
    """
    height, width = size
    records = []
    for number, rows in enumerate(images):
        full = [(*row, *(0, 0)[len(row) - 4 :]) for row in rows]
        boxes = annotated(full, 1000 * number + 1)
        records.append(make_record(number, **boxes, height=height, width=width))
    return tiny_sets.write_set(folder, records, name="drawn", categories=CATEGORIES)


def squares(side, count, *, size=(256, 256), label=0, seed=0, height=None):
    """Images of one box of this side (or width and height) each, at random places."""
    rng = np.random.default_rng(seed)
    height = side if height is None else height
    return [
        [(x, y, x + side, y + height, label)]
        for x, y in zip(
            rng.uniform(0, size[1] - side, count),
            rng.uniform(0, size[0] - height, count),
            strict=True,
        )
    ]
