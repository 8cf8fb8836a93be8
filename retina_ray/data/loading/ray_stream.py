"""The stream: a run's plan goes in, ready uint8 batches come out, in the plan's order, by Ray Data.

A block of the stream is a few consecutive plan rows of one worker. Blocks go round robin to the
workers (`preserve_order`, equal split, no locality hints), so worker r receives exactly its own
rows in their order; every batch carries its plan index, and
`retina_ray.data.loading.stream_reader.expect_order` checks it.
"""

from __future__ import annotations

import functools
import os
import time
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import Datasource, ExecutionOptions, ReadTask, TaskPoolStrategy
from ray.data.block import BlockMetadata

from retina_ray.data.loading.batch_loader import BatchLoader
from retina_ray.data.loading.memory import keep_freed_memory
from retina_ray.data.loading.packing import BATCH_SCHEMA
from retina_ray.data.plan.run_plan import RunPlan
from retina_ray.ray_internals.data import ExecutionCallback, progress_counts

MAX_BLOCK_BYTES = 96 * 2**20
"""A typical block's largest size: each costs Ray Data's scheduler its time, whatever it holds."""

IDLE_VARIABLE, KEPT_IDLE_S = "RAY_idle_worker_killing_time_threshold_ms", 600
"""How long Ray keeps processes without a task, beyond one for each free CPU: by itself a second."""

NUMBERS_PER_TASK = 512
"""Blocks that one task of the stream's first stage names."""

MAX_ROWS_PER_BLOCK = 16
"""A block arrives as a whole: more rows would delay the first batch of a run of small images."""


def keep_idle_processes() -> None:
    """Have the Ray that is started next by this process keep idle processes, see `task_cpus`."""
    os.environ.setdefault(IDLE_VARIABLE, str(1000 * KEPT_IDLE_S))


def task_cpus() -> float:
    """CPUs that a decoding task reserves.

    Ray Data's scheduler takes tens of milliseconds to give a CPU its next task. With half a CPU for
    each, a second task uses the CPU meanwhile. That makes more processes than CPUs, of which Ray
    ends those that are idle for a second. A new one takes seconds to start, all later blocks wait
    for its block, so more tasks are held back and more processes idle. Hence half a CPU only where
    Ray was told to keep them for a minute or more. Its processes inherit the variable for that.
    """
    kept_ms = os.environ.get(IDLE_VARIABLE, "")
    return 0.5 if kept_ms.isdecimal() and int(kept_ms) >= 60_000 else 1.0


def execution_options() -> ExecutionOptions:
    """What the plan's order rests on: blocks leave the stream in the order of the plan."""
    return ExecutionOptions(preserve_order=True)


