import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from retina_ray.data import pipeline
from retina_ray.data.image_source import StoredImage
from retina_ray.data.packing import pack_batch
from retina_ray.data.pipeline import (
    IDLE_VARIABLE,
    MAX_ROWS_PER_BLOCK,
    Rest,
    expect_order,
    iterate_shard,
    keep_idle_processes,
    rows_per_block,
    task_cpus,
)
from retina_ray.data.transforms import Sample
from retina_ray.data.unpack import unpack_batch


def planned(*indices):
    return [SimpleNamespace(batch=SimpleNamespace(plan_index=i)) for i in indices]


def test_batches_in_the_plans_order_pass():
    assert [p.batch.plan_index for p in expect_order(planned(3, 5, 7), [3, 5, 7])] == [3, 5, 7]
    assert list(expect_order([], [])) == []


@pytest.mark.parametrize("got", [(3, 7, 5), (3, 3, 5), (4, 5, 7)])
def test_another_order_is_an_error(got):
    with pytest.raises(RuntimeError, match="lost the plan's order"):
        list(expect_order(planned(*got), [3, 5, 7]))


def test_a_stream_that_ends_early_is_an_error():
    batches = expect_order(planned(3, 5), [3, 5, 7])
    assert [next(batches).batch.plan_index for _ in range(2)] == [3, 5]
    with pytest.raises(RuntimeError, match="expected plan row 7, got the end of the stream"):
        next(batches)


def test_blocks_of_few_large_or_many_small_batches():
    assert rows_per_block(1000) == MAX_ROWS_PER_BLOCK
    assert rows_per_block(16 * 800 * 1067 * 3) == 2
    assert rows_per_block(16 * 800 * 1333 * 3) == 1
    assert rows_per_block(2**40) == 1
    for batch_bytes in (10**5, 10**6, 5 * 10**6, 3 * 10**7):
        assert rows_per_block(batch_bytes) * batch_bytes <= 96 * 2**20


@pytest.mark.parametrize(
    ("kept_ms", "cpus"), [(None, 1.0), ("1000", 1.0), ("a minute", 1.0), ("60000", 0.5)]
)
def test_decoding_shares_cpus_only_where_ray_keeps_idle_processes(monkeypatch, kept_ms, cpus):
    monkeypatch.delenv(IDLE_VARIABLE, raising=False)
    if kept_ms is not None:
        monkeypatch.setenv(IDLE_VARIABLE, kept_ms)
    assert task_cpus() == cpus


def test_decoding_processes_do_not_import_torch():
    modules = "retina_ray.data.pipeline, retina_ray.data.batches, retina_ray.data.plan"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_what_the_user_set_stays(monkeypatch):
    monkeypatch.setenv(IDLE_VARIABLE, "2000")
    keep_idle_processes()
    assert task_cpus() == 1.0
    monkeypatch.delenv(IDLE_VARIABLE)
    keep_idle_processes()
    assert task_cpus() == 0.5


def test_the_scheduler_rests_only_where_it_looks_again_at_once_and_sees_the_same(monkeypatch):
    clock, rests = [100.0], []
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(pipeline.time, "sleep", rests.append)
    metrics = SimpleNamespace(
        num_tasks_submitted=2,
        num_tasks_finished=1,
        num_task_outputs_generated=1,
        num_outputs_taken=1,
    )
    executor = SimpleNamespace(_topology=[SimpleNamespace(metrics=metrics)])
    rest = Rest()

    def look(after_s):
        clock[0] += after_s
        rests.clear()
        rest.on_execution_step(executor)
        return rests == [pipeline.REST_S]

    assert not look(0.001)  # the first one
    assert look(0.001)
    assert look(0.001)
    metrics.num_outputs_taken += 1
    assert not look(0.001)
    assert not look(0.1)  # it waited for its tasks by itself
    assert look(0.001)


# Page-locked memory, which copies to a GPU need to run beside the computation


@pytest.fixture
def one_batch():
    """Two pictures of different sizes, one of them without a box."""
    rng = np.random.default_rng(0)
    used = []
    for number, (height, width, num_boxes) in enumerate([(40, 30, 2), (24, 50, 0)]):
        boxes = np.arange(4 * num_boxes, dtype=np.float32).reshape(-1, 4)
        labels = np.arange(num_boxes, dtype=np.int32)
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        stored = StoredImage(b"", f"{number}.jpg", number, (height, width), boxes, labels)
        used.append((stored, Sample(pixels, boxes, labels)))
    row = {"plan_index": 3, "kind": "train", "epoch": 1, "step": 2, "worker": 0, "num_fill": 0}
    return pack_batch(row, used, [], size_divisibility_px=32)


def tensors_of(planned):
    images, targets = planned.batch.images, planned.batch.targets
    return [images.pixels, images.sizes, targets.boxes, targets.labels]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_batches_hold_what_others_hold(one_batch):
    plain = unpack_batch(one_batch)
    (pinned,) = iterate_shard(OneBlock(one_batch), pin_memory=True)
    assert not any(tensor.is_pinned() for tensor in tensors_of(plain))
    assert all(tensor.is_pinned() for tensor in tensors_of(pinned))
    for ours, theirs in zip(tensors_of(pinned), tensors_of(plain), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
    on_device = pinned.to("cuda")
    for ours, theirs in zip(tensors_of(on_device), tensors_of(plain), strict=True):
        assert torch.equal(ours.cpu(), theirs)


@pytest.mark.parametrize("pin_memory", [False, True])
def test_all_tensors_of_a_batch_are_pinned_or_none(one_batch, monkeypatch, pin_memory):
    """Where there is no GPU: that the copies are asked for, and are what comes out."""
    copies = []

    def pin(tensor):
        copies.append(tensor.clone())
        return copies[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    plain = unpack_batch(one_batch)
    assert not copies
    (planned,) = iterate_shard(OneBlock(one_batch), pin_memory=pin_memory)
    assert [any(t is copy for copy in copies) for t in tensors_of(planned)] == [pin_memory] * 4
    for ours, theirs in zip(tensors_of(planned), tensors_of(plain), strict=True):
        assert torch.equal(ours, theirs)
    assert planned.batch.images.pixels.is_contiguous(memory_format=torch.channels_last)


class OneBlock:
    """A worker's part of a stream that holds one block."""

    def __init__(self, table):
        self._table = table

    def iter_batches(self, **options):
        assert options["batch_size"] is None
        yield self._table
