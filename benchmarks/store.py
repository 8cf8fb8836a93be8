"""How much of the object store does a stream take, and does it pause between epochs?

A stream as a worker gets it, over drawn images of 800 px, on a Ray of its own with a store of a
known size. The consumers are slow: each takes a batch, waits as long as a training step might, and
takes the next, while decoding could run far ahead. Twice a second Ray is asked how much of its
store is in use, and whether anything was written to the disk for want of room.

Then one consumer whose steps are just longer than the decoding of a batch goes through some epochs
of training and validation; measured is what it waits for the first batch of a part of the plan, and
for the others.

python benchmarks/store.py
python benchmarks/store.py --out benchmarks/results/store_MACHINE_DATE.md
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
import typer
from measure import MIB, OutOption, QuickOption, Spread
from page import Page
from ray._private.internal_api import get_memory_info_reply
from ray._private.state import state as ray_state

from retina_ray.config import ExperimentConfig, with_overrides
from retina_ray.data.loading.batch_loader import BatchLoader
from retina_ray.data.loading.ray_stream import keep_idle_processes, rows_per_block, stream
from retina_ray.data.loading.stream_reader import expect_order, iterate_shard
from retina_ray.data.loading.unpack import PlannedBatch
from retina_ray.data.plan.run_plan import RunPlan
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.synthetic.prepare import make_shapes

CORES = len(os.sched_getaffinity(0))
SAMPLE_S = 0.5
SETTLED_S = 10.0
"""What is held by then is what running ahead comes to."""


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Attributes:
        image_px: side of the drawn images, and of those in a batch.
        num_images: of the set, which is training and validation set at once.
        stores_mib: sizes of the object store.
        watched_s: how long each slow consumer is watched from its first batch on.
        step_s: how long a slow consumer keeps a batch.
        epochs: of the run that is timed.
    """

    image_px: int
    num_images: int
    stores_mib: tuple[int, ...]
    watched_s: float
    step_s: float
    epochs: int


WHOLE = Size(800, 48, (1024, 2048), 40.0, 2.0, 8)
SMALL = Size(256, 32, (512,), 8.0, 0.5, 2)


@dataclass
class Store:
    """The object store of the Ray that runs, looked at from a thread.

    Attributes:
        used_mib: what was in use, a figure for each look.
        spilled_mib: what was written to the disk so far.
    """

    used_mib: list[float] = field(default_factory=list)
    spilled_mib: float = 0.0

    def look(self) -> None:
        """Ask Ray."""
        stats = get_memory_info_reply(ray_state).store_stats
        self.used_mib.append(stats.object_store_bytes_used / MIB)
        self.spilled_mib = stats.spilled_bytes_total / MIB

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look again and again while the block runs."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(SAMPLE_S):
                self.look()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextlib.contextmanager
def own_ray(store_mib: int) -> Iterator[None]:
    """A Ray with a store of this size, as the scripts start it."""
    keep_idle_processes()
    ray.init("local", num_cpus=CORES, object_store_memory=store_mib * MIB, include_dashboard=False)
    try:
        yield
    finally:
        ray.shutdown()


def config_of(size: Size, **settings: Any) -> ExperimentConfig:
    """Pictures as large as they are drawn, plain flips."""
    px = size.image_px
    options = {
        "input.train_sizes_px": [px],
        "input.train_max_size_px": px,
        "input.eval_size_px": px,
        "input.eval_max_size_px": px,
    }
    return with_overrides(ExperimentConfig(), {**options, **settings})


def stream_of(config: ExperimentConfig, dataset: PreparedDataset) -> tuple[RunPlan, Any, int]:
    """A run's plan, its stream, and the bytes of a batch's pixels."""
    index = dataset.index()
    plan = RunPlan.from_config(config, index, index)
    loader = BatchLoader.from_config(config, dataset, dataset, index, index)
    images = config.train.batch_size // config.train.num_workers
    batch_bytes = 3 * config.input.train_max_size_px**2 * images
    return plan, stream(plan, loader, batch_bytes=batch_bytes), batch_bytes


def shards_of(plan: RunPlan, dataset: Any) -> list[Iterable[PlannedBatch]]:
    """The part of each worker, as Ray Train hands it out."""
    shards = dataset.streaming_split(plan.num_workers, equal=True)
    return [
        expect_order(iterate_shard(shard), plan.layout.worker_rows(rank))
        for rank, shard in enumerate(shards)
    ]


def consume(batches: Iterable[PlannedBatch], step_s: float, watched_s: float) -> None:
    """Take batches slowly, for so long from the first one on."""
    until = None
    for _ in batches:
        until = time.monotonic() + watched_s if until is None else until
        if time.monotonic() >= until:
            break
        time.sleep(step_s)


