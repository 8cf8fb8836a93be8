"""The stream of a run through Ray Data: whose rows, in which order, byte for byte the same."""

import contextlib
import os
import threading
import time

import pytest
import ray
from ray._private.internal_api import get_memory_info_reply
from ray._private.state import state as ray_state
from ray.data import ExecutionResources
from ray.remote_function import RemoteFunction
from streams import consume, digest, wait_until

from retina_ray.config import with_overrides
from retina_ray.data.loading.batch_loader import BatchLoader
from retina_ray.data.loading.local_stream import iterate
from retina_ray.data.loading.ray_stream import (
    IDLE_VARIABLE,
    MAX_ROWS_PER_BLOCK,
    NUMBERS_PER_TASK,
    BlockNumbers,
    Rest,
    execution_options,
    rows_per_block,
    stream,
    task_cpus,
)
from retina_ray.data.loading.stream_reader import iterate_shard
from retina_ray.data.plan.run_plan import RunPlan
from retina_ray.data.prepared.dataset import PreparedDataset

pytestmark = pytest.mark.ray

STORE_BYTES = 200 * 2**20

EVERYTHING = {
    "rotate_90": True,
    "crop_prob": 0.5,
    "scale_jitter": (0.5, 1.5),
    "mosaic_prob": 0.3,
    "mixup_prob": 0.3,
    "brightness": 0.3,
    "hue": 0.1,
}