def rows_per_block(batch_bytes: int) -> int:
    """How many batches of the given size (bytes of pixels) go into one block."""
    return max(1, min(MAX_ROWS_PER_BLOCK, MAX_BLOCK_BYTES // max(1, batch_bytes)))


def stream(
    plan: RunPlan,
    loader: BatchLoader,
    *,
    batch_bytes: int,
    start_step: int = 0,
    validate_first: bool = False,
    cpus_per_task: float | None = None,
) -> ray.data.Dataset:
    """Make the Ray Data stream of a run from training step `start_step` on.

    The first stage hands out the numbers of the blocks, the second one plans, loads and augments:
    each decoding process makes the plan of the epoch that it is at, so nothing of the size of the
    run is ever sent anywhere.

    Args:
        plan: the whole run.
        loader: reads, decodes and augments a plan row; it travels to the decoding tasks once
            through the object store.
        batch_bytes: pixels of a typical batch, in bytes; sets the rows of a block.
        start_step: the first training step that is still to do.
        validate_first: see `RunLayout.first_round`.
        cpus_per_task: CPUs that a decoding task reserves; None: see `task_cpus`. 0 is for workers
            that leave it none: then as many tasks as there are workers share their CPUs. That is
            slow, but tasks that wait for a CPU would wait for ever, and the workers for them.

    Returns:
        A lazy dataset with one row per batch (`retina_ray.data.loading.packing.BATCH_SCHEMA`).
    """
    blocks = plan.layout.blocks(
        rows_per_block(batch_bytes), start_step, validate_first=validate_first
    )
    if cpus_per_task is None:
        cpus_per_task = task_cpus()
    loader_ref, plan_ref = ray.put(loader), ray.put((plan, blocks))

    def load(batch: pa.Table) -> pa.Table:
        keep_freed_memory()
        run, cut = _fetch(plan_ref)
        mine = [cut[block] for block in batch["id"].to_pylist() if block < len(cut)]
        if not mine:
            return BATCH_SCHEMA.empty_table()
        return _fetch(loader_ref).load_table(run.take(np.concatenate(mine)))

    dataset = (
        BlockNumbers(len(blocks))
        .dataset()
        .map_batches(
            load,
            batch_format="pyarrow",
            num_cpus=cpus_per_task,
            # Otherwise Ray Data asks for the mean size of the blocks so far, each time another one,
            # and to Ray's scheduler each would be another kind of task, on which it keeps books.
            memory=MAX_BLOCK_BYTES,
            compute=TaskPoolStrategy(size=None if cpus_per_task else plan.num_workers),
        )
    )
    # Ray Data would cut a large block in two, and the order would no longer be round robin.
    dataset.context.target_max_block_size = None
    dataset.context.execution_options = execution_options()
    dataset.context.enable_progress_bars = False
    if hasattr(dataset.context, "issue_detectors_config"):
        # One of them warns that a process uses more memory than a task reserves, that of a block.
        dataset.context.issue_detectors_config.detectors = []
    if hasattr(dataset.context, "custom_execution_callback_classes"):  # newer versions of Ray
        dataset.context.custom_execution_callback_classes = [Rest]
    return dataset


REST_S = 0.02


class Rest(ExecutionCallback):
    """Lets Ray Data's scheduler rest where nothing happened since it looked last.

    It looks again as soon as some task has something ready. While its buffers are full, which is
    all the time where training is slower than decoding, a task may keep what it has, and the
    scheduler would look hundreds of times a second. Ray Data calls this after each look.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[int, ...]] = []
        self._at = 0.0

    def on_execution_step(self, executor: Any) -> None:
        """Sleep a moment if this look came at once after the last one and saw the same."""
        seen = progress_counts(executor)
        if seen == self._seen and time.monotonic() - self._at < REST_S:
            time.sleep(REST_S)
        self._seen, self._at = seen, time.monotonic()


class BlockNumbers(Datasource):
    """Hands out the numbers 0 to n - 1, each as a block of its own.

    `ray.data.range` would need a task for each: with some hundred thousand of them, which a long
    run has, Ray Data does not come to its first batch within minutes. Here a task hands out many.
    """

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._num_tasks = max(1, -(-num_blocks // NUMBERS_PER_TASK))
        # Ray Data cuts the rows of every task into equally many blocks.
        self._per_task = max(1, -(-num_blocks // self._num_tasks))

    def dataset(self) -> ray.data.Dataset:
        """The numbers as a dataset; the last task pads its share with numbers of n and more."""
        return ray.data.read_datasource(
            self,
            override_num_blocks=self._num_tasks * self._per_task,
            concurrency=1,
            num_cpus=0,
        )

    def get_name(self) -> str:
        """What Ray Data calls it."""
        return "Plan"

    def estimate_inmemory_data_size(self) -> int | None:
        """Bytes of all numbers."""
        return 8 * self._num_blocks

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: ray.data.DataContext | None = None,
    ) -> list[ReadTask]:
        """The tasks, in order."""
        del parallelism, data_context
        tasks = []
        for number in range(self._num_tasks):
            first = number * self._per_task
            metadata = BlockMetadata(
                num_rows=self._per_task,
                size_bytes=8 * self._per_task,
                input_files=None,
                exec_stats=None,
            )
            numbers = functools.partial(_numbers, first, first + self._per_task)
            tasks.append(ReadTask(numbers, metadata, per_task_row_limit=per_task_row_limit))
        return tasks


def _numbers(first: int, end: int) -> list[pa.Table]:
    return [pa.table({"id": pa.array(np.arange(first, end))})]


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