def measure_store(page: Page, size: Size, dataset: PreparedDataset) -> None:
    """What slow consumers let pile up in stores of several sizes."""
    rows, worst = [], 0.0
    for store_mib in size.stores_mib:
        for num_workers in (1, 2):
            with own_ray(store_mib):
                row, share = held(size, dataset, store_mib, num_workers)
            rows.append(row)
            worst = max(worst, share)
    page.table(
        f"What slow consumers ({size.step_s:g} s a batch of 16 images over all) let pile up, "
        f"watched for {size.watched_s:g} s",
        [
            "store, MiB",
            "workers",
            "block, MiB",
            "bound, MiB",
            "peak, MiB",
            f"after {SETTLED_S:g} s, MiB",
            "spilled, MiB",
        ],
        rows,
    )
    page.text(
        "The bound is half of the store, which is what Ray Data gives a stream for all that waits "
        "and is being made, and two blocks for each worker that Ray Data does not count any more: "
        "the one whose batches it is using, and the next."
    )
    page.goal("largest share of the bound that was in use", worst, 1, at_least=False, unit="")


def held(
    size: Size, dataset: PreparedDataset, store_mib: int, num_workers: int
) -> tuple[list[str], float]:
    """One case of `measure_store`: its row, and the peak as a share of the bound."""
    config = config_of(
        size,
        **{"train.batch_size": 16, "train.epochs": 100, "train.num_workers": num_workers},
        **{"train.eval_batch_size": 16 // num_workers},
    )
    plan, dataset_stream, batch_bytes = stream_of(config, dataset)
    block_mib = rows_per_block(batch_bytes) * batch_bytes / MIB
    bound = store_mib / 2 + 2 * num_workers * block_mib
    store = Store()
    threads = [
        threading.Thread(target=consume, args=(shard, size.step_s, size.watched_s))
        for shard in shards_of(plan, dataset_stream)
    ]
    with store.watched():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    settled = store.used_mib[int(SETTLED_S / SAMPLE_S) :] or store.used_mib
    row = [
        f"{store_mib}",
        f"{num_workers}",
        f"{block_mib:.0f}",
        f"{bound:.0f}",
        f"{max(store.used_mib):.0f}",
        f"{min(settled):.0f} to {max(settled):.0f}",
        f"{store.spilled_mib:.0f}",
    ]
    return row, max(store.used_mib) / bound


def measure_waits(page: Page, size: Size, dataset: PreparedDataset) -> None:
    """What a consumer waits for a batch within the parts of the plan, and at their borders."""
    config = config_of(
        size, **{"train.batch_size": 8, "train.eval_batch_size": 8, "train.epochs": size.epochs}
    )
    with own_ray(max(size.stores_mib)):
        step_s = 1.5 * decoding_s(config, dataset)
        within, at_borders = waits_of(config, dataset, step_s)
    page.table(
        f"Waits for a batch of 8 images, {size.epochs} epochs with a validation after each, by a "
        f"consumer that keeps each for {1000 * step_s:.0f} ms",
        ["batch", "how many", "median wait (least to most), ms"],
        [
            ["within an epoch or a validation", f"{len(within)}", str(Spread.of(within))],
            ["the first of one", f"{len(at_borders)}", str(Spread.of(at_borders))],
        ],
    )
    page.text(
        f"At the first border, where the buffers may still be filling, {at_borders[0]:.3g} ms; the "
        f"longest wait at a later one is {max(at_borders[1:]):.3g} ms."
    )
    page.goal(
        "median wait for the first batch of an epoch or a validation, a tenth of a step",
        Spread.of(at_borders).median,
        round(100 * step_s, 1),
        at_least=False,
        unit=" ms",
    )


def decoding_s(config: ExperimentConfig, dataset: PreparedDataset) -> float:
    """Seconds a batch that the stream takes by itself, once its first stock is used up."""
    longer = with_overrides(config, {"train.epochs": 4 * config.train.epochs})
    plan, dataset_stream, _ = stream_of(longer, dataset)
    (batches,) = shards_of(plan, dataset_stream)
    arrivals = [time.perf_counter() for _ in batches]
    half = len(arrivals) // 2
    return (arrivals[-1] - arrivals[half]) / (len(arrivals) - 1 - half)


def waits_of(
    config: ExperimentConfig, dataset: PreparedDataset, step_s: float
) -> tuple[list[float], list[float]]:
    """Milliseconds that the consumer waits: within a part of the plan, and for its first batch."""
    plan, dataset_stream, _ = stream_of(config, dataset)
    (batches,) = shards_of(plan, dataset_stream)
    within: list[float] = []
    at_borders: list[float] = []
    part = None
    waiting = time.perf_counter()
    for planned in batches:
        waited = 1000 * (time.perf_counter() - waiting)
        if part is not None:  # else it is the start of the stream
            (within if part == (planned.kind, planned.epoch) else at_borders).append(waited)
        part = planned.kind, planned.epoch
        time.sleep(step_s)
        waiting = time.perf_counter()
    return within, at_borders


def main(quick: QuickOption = False, out: OutOption = None) -> None:
    """Watch the store behind slow consumers, and time what they wait for."""
    page = Page("How much of the object store does a stream take?", device=None, threads=1)
    size = SMALL if quick else WHOLE
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_shapes(
            f"{folder}/shapes",
            num_images=size.num_images,
            size_px=size.image_px,
            seed=1,
            split="train",
        )
        measure_store(page, size, dataset)
        measure_waits(page, size, dataset)
    page.text(f"ray {ray.__version__}; images of {size.image_px} px.")
    page.finish(out)


if __name__ == "__main__":
    typer.run(main)
