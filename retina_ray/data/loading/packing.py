"""A ready batch as one row of an Arrow table.

In this form it travels through Ray's object store without being copied or pickled;
`retina_ray.data.loading.unpack` makes tensors of it. N images, M boxes of the whole batch, B
numbers a box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from retina_ray.data.augment.transforms import LabeledImage, Size
from retina_ray.data.images.decoding import Pixels
from retina_ray.data.loading.stored_images import BadImageError, StoredImage

BATCH_SCHEMA = pa.schema(
    [
        pa.field("plan_index", pa.int64()),
        pa.field("kind", pa.string()),
        pa.field("epoch", pa.int32()),
        pa.field("step", pa.int64()),
        pa.field("worker", pa.int32()),
        pa.field("num_images", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("pixels", pa.large_binary()),
        pa.field("sizes", pa.list_(pa.int32())),
        pa.field("box_counts", pa.list_(pa.int32())),
        pa.field("box_dim", pa.int32()),
        pa.field("boxes", pa.list_(pa.float32())),
        pa.field("labels", pa.list_(pa.int32())),
        pa.field("image_ids", pa.list_(pa.int64())),
        pa.field("original_sizes", pa.list_(pa.int32())),
        pa.field("num_fill", pa.int32()),
        pa.field(
            "bad_images", pa.list_(pa.struct({"file_name": pa.string(), "reason": pa.string()}))
        ),
    ]
)
"""Columns of a batch; the first five and `num_fill` are the plan's.

pixels: (N, height, width, 3) uint8 RGB, zero at the right and the bottom of each image.
sizes, original_sizes: (N, 2) height and width in pixels after and before resizing. box_counts:
(N,) boxes of each image. box_dim: B, 4 or 5. boxes: (M, B) XYXY in resized pixels, or rotated.
labels: (M,). image_ids: (N,).
"""


def padded_batch(sizes: Sequence[Size], size_divisibility_px: int) -> Pixels:
    """Make room for images of one batch.

    Args:
        sizes: (height, width) of each, in pixels.
        size_divisibility_px: height and width become multiples of this.

    Returns:
        (N, height, width, 3) uint8 with anything in it. Without images the size is one step of
        the grid, which any model takes.
    """
    sides = zip(*sizes, strict=True) if sizes else [(1,), (1,)]
    height, width = (-(-max(side) // size_divisibility_px) * size_divisibility_px for side in sides)
    return np.empty((len(sizes), height, width, 3), np.uint8)


def pack_batch(
    row: Mapping[str, Any],
    used: Sequence[tuple[StoredImage, LabeledImage]],
    bad: Sequence[BadImageError],
    *,
    size_divisibility_px: int,
    box_dim: int = 4,
    room: Pixels | None = None,
) -> pa.Table:
    """Pad samples to one size and make a batch of them.

    Args:
        row: of the plan.
        used: the images of the batch with what became of them; may be empty.
        bad: of the images that could not be decoded.
        size_divisibility_px: height and width become multiples of this.
        box_dim: 4, or 5 for rotated boxes; that of the samples' boxes.
        room: of `padded_batch`; is used where the samples need just as much. An image that lies
            in its place there already, in the upper left corner, is not copied.

    Returns:
        A table of one row (`BATCH_SCHEMA`).
    """
    samples = [sample for _, sample in used]
    sizes = [sample.image.shape[:2] for sample in samples]
    pixels = padded_batch(sizes, size_divisibility_px)
    if room is not None and room.shape == pixels.shape:
        pixels = room
    for target, sample, (own_height, own_width) in zip(pixels, samples, sizes, strict=True):
        if not np.may_share_memory(target, sample.image):
            target[:own_height, :own_width] = sample.image
        target[own_height:], target[:own_height, own_width:] = 0, 0
    values = {
        **{name: row[name] for name in ("plan_index", "kind", "epoch", "step", "worker")},
        "num_images": len(samples),
        "height": pixels.shape[1],
        "width": pixels.shape[2],
        "sizes": np.array(sizes, np.int32),
        "box_counts": np.array([len(s.boxes) for s in samples], np.int32),
        "box_dim": box_dim,
        "boxes": np.concatenate([s.boxes for s in samples] or [np.zeros(0, np.float32)]),
        "labels": np.concatenate([s.labels for s in samples] or [np.zeros(0, np.int32)]),
        "image_ids": np.array([image.image_id for image, _ in used], np.int64),
        "original_sizes": np.array([image.size for image, _ in used], np.int32),
        "num_fill": row["num_fill"],
        "bad_images": [{"file_name": e.image.file_name, "reason": str(e)} for e in bad],
    }
    columns = [
        _pixel_column(pixels) if field.name == "pixels" else _column(values[field.name], field)
        for field in BATCH_SCHEMA
    ]
    return pa.table(columns, schema=BATCH_SCHEMA)


def join_batches(tables: Sequence[pa.Table]) -> pa.Table:
    """Put batches into one table, pixels as they are, all else in one piece a column.

    Ray writes and reads each piece of each column on its own, which costs more than the numbers in
    it; pixels would have to be copied.

    Args:
        tables: of `BATCH_SCHEMA`; may be none.

    Returns:
        A table of all rows in order.
    """
    if not tables:
        return BATCH_SCHEMA.empty_table()
    joined = pa.concat_tables(tables)
    columns = [
        column if field.name == "pixels" else column.combine_chunks()
        for field, column in zip(BATCH_SCHEMA, joined.columns, strict=True)
    ]
    return pa.table(columns, schema=BATCH_SCHEMA)


def _pixel_column(pixels: np.ndarray) -> pa.Array:
    """Wrap a batch's pixels as the one value of a column, without a copy."""
    offsets = pa.py_buffer(np.array([0, pixels.nbytes], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(pixels)])


def _column(value: Any, field: pa.Field) -> pa.Array:
    """Make a column of one value; arrays are flattened to a list."""
    if not isinstance(value, np.ndarray):
        return pa.array([value], field.type)
    flat = pa.array(value.reshape(-1), field.type.value_type)
    return pa.ListArray.from_arrays(pa.array([0, len(flat)], pa.int32()), flat)
