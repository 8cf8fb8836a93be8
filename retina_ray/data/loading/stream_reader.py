"""Where a stream ends: the batches of one worker, unpacked, and held against the plan's order."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retina_ray.data.loading.unpack import PlannedBatch


_LONGEST_FETCH_S = 10.0
"""How long a thread of a closed stream is waited for."""

_log = logging.getLogger(__name__)


def iterate_shard(
    shard: Any, *, prefetch_blocks: int = 1, pin_memory: bool = False
) -> Iterator[PlannedBatch]:
    """Unpack the batches of one worker's part of the stream.

    Whoever does not read it to its end should close it before calling `ray.shutdown`.

    Args:
        shard: what `ray.train.get_dataset_shard` returned (or a dataset).
        prefetch_blocks: blocks fetched ahead of the one that is consumed.
        pin_memory: copy to page-locked memory, for asynchronous copies to a CUDA device.
    """
    # The one thing here that needs torch: whatever only names these functions does without.
    from retina_ray.data.loading.unpack import unpack_batch

    others = _fetching_threads()
    # Whole blocks, cut here: where Ray Data cuts, it first copies all that is left of the block,
    # once for each batch.
    blocks = iter(
        shard.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch_blocks
        )
    )
    own: set[threading.Thread] | None = None
    try:
        for block in blocks:
            if own is None:
                own = _fetching_threads() - others
            for row in range(block.num_rows):
                yield unpack_batch(block.slice(row, 1), pin_memory=pin_memory)
        own = set()  # at the end of a stream they have nothing left to fetch
    finally:
        if own is None:
            own = _fetching_threads() - others
        try:
            blocks.close()
        finally:
            _await(own)


def _fetching_threads() -> set[threading.Thread]:
    """The threads of this process in which Ray Data fetches blocks."""
    return {thread for thread in threading.enumerate() if thread.name == "iter_threaded"}


def _await(threads: Iterable[threading.Thread]) -> None:
    """Wait for the threads of a closed stream.

    Ray Data tells them to end, and no more. One that is still fetching when `ray.shutdown` is
    called ends the process. Where streams began at the same time, one that is closed waits for the
    threads of the others as well: Ray's threads do not say whose they are.
    """
    until = time.monotonic() + _LONGEST_FETCH_S
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
        if thread.is_alive():
            _log.warning("a thread of Ray Data still fetches after %.0f s", _LONGEST_FETCH_S)


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
