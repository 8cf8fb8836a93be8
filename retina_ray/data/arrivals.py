"""Where a stream ends: the batches of one worker, unpacked, and held against the plan's order."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retina_ray.data.unpack import PlannedBatch

__all__ = ["expect_order", "iterate_shard"]

_LONGEST_FETCH_S = 30.0
"""How long a thread of a closed stream is waited for."""


def iterate_shard(
    shard: Any, *, prefetch_blocks: int = 1, pin_memory: bool = False
) -> Iterator[PlannedBatch]:
    """Unpack the batches of one worker's part of the stream.

    Args:
        shard: what `ray.train.get_dataset_shard` returned (or a dataset).
        prefetch_blocks: blocks fetched ahead of the one that is consumed.
        pin_memory: copy to page-locked memory, for asynchronous copies to a CUDA device.
    """
    # The one thing here that needs torch: whatever only names these functions does without.
    from retina_ray.data.unpack import unpack_batch

    others = set(threading.enumerate())
    # Whole blocks, cut here: where Ray Data cuts, it first copies all that is left of the block,
    # once for each batch.
    blocks = iter(
        shard.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch_blocks
        )
    )
    fetching: list[threading.Thread] = []
    try:
        for block in blocks:
            fetching = fetching or _fetching_threads(others)
            for row in range(block.num_rows):
                yield unpack_batch(block.slice(row, 1), pin_memory=pin_memory)
    finally:
        # Ray Data closes the stream, but does not wait for its threads. One that is still fetching
        # when `ray.shutdown` is called ends the process.
        blocks.close()
        for thread in fetching:
            thread.join(_LONGEST_FETCH_S)


def _fetching_threads(others: Collection[threading.Thread]) -> list[threading.Thread]:
    """The threads in which Ray Data fetches blocks, but for those of other streams."""
    return [
        thread
        for thread in threading.enumerate()
        if thread.name == "iter_threaded" and thread not in others
    ]


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