@pytest.fixture(scope="module")
def small_ray():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(IDLE_VARIABLE, "600000")
        ray.init("local", num_cpus=4, object_store_memory=STORE_BYTES, include_dashboard=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def dataset(shapes_set):
    return PreparedDataset.open(shapes_set)


def make(config, dataset):
    index = dataset.index()
    plan = RunPlan.from_config(config, index, index, dataset.image_classes())
    return plan, BatchLoader.from_config(config, dataset, dataset, index, index)


def streamed(plan, loader, *, start_step=0, tasks=None):
    """What each worker gets, the workers side by side."""
    dataset = stream(plan, loader, batch_bytes=3 * 64 * 64 * 4, start_step=start_step)
    if tasks is not None:
        options = execution_options()
        options.resource_limits = ExecutionResources(cpu=tasks)
        dataset.context.execution_options = options
    if plan.num_workers == 1:
        return [[digest(p) for p in iterate_shard(dataset)]]
    return consume(plan, dataset, start_step=start_step)


def store_stats():
    return get_memory_info_reply(ray_state).store_stats


def test_the_same_bytes_whoever_decodes_and_after_a_resume(small_ray, dataset, tiny_config):
    config = with_overrides(
        tiny_config(**{"train.epochs": 3, "input.sampling": "class_balanced"}),
        {f"input.augment.{name}": value for name, value in EVERYTHING.items()},
    )
    plan, loader = make(config, dataset)
    expected = [digest(p) for p in iterate(plan.worker_rows(0), loader, num_threads=3)]
    assert [index for index, _ in expected] == list(range(len(plan)))
    assert len({content for _, content in expected}) > plan.num_steps
    assert streamed(plan, loader, tasks=1) == [expected]
    assert streamed(plan, loader, tasks=4) == [expected]
    for step in (2, plan.steps_per_epoch, 5):
        first = plan.layout.worker_rows(0, step)[0]
        assert streamed(plan, loader, start_step=step) == [expected[first:]]


def test_each_worker_gets_its_rows_in_their_order(small_ray, dataset, tiny_config):
    config = tiny_config(**{"train.num_workers": 2, "train.epochs": 15})
    plan, loader = make(config, dataset)
    whole = dict(digest(p) for p in iterate(plan.table, loader))
    for start_step in (0, 7):
        first = plan.layout.worker_rows(0, start_step)[0]
        for rank, got in enumerate(streamed(plan, loader, start_step=start_step)):
            assert [index for index, _ in got] == list(range(first + rank, len(plan), 2))
            assert all(whole[index] == content for index, content in got)


def test_large_blocks_stay_whole(small_ray, dataset, tiny_config, monkeypatch):
    """Ray Data cuts what is larger than this, unless it is told not to."""
    monkeypatch.setattr(ray.data.DataContext.get_current(), "target_max_block_size", 2**12)
    plan, loader = make(tiny_config(**{"train.epochs": 3}), dataset)
    blocks = stream(plan, loader, batch_bytes=1).iter_batches(
        batch_size=None, batch_format="pyarrow"
    )
    expected = [len(rows) for rows in plan.layout.blocks(rows_per_block(1))]
    assert max(expected) > 1
    assert [block.num_rows for block in blocks] == expected


def test_the_scheduler_is_watched_for_something_to_do(small_ray, dataset, tiny_config, monkeypatch):
    seen, look = [], Rest.on_execution_step

    def watched(self, executor):
        look(self, executor)
        seen.append(self._seen)

    monkeypatch.setattr(Rest, "on_execution_step", watched)
    plan, loader = make(tiny_config(), dataset)
    got = list(iterate_shard(stream(plan, loader, batch_bytes=2**40)))
    assert len(got) == len(plan)
    # Of the last stage: tasks submitted and finished, outputs made and taken.
    assert [counts[-1][:3] for counts in seen][-1] == (len(plan),) * 3


def test_more_decoding_processes_than_cpus_outlive_a_pause(small_ray, tmp_path):
    """Ray itself ends, after a second, those beyond one for each free CPU."""

    @ray.remote(num_cpus=task_cpus())
    def process(folder, number):
        (folder / str(number)).touch()
        while len(list(folder.iterdir())) < 8:  # until as many run at once
            time.sleep(0.02)
        return os.getpid(), task_cpus()

    def all_at_once(folder):
        folder.mkdir()
        return set(ray.get([process.remote(folder, number) for number in range(8)], timeout=60))

    before = all_at_once(tmp_path / "before")
    assert len(before) == 8
    assert {cpus for _, cpus in before} == {0.5}
    time.sleep(2.5)
    assert all_at_once(tmp_path / "after") == before


def test_to_ray_all_decoding_tasks_are_of_one_kind(small_ray, dataset, tiny_config, monkeypatch):
    asked, submit = [], RemoteFunction._remote

    def noted(self, *args, **options):
        if options.get("name") == "MapBatches(load)":
            asked.append((options["num_cpus"], options["memory"]))
        return submit(self, *args, **options)

    monkeypatch.setattr(RemoteFunction, "_remote", noted)
    plan, loader = make(tiny_config(**{"train.epochs": 3}), dataset)
    blocks = plan.layout.blocks(1)
    assert len(list(iterate_shard(stream(plan, loader, batch_bytes=2**40)))) == len(plan)
    assert len(asked) == len(blocks)
    assert len(set(asked)) == 1


def test_many_blocks_are_named_by_few_tasks(small_ray):
    num_blocks = 2 * NUMBERS_PER_TASK + 7
    source = BlockNumbers(num_blocks)
    tasks = source.get_read_tasks(1)
    assert len(tasks) == 3
    numbers = [n for task in tasks for table in task() for n in table["id"].to_pylist()]
    assert numbers[:num_blocks] == list(range(num_blocks))
    assert len(numbers) - num_blocks < 3, "padding so that all tasks name equally many"
    assert [len(t["id"]) for task in tasks for t in task()] == [len(numbers) // 3] * 3


def test_a_slow_consumer_does_not_fill_the_store(small_ray, dataset, tiny_config):
    """Ray Data gives a stream half of the store.

    On top come the block that the worker is using, and one on its way to it.
    """
    config = tiny_config(
        **{
            "input.train_sizes_px": (512,),
            "input.train_max_size_px": 512,
            "input.eval_size_px": 512,
            "input.eval_max_size_px": 512,
            "train.epochs": 200,
        }
    )
    plan, loader = make(config, dataset)
    batch_bytes = 3 * 512 * 512 * 4
    block_bytes = batch_bytes * max(map(len, plan.layout.blocks(rows_per_block(batch_bytes))))
    before = store_stats()
    (shard,) = stream(plan, loader, batch_bytes=batch_bytes).streaming_split(1, equal=True)

    def used():
        return store_stats().object_store_bytes_used - before.object_store_bytes_used

    with contextlib.closing(iterate_shard(shard)) as batches:
        for _ in range(2):
            for _ in range(MAX_ROWS_PER_BLOCK):
                next(batches)
            wait_until(lambda: used() > STORE_BYTES / 4)  # decoding runs ahead
            assert until_settled(used) <= STORE_BYTES / 2 + 2 * block_bytes
    assert store_stats().spilled_bytes_total == before.spilled_bytes_total


def until_settled(figure):
    """The largest value, once none was larger for two seconds."""
    largest, since = figure(), time.monotonic()
    while time.monotonic() < since + 2:
        time.sleep(0.1)
        now = figure()
        if now > largest:
            largest, since = now, time.monotonic()
    return largest


def test_a_closed_stream_leaves_no_thread_that_fetches(small_ray, dataset, tiny_config):
    """Such a thread ends the process where `ray.shutdown` comes at once."""
    others = set(threading.enumerate())
    plan, loader = make(tiny_config(**{"train.epochs": 200}), dataset)
    with contextlib.closing(
        iterate_shard(stream(plan, loader, batch_bytes=3 * 64 * 64 * 4))
    ) as batches:
        next(batches)
        assert fetching_threads(others), "Ray Data calls its threads otherwise: see iterate_shard"
    assert not fetching_threads(others)


def fetching_threads(others):
    new = (thread for thread in threading.enumerate() if thread not in others)
    return [thread for thread in new if thread.name == "iter_threaded"]
