"""The stream: a run's plan goes in, ready uint8 batches come out, in the plan's order, by Ray Data.

A block of the stream is a few consecutive plan rows of one worker. Blocks go round robin to the
workers (`preserve_order`, equal split, no locality hints), so worker r receives exactly its own
rows in their order; every batch carries its plan index, and `expect_order` checks it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import ray
import ray.data
from ray.data import ExecutionOptions

from retina_ray.data.batches import BatchLoader
from retina_ray.data.plan import RunPlan
from retina_ray.data.unpack import PlannedBatch, unpack_batch

__all__ = ["execution_options", "expect_order", "iterate_shard", "rows_per_block", "stream"]

TARGET_BLOCK_BYTES = 32 * 2**20
"""A block's size: large enough to pay for its task, well under Ray Data's 128 MiB, above which
Ray would cut a block in two and the order would no longer be round robin."""

MAX_ROWS_PER_BLOCK = 8
"""A block arrives as a whole: more rows would delay the first batch of a run of small images."""


def execution_options() -> ExecutionOptions:
    """What the plan's order rests on: blocks leave the stream in the order of the plan."""
    return ExecutionOptions(preserve_order=True)


def rows_per_block(batch_bytes: int) -> int:
    """How many batches of the given size (bytes of pixels) go into one block."""
    return max(1, min(MAX_ROWS_PER_BLOCK, TARGET_BLOCK_BYTES // max(1, batch_bytes)))


def stream(
    plan: RunPlan, loader: BatchLoader, *, batch_bytes: int, start_step: int = 0
) -> ray.data.Dataset:
    """Make the Ray Data stream of a run from training step `start_step` on.

    Args:
        plan: the whole run.
        loader: reads, decodes and augments a plan row; it travels to the decoding tasks once
            through the object store.
        batch_bytes: pixels of a typical batch, in bytes; sets the rows of a block.
        start_step: the first training step that is still to do.

    Returns:
        A lazy dataset with one row per batch (`retina_ray.data.batches.BATCH_SCHEMA`).
    """
    blocks = list(plan.block_rows(rows_per_block(batch_bytes), start_step=start_step))
    loader_ref, plan_ref = ray.put(loader), ray.put((plan.table, blocks))

    def load(batch: Any) -> Any:
        table, rows = _fetch(plan_ref)
        mine = np.concatenate([rows[block] for block in batch["id"]])
        return _fetch(loader_ref).load_table(table.take(mine))

    dataset = ray.data.range(len(blocks), override_num_blocks=len(blocks)).map_batches(load)
    dataset.context.execution_options = execution_options()
    dataset.context.enable_progress_bars = False
    return dataset


MAX_HELD = 4
"""Loaders and plans that a decoding process keeps: those of two runs at once."""

_HELD: dict[str, Any] = {}


def _fetch(ref: Any) -> Any:
    """Fetch an object once per decoding process, which serves stream after stream."""
    key = ref.hex()
    if key not in _HELD:
        while len(_HELD) >= MAX_HELD:
            _HELD.pop(next(iter(_HELD)))
        _HELD[key] = ray.get(ref)
    return _HELD[key]


def iterate_shard(
    shard: Any, *, prefetch_batches: int = 2, pin_memory: bool = False
) -> Iterator[PlannedBatch]:
    """Unpack the batches of one worker's part of the stream.

    Args:
        shard: what `ray.train.get_dataset_shard` returned (or a dataset).
        prefetch_batches: batches fetched ahead of the consumer.
        pin_memory: copy to page-locked memory, for asynchronous copies to a CUDA device.
    """
    for table in shard.iter_batches(
        batch_size=1, batch_format="pyarrow", prefetch_batches=prefetch_batches
    ):
        yield unpack_batch(table, pin_memory=pin_memory)


def expect_order(
    batches: Iterable[PlannedBatch], expected: Iterable[int]
) -> Iterator[PlannedBatch]:
    """Pass batches through, and check that they are the planned ones in the planned order.

    Raises:
        RuntimeError: a batch is not the one that the plan has at this place, or the stream ended
            early.
    """
    iterator = iter(batches)
    for index in expected:
        planned = next(iterator, None)
        got = None if planned is None else planned.batch.plan_index
        if planned is None or got != index:
            raise RuntimeError(
                f"the data stream lost the plan's order: expected plan row {index}, got "
                f"{'the end of the stream' if got is None else got}"
            )
        yield planned
