"""Who writes the shards of an import: this process, or tasks on all CPUs of a Ray cluster.

On Ray, each shard is a task of one CPU. What is written does not depend on how many there are, see
`retina_ray.data.importers.writing.write_shard`; so this decides about time alone.

Ray is imported where it is needed: it takes seconds to start, which small data sets do not pay.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from retina_ray.data.importers.writing.shard_tasks import ShardResult, ShardTask

Task = TypeVar("Task")

MapShards = Callable[
    [Callable[..., Iterator[int | ShardResult]], Sequence[ShardTask]], Iterator[int | ShardResult]
]
"""Applies `write_shard` to tasks, anywhere, and passes on what it yields, in any order."""

MIN_IMAGES_FOR_RAY = 20_000
"""Below it, threads of this process are done before Ray would have paid for its start."""

_MIN_CPUS_FOR_RAY = 4
_THREADS_PER_TASK = 2
"""One reads or waits for the storage while the other decodes, on the one CPU of a task."""
_REPORT_EVERY_S = 0.5


def shard_mapper(num_workers: int | None) -> MapShards:
    """Choose who writes the shards.

    Args:
        num_workers: 0: this process; more: so many Ray tasks at once. None: this process, or Ray on
            all its CPUs where there are several shards of at least `MIN_IMAGES_FOR_RAY` images in
            all, and a cluster (`RAY_ADDRESS`) or a machine of more than four CPUs.
    """
    if num_workers is None:
        return _map_by_size
    return partial(ray_map, num_workers=num_workers) if num_workers else map_in_process


def map_in_process(
    function: Callable[..., Iterator[int | ShardResult]], tasks: Sequence[ShardTask]
) -> Iterator[int | ShardResult]:
    """Run the tasks one after the other in this process; images are decoded in threads.

    Yields:
        What the function yields: numbers of images that are done, and results.
    """
    for task in tasks:
        yield from function(task)


def _map_by_size(
    function: Callable[..., Iterator[int | ShardResult]], tasks: Sequence[ShardTask]
) -> Iterator[int | ShardResult]:
    """Run small imports in this process, large ones on Ray."""
    num_images = sum(len(task.images) for task in tasks)
    has_cpus = bool(os.environ.get("RAY_ADDRESS")) or (os.cpu_count() or 1) > _MIN_CPUS_FOR_RAY
    if len(tasks) > 1 and num_images >= MIN_IMAGES_FOR_RAY and has_cpus:
        return ray_map(function, tasks)
    return map_in_process(function, tasks)


def ray_map(
    function: Callable[..., Iterator[Any]], tasks: Sequence[Task], *, num_workers: int | None = None
) -> Iterator[Any]:
    """Run the tasks on Ray, and pass on what they yield as it comes.

    Joins the cluster that `RAY_ADDRESS` names, or starts Ray on this machine. A task whose node is
    lost runs again.

    Args:
        function: of a task and `num_threads`; yields numbers of images that are done, and results.
        tasks: any number; those of one shard each are sent out as others end.
        num_workers: tasks at a time; None: as many as the cluster has CPUs, and as many again in
            the queue, so that an autoscaler sees them.

    Yields:
        Numbers of images, summed over half a second, and results.

    Raises:
        Exception: what a task raised; the others are cancelled.
    """
    if not tasks:
        return
    import ray
    from ray.exceptions import RayTaskError

    from retina_ray.ray_internals.cluster import start_ray

    if not ray.is_initialized():
        start_ray(max(os.cpu_count() or 1, num_workers or 1))
    run = ray.remote(num_cpus=1, num_returns="streaming")(_in_steps)
    function = partial(function, num_threads=_THREADS_PER_TASK)
    waiting: deque[Task] = deque(tasks)
    running: list[Any] = []
    try:
        while waiting or running:
            limit = num_workers or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while waiting and len(running) < limit:
                running.append(run.remote(function, waiting.popleft()))
            ready: list[Any] = ray.wait(running, num_returns=1, timeout=_REPORT_EVERY_S)[0]
            for stream in ready:
                try:
                    yield ray.get(next(stream))
                except StopIteration:
                    running.remove(stream)
                except RayTaskError as error:
                    raise error.cause from error
    finally:
        for stream in running:
            ray.cancel(stream)


def _in_steps(function: Callable[[Any], Iterator[Any]], task: Any) -> Iterator[Any]:
    """Run one task; its counts are summed up, since each value that is yielded costs an object."""
    done, last = 0, time.monotonic()
    for event in function(task):
        if isinstance(event, int):
            done += event
            if time.monotonic() - last < _REPORT_EVERY_S:
                continue
        if done:
            yield done
            done, last = 0, time.monotonic()
        if not isinstance(event, int):
            yield event
