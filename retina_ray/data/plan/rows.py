"""The rows of a run's plan: their columns, and how epochs and validation rounds become rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from retina_ray.data.plan.layout import TRAIN, Segment, rounds_of
from retina_ray.data.plan.order import EpochBatches, Images, epoch_batches, evaluation_order
from retina_ray.data.plan.sampling import EpochSampler
from retina_ray.errors import DataError

PLAN_SCHEMA = pa.schema(
    [
        pa.field("plan_index", pa.int64()),
        pa.field("kind", pa.string()),
        pa.field("epoch", pa.int32()),
        pa.field("step", pa.int64()),
        pa.field("worker", pa.int32()),
        pa.field("images", pa.list_(pa.int32())),
        pa.field("repeats", pa.list_(pa.int32())),
        pa.field("partners", pa.list_(pa.list_(pa.int32()))),
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
of the training or validation set; none in a row that only makes the workers' rows equally many.
repeats: for each image, how often it was in the epoch before; empty where all are there for the
first time. partners: for each image, the positions of those that are mixed into it: three for a
mosaic, one for mixup, four for both; empty where there are none. num_fill: how many images at the
end of `images` are repeats that fill the batch. mixed: the global batch holds images that are
stored in landscape and others in portrait. size_px, max_size_px: target length of the shorter side,
and limit of the longer one.
"""


@dataclass(frozen=True)
class EpochRules:
    """What the rows of a training epoch follow from, see `order.epoch_batches`."""

    images: Images
    sampler: EpochSampler
    batch_size: int
    num_micro_batches: int
    seed: int
    sizes_px: tuple[int, ...]
    size_sampling: Literal["choice", "range"]
    max_size_px: int
    group_by_aspect: bool
    window_row_groups: int
    mosaic_prob: float
    mixup_prob: float

    def rows(self, epoch: int, num_workers: int) -> pa.Table:
        """The rows of an epoch, without their place in the run."""
        batches = epoch_batches(
            self.images,
            epoch,
            batch_size=self.batch_size,
            seed=self.seed,
            sizes_px=self.sizes_px,
            size_sampling=self.size_sampling,
            group_by_aspect=self.group_by_aspect,
            window_row_groups=self.window_row_groups,
            sampler=self.sampler,
            mosaic_prob=self.mosaic_prob,
            mixup_prob=self.mixup_prob,
        )
        return training_rows(batches, num_workers, self.num_micro_batches, self.max_size_px)


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
        index[name].to_numpy() for name in ("shard", "row_group", "height", "width")
    )
    flat = np.flatnonzero((height < 1) | (width < 1))
    if len(flat):
        raise DataError(
            f"{len(flat)} images of the {purpose} set have no area, the first at position "
            f"{flat[0]} with {width[flat[0]]} x {height[flat[0]]} pixels; prepare the set again"
        )
    # Rows of a group lie together, so a new one begins wherever shard or row group changes.
    begins = np.diff(shard, prepend=shard[0]) != 0
    begins |= np.diff(row_group, prepend=row_group[0]) != 0
    return Images(group=begins.cumsum(dtype=np.int32), height=height, width=width)


