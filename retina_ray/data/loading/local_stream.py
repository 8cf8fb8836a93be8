"""The plan's batches without Ray, for evaluation and prediction on one machine: the same bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from retina_ray.data.loading.batch_loader import BatchLoader
from retina_ray.data.loading.unpack import PlannedBatch, unpack_batch


def iterate(
    plan_rows: pa.Table, loader: BatchLoader, *, num_threads: int = 1, pin_memory: bool = False
) -> Iterator[PlannedBatch]:
    """Load plan rows in background threads and hand the batches out in their order.

    Args:
        plan_rows: rows of a plan, e.g. `RunPlan.worker_rows(0)`.
        loader: makes the batches.
        num_threads: rows loaded at once; one more waits ready. Closing the iterator early stops
            the threads after the rows that they are at.
        pin_memory: see `unpack_batch`.

    Yields:
        A batch for each row.

    Raises:
        ValueError: `num_threads` is below 1.
        DataError: from the loader, when its row's turn comes.
    """
    if num_threads < 1:
        raise ValueError(f"num_threads = {num_threads} must be at least 1")
    return _iterate(plan_rows, loader, num_threads, pin_memory)


def _iterate(
    plan_rows: pa.Table, loader: BatchLoader, num_threads: int, pin_memory: bool
) -> Iterator[PlannedBatch]:
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="batches")
    waiting: deque[Future[pa.Table]] = deque()
    try:
        for start in range(plan_rows.num_rows):
            waiting.append(pool.submit(loader.load_table, plan_rows.slice(start, 1)))
            if len(waiting) > num_threads:
                yield unpack_batch(waiting.popleft().result(), pin_memory=pin_memory)
        while waiting:
            yield unpack_batch(waiting.popleft().result(), pin_memory=pin_memory)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
