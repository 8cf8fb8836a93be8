import contextlib
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from retina_ray.data.augment.transforms import LabeledImage
from retina_ray.data.loading import stream_reader as arrivals
from retina_ray.data.loading.packing import pack_batch
from retina_ray.data.loading.stored_images import StoredImage
from retina_ray.data.loading.stream_reader import expect_order, iterate_shard
from retina_ray.data.loading.unpack import unpack_batch


def planned(*indices):
    return [SimpleNamespace(batch=SimpleNamespace(plan_index=i)) for i in indices]


def test_batches_in_the_plans_order_pass():
    assert [p.batch.plan_index for p in expect_order(planned(3, 5, 7), [3, 5, 7])] == [3, 5, 7]
    assert list(expect_order([], [])) == []


@pytest.mark.parametrize("got", [(3, 7, 5), (3, 3, 5), (4, 5, 7), (3, 5)])
def test_another_order_or_an_early_end_is_an_error(got):
    message = "lost the plan's order" if len(got) == 3 else "plan row 7, got the end of the stream"
    with pytest.raises(RuntimeError, match=message):
        list(expect_order(planned(*got), [3, 5, 7]))


# Threads of Ray Data, which it tells to end, and leaves to themselves


class Fetched:
    """A stream without an end whose thread, as Ray's do, ends a while after it was told to."""

    def __init__(self, table):
        self._table = table
        self.told = threading.Event()
        self.thread = threading.Thread(target=self._fetch, name="iter_threaded", daemon=True)

    def _fetch(self):
        self.told.wait()
        time.sleep(0.3)

    def iter_batches(self, **options):
        self.thread.start()
        try:
            while True:
                yield self._table
        finally:
            self.told.set()


def test_a_closed_stream_has_no_thread_left_and_leaves_others_alone(one_batch):
    first, second = Fetched(one_batch), Fetched(one_batch)
    goes_on = iterate_shard(first)
    next(goes_on)
    closed = iterate_shard(second)
    next(closed)
    closed.close()
    assert not second.thread.is_alive()
    assert first.thread.is_alive()
    assert next(goes_on).batch.plan_index == 3
    goes_on.close()
    assert not first.thread.is_alive()


def test_a_thread_that_goes_on_is_waited_for_so_long_and_named(one_batch, monkeypatch, caplog):
    monkeypatch.setattr(arrivals, "_LONGEST_FETCH_S", 0.05)
    shard = Fetched(one_batch)
    batches = iterate_shard(shard)
    next(batches)
    batches.close()
    assert shard.thread.is_alive()
    assert "still fetches" in caplog.text
    shard.thread.join()


def test_a_stream_that_fails_at_its_first_block_has_no_thread_left(one_batch):
    class Failing(Fetched):
        def iter_batches(self, **options):
            self.thread.start()
            self.told.set()
            raise OSError("no block")
            yield

    shard = Failing(one_batch)
    with pytest.raises(OSError, match="no block"):
        next(iterate_shard(shard))
    assert not shard.thread.is_alive()


def test_a_stream_ends_its_threads_where_its_consumer_fails(one_batch):
    shard = Fetched(one_batch)
    with pytest.raises(RuntimeError, match="lost the plan's order"):
        with contextlib.closing(iterate_shard(shard)) as batches:
            list(expect_order(batches, [3, 4]))
    assert not shard.thread.is_alive()


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
        used.append((stored, LabeledImage(pixels, boxes, labels)))
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
