"""The rows of a stream as its workers get them, and what tests compare of them."""

import hashlib
import sys
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import ray.cloudpickle

from retina_ray.data.loading.stream_reader import expect_order, iterate_shard

# Workers cannot import it: what they call of it travels by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def digest(planned) -> tuple[int, str]:
    """Plan index and a hash of all that a worker gets of a batch."""
    batch = planned.batch
    content = hashlib.sha256(batch.images.pixels.contiguous().numpy().tobytes())
    for part in (batch.images.sizes, batch.targets.boxes, batch.targets.labels):
        content.update(part.numpy().tobytes())
    content.update(repr((batch.image_ids, planned.kind, planned.step)).encode())
    return batch.plan_index, content.hexdigest()


def consume(plan, dataset, *, start_step=0, after_rows=None):
    """What each of the plan's workers gets, side by side.

    After the first one's row k `after_rows[k]()` is called, and then that worker goes on.
    """
    got = [[] for _ in range(plan.num_workers)]
    shards = dataset.streaming_split(plan.num_workers, equal=True)

    def work(rank):
        mine = plan.layout.worker_rows(rank, start_step)
        for planned in expect_order(iterate_shard(shards[rank]), mine):
            got[rank].append(digest(planned))
            if rank == 0 and len(got[0]) in (after_rows or {}):
                after_rows[len(got[0])]()

    pool = ThreadPoolExecutor(plan.num_workers)
    runs = [pool.submit(work, rank) for rank in range(plan.num_workers)]
    done, others = wait(runs, timeout=240, return_when=FIRST_EXCEPTION)
    pool.shutdown(wait=False, cancel_futures=True)
    for run in done:
        run.result()
    assert not others, "the stream stands still"
    return got


def wait_until(is_so):
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)