def training_rows(
    batches: EpochBatches, num_workers: int, num_micro_batches: int, max_size_px: int
) -> pa.Table:
    """Cut the global batches of an epoch into rows, step by step and worker by worker.

    Each is cut into M equal consecutive micro-batches, which the W workers get in turn. Where M
    does not divide by W, rows without images follow, so that every worker has as many rows.

    Args:
        batches: of the epoch.
        num_workers: W.
        num_micro_batches: M, a divisor of the batch size.
        max_size_px: limit of the longer side.

    Returns:
        The rows without their place in the run, see `place_rows`.
    """
    num_steps, batch_size = batches.images.shape
    size = batch_size // num_micro_batches
    step_rows = num_workers * rounds_of(num_micro_batches, num_workers)  # of all workers
    num_rows = num_steps * step_rows

    def of_rows(values: np.ndarray) -> np.ndarray:
        """A value for each micro-batch (E, M) -> one for each row; 0 where there are no images."""
        rows = np.zeros((num_steps, step_rows), values.dtype)
        rows[:, :num_micro_batches] = values.reshape(num_steps, num_micro_batches)
        return rows.reshape(-1)

    # The fills stand at the end of the global batch, so they fall to the last micro-batches.
    after = (num_micro_batches - 1 - np.arange(num_micro_batches)) * size
    num_fill = np.clip(batches.num_fill[:, None] - after, 0, size)
    repeat = batches.repeat.reshape(-1, size)
    repeated = repeat.any(axis=1)
    counts, partners = _partner_counts(batches, size)
    mixes: np.ndarray = np.asarray(counts.any(axis=1))
    return _rows(
        batches.images.reshape(-1),
        of_rows(np.full(num_steps * num_micro_batches, size)),
        repeats=_lists(repeat[repeated].reshape(-1), of_rows(repeated * size)),
        partners=_lists(_lists(partners, counts[mixes].reshape(-1)), of_rows(mixes * size)),
        worker=np.tile(np.arange(num_workers), num_rows // num_workers),
        num_fill=of_rows(num_fill),
        mixed=np.repeat(batches.mixed, step_rows),
        size_px=np.repeat(batches.size_px, step_rows),
        max_size_px=np.full(num_rows, max_size_px),
    )


def _partner_counts(batches: EpochBatches, size: int) -> tuple[np.ndarray, np.ndarray]:
    """How many partners each image of each micro-batch has, and all partners one by one."""
    if batches.num_partners is None or batches.partners is None:
        return np.zeros((batches.images.size // size, size), np.int64), np.zeros(0, np.int64)
    return batches.num_partners.reshape(-1, size), batches.partners


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
    nothing = np.zeros(0, np.int64)
    return _rows(
        order,
        length,
        repeats=_lists(nothing, zeros),
        partners=_lists(_lists(nothing, nothing), zeros),
        worker=np.arange(num_rows) % num_workers,
        num_fill=zeros,
        mixed=(num_wide > 0) & (num_wide < length),
        size_px=np.full(num_rows, size_px),
        max_size_px=np.full(num_rows, max_size_px),
    )


def _rows(images: np.ndarray, lengths: np.ndarray, **columns: np.ndarray | pa.Array) -> pa.Table:
    """Make rows without their place; `images` holds those of all rows, `lengths` how many each."""
    arrays: dict[str, pa.Array] = {"images": _lists(images, lengths)}
    for name, values in columns.items():
        field = PLAN_SCHEMA.field(name)
        arrays[name] = values if isinstance(values, pa.Array) else pa.array(values).cast(field.type)
    return pa.table(arrays)


def _lists(values: np.ndarray | pa.Array, lengths: np.ndarray) -> pa.Array:
    """Cut values into lists of these lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if not isinstance(values, pa.Array):
        values = pa.array(values, pa.int32())
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def place_rows(rows: pa.Table, segment: Segment, num_workers: int, rows_per_step: int) -> pa.Table:
    """Give the rows of a segment their place in the run.

    Args:
        rows: of an epoch or a validation round.
        segment: that they make up.
        num_workers: W.
        rows_per_step: training rows of a worker in a step.

    Returns:
        A table of `PLAN_SCHEMA`.
    """
    number = np.arange(rows.num_rows)
    step = np.full(rows.num_rows, segment.step)
    if segment.kind == TRAIN:
        step += number // (num_workers * rows_per_step)
    place = {
        "plan_index": segment.first_round * num_workers + number,
        "epoch": np.full(rows.num_rows, segment.epoch),
        "step": step,
    }
    columns = {name: pa.array(v).cast(PLAN_SCHEMA.field(name).type) for name, v in place.items()}
    columns["kind"] = pa.repeat(pa.scalar(segment.kind), rows.num_rows)
    return pa.table(
        [columns[name] if name in columns else rows[name] for name in PLAN_SCHEMA.names],
        schema=PLAN_SCHEMA,
    )
