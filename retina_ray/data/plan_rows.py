"""The rows of a run's plan: their columns, and how epochs and validation rounds become rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from retina_ray.data.order import EpochBatches, Images, evaluation_order
from retina_ray.data.schema import DataError

__all__ = [
    "PLAN_SCHEMA",
    "TRAIN",
    "VAL",
    "check_numbers",
    "join_parts",
    "place_round",
    "read_images",
    "training_rows",
    "validation_round",
]

TRAIN, VAL = "train", "val"

PLAN_SCHEMA = pa.schema(
    [
        pa.field("plan_index", pa.int64()),
        pa.field("kind", pa.string()),
        pa.field("epoch", pa.int32()),
        pa.field("step", pa.int64()),
        pa.field("worker", pa.int32()),
        pa.field("images", pa.list_(pa.int32())),
        pa.field("num_fill", pa.int32()),
        pa.field("mixed", pa.bool_()),
        pa.field("size_px", pa.int32()),
        pa.field("max_size_px", pa.int32()),
    ]
)
"""Columns of a plan.

plan_index: the row's number. kind: train or val. epoch: from 0; of a validation row, the epoch
that it follows. step: the training step that the row belongs to, from 0; of a validation row, the
number of training steps done before it. worker: who gets the row. images: positions in the index
of the training or validation set. num_fill: how many images at the end of `images` are repeats
that fill the batch. mixed: the global batch holds landscape and portrait images. size_px,
max_size_px: target length of the shorter side, and limit of the longer one.
"""


def check_numbers(**numbers: int) -> None:
    """Refuse numbers below 1, all of them at once."""
    wrong = [f"{name} = {value}" for name, value in numbers.items() if value < 1]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: must be at least 1")


def read_images(index: pa.Table, purpose: str) -> Images:
    """Take the columns that planning needs from a data set's index."""
    if index.num_rows == 0:
        raise DataError(f"the {purpose} set has no images; prepare it again")
    shard, row_group, height, width = (
        index[name].to_numpy().astype(np.int64)
        for name in ("shard", "row_group", "height", "width")
    )
    flat = np.flatnonzero((height < 1) | (width < 1))
    if len(flat):
        raise DataError(
            f"{len(flat)} images of the {purpose} set have no area, the first at position "
            f"{flat[0]} with {width[flat[0]]} x {height[flat[0]]} pixels; prepare the set again"
        )
    _, group = np.unique(shard * (row_group.max() + 1) + row_group, return_inverse=True)
    return Images(group=group.reshape(-1), height=height, width=width)


def training_rows(
    batches: EpochBatches, epoch: int, num_workers: int, max_size_px: int
) -> pa.Table:
    """Cut the global batches of an epoch into rows, step by step and worker by worker."""
    num_steps, batch_size = batches.images.shape
    per_worker = batch_size // num_workers
    # The fills stand at the end of the global batch, so they fall to the last workers.
    after = (num_workers - 1 - np.arange(num_workers)) * per_worker
    num_fill = np.clip(batches.num_fill[:, None] - after, 0, per_worker)
    num_rows = num_steps * num_workers
    return _rows(
        TRAIN,
        batches.images.reshape(-1),
        np.full(num_rows, per_worker),
        epoch=np.full(num_rows, epoch),
        step=np.repeat(epoch * num_steps + np.arange(num_steps), num_workers),
        worker=np.tile(np.arange(num_workers), num_steps),
        num_fill=num_fill.reshape(-1),
        mixed=np.repeat(batches.mixed, num_workers),
        size_px=np.repeat(batches.size_px, num_workers),
        max_size_px=np.full(num_rows, max_size_px),
    )


def validation_round(
    index: pa.Table, num_workers: int, batch_size: int, size_px: int, max_size_px: int
) -> pa.Table:
    """Lay out one round over the validation set, padded with rows of zero images."""
    check_numbers(num_workers=num_workers, eval_batch_size=batch_size)
    images = read_images(index, "validation")
    order = evaluation_order(images)
    num_rows = -(-len(order) // (batch_size * num_workers)) * num_workers
    ends = np.minimum(np.arange(num_rows + 1) * batch_size, len(order))
    wide = np.append(images.landscape[order].cumsum(), 0)
    wide_before = np.where(ends > 0, wide[ends - 1], 0)
    num_wide, length = np.diff(wide_before), np.diff(ends)
    zeros = np.zeros(num_rows, np.int64)
    return _rows(
        VAL,
        order,
        length,
        epoch=zeros,
        step=zeros,
        worker=np.arange(num_rows) % num_workers,
        num_fill=zeros,
        mixed=(num_wide > 0) & (num_wide < length),
        size_px=np.full(num_rows, size_px),
        max_size_px=np.full(num_rows, max_size_px),
    )


def _rows(kind: str, images: np.ndarray, lengths: np.ndarray, **columns: np.ndarray) -> pa.Table:
    """Make plan rows; `images` holds the images of all rows, `lengths` how many each row has."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    arrays = {
        "plan_index": pa.nulls(len(lengths), pa.int64()),
        "kind": pa.repeat(pa.scalar(kind), len(lengths)),
        "images": pa.ListArray.from_arrays(
            pa.array(offsets, pa.int32()), pa.array(images, pa.int32())
        ),
    }
    for name, values in columns.items():
        arrays[name] = pa.array(values).cast(PLAN_SCHEMA.field(name).type)
    return pa.table([arrays[name] for name in PLAN_SCHEMA.names], schema=PLAN_SCHEMA)


def place_round(rows: pa.Table, *, epoch: int, step: int) -> pa.Table:
    """Place a validation round after an epoch."""
    for name, value in (("epoch", epoch), ("step", step)):
        field = PLAN_SCHEMA.field(name)
        column = pa.repeat(pa.scalar(value, field.type), rows.num_rows)
        rows = rows.set_column(PLAN_SCHEMA.names.index(name), field, column)
    return rows


def join_parts(parts: Sequence[pa.Table]) -> pa.Table:
    """Put the parts of a run one after the other and number the rows."""
    table = pa.concat_tables(parts).combine_chunks()
    numbers = pa.array(np.arange(table.num_rows), pa.int64())
    return table.set_column(0, PLAN_SCHEMA.field("plan_index"), numbers)
