"""Does the plan of a very large data set fit, and does its stream start within seconds?

An index of up to two million images is made up: their sizes are drawn like COCO's, and all of them
point at the one small image of a real prepared set, so everything is real but the pixels.
Measured are the reading of an index from Parquet, the planning of an epoch (time by size, which
should grow linearly, and memory), and a stream through Ray Data: its first batch, its rows a
second, and the memory of the driver.

python benchmarks/scale.py
python benchmarks/scale.py --out benchmarks/results/scale_MACHINE_DATE.md
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
import typer
from measure import OutOption, QuickOption, Spread, peak_mib, seconds
from page import Page

from retina_ray.config import ExperimentConfig, with_overrides
from retina_ray.data.loading.batch_loader import BatchLoader
from retina_ray.data.loading.ray_stream import keep_idle_processes, stream
from retina_ray.data.loading.stream_reader import expect_order, iterate_shard
from retina_ray.data.plan.run_plan import RunPlan
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.info import INFO_FILE, ShardInfo
from retina_ray.data.prepared.schema import SHARD_SCHEMA
from retina_ray.data.synthetic.prepare import make_shapes

CPU = torch.device("cpu")
SIZES = (125_000, 250_000, 500_000, 1_000_000, 2_000_000)
OPEN_IMAGES, EPOCHS = 1_743_042, 12
BATCH = 16
ROWS_PER_GROUP, ROWS_PER_SHARD = 32, 2048


def coco_like_sizes(num_images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths drawn like COCO's: the longer side mostly 640, two thirds landscape.

    Of COCO's train2017, about a quarter is 480 x 640, and nearly all images have a side of 640.
    """
    rng = np.random.default_rng(seed)
    common = np.array([480, 427, 426, 640, 425, 500, 360, 612])
    shorter = rng.choice(common, num_images, p=[0.34, 0.26, 0.12, 0.06, 0.08, 0.05, 0.05, 0.04])
    longer = np.full(num_images, 640)
    landscape = rng.random(num_images) < 0.69
    height = np.where(landscape, shorter, longer)
    return height, np.where(landscape, longer, shorter)


def made_up_index(num_images: int, *, pointing: bool = False) -> pa.Table:
    """The light columns of so many images; `pointing`: all of them at the same stored one."""
    number = np.arange(num_images)
    height, width = coco_like_sizes(num_images)
    shard, row_group, row = (
        number // ROWS_PER_SHARD,
        number % ROWS_PER_SHARD // ROWS_PER_GROUP,
        number % ROWS_PER_GROUP,
    )
    if pointing:
        shard = row_group = row = np.zeros(num_images, np.int64)
    columns = {
        "shard": shard,
        "row_group": row_group,
        "row": row,
        "height": height,
        "width": width,
        "num_boxes": np.ones(num_images, np.int64),
    }
    return pa.table({name: pa.array(values, pa.int32()) for name, values in columns.items()})


def config_of(**settings: Any) -> ExperimentConfig:
    """Eight workers, twelve epochs, small images."""
    options = {
        "train.batch_size": BATCH,
        "train.epochs": EPOCHS,
        "input.train_sizes_px": [64],
        "input.train_max_size_px": 64,
    }
    return with_overrides(ExperimentConfig(), {**options, **settings})


def plan_of(num_images: int, num_workers: int = 8) -> RunPlan:
    """The plan of a run over so many images."""
    config = config_of(**{"train.num_workers": num_workers})
    return RunPlan.from_config(config, made_up_index(num_images), None)


def planning(device: str, num_images: int) -> Callable[[], object]:
    """For `peak_mib`: the planning of an epoch, without what a first call loads."""
    del device
    plan_of(1000).segment(0)
    plan = plan_of(num_images)
    return lambda: plan.segment(0)


def reading(device: str, uri: str) -> Callable[[], object]:
    """For `peak_mib`: the reading of an index."""
    del device
    dataset = PreparedDataset.open(uri)
    return dataset.index


def write_light_set(uri: str, num_images: int, like: PreparedDataset) -> None:
    """A prepared set whose images are empty: real shards with real light columns."""
    os.makedirs(uri)
    boxes = like.annotations().slice(0, 1)
    shards = []
    for first in range(0, num_images, ROWS_PER_SHARD):
        count = min(ROWS_PER_SHARD, num_images - first)
        table = pa.concat_tables([boxes] * count).combine_chunks()
        columns = {name: table[name] for name in SHARD_SCHEMA.names if name in table.schema.names}
        columns["image_id"] = pa.array(np.arange(first, first + count))
        columns["file_name"] = pa.array([f"{i:012d}.jpg" for i in range(first, first + count)])
        columns["image"] = pa.array([b""] * count, pa.large_binary())
        shard = pa.table([columns[name] for name in SHARD_SCHEMA.names], schema=SHARD_SCHEMA)
        path = Path(uri) / f"shard-{len(shards):05d}.parquet"
        pq.write_table(shard, path, row_group_size=ROWS_PER_GROUP, use_compliant_nested_type=False)
        groups = [ROWS_PER_GROUP] * (count // ROWS_PER_GROUP)
        groups += [count % ROWS_PER_GROUP] if count % ROWS_PER_GROUP else []
        shards.append(ShardInfo(path.name, count, path.stat().st_size, tuple(groups)))
    info = replace(like.info, num_images=num_images, shards=tuple(shards))
    (Path(uri) / INFO_FILE).write_text(info.to_json())


def measure_planning(page: Page, sizes: tuple[int, ...], rounds: int) -> dict[int, float]:
    """Time and memory of an epoch's planning, by size."""
    rows, medians = [], {}
    for num_images in sizes:
        plan = plan_of(num_images)
        times = []
        for _ in range(rounds):
            fresh = RunPlan(plan.layout, plan.rules, plan.val_rows)
            times.append(seconds(lambda fresh=fresh: fresh.segment(0), CPU))
        spread = Spread.of(times)
        medians[num_images] = spread.median
        peak = peak_mib(planning, "cpu", num_images, threads=1)
        table = plan.segment(0)
        rows.append(
            [
                f"{num_images:,}",
                str(spread),
                f"{1e6 * spread.median / num_images:.2f}",
                f"{peak:.0f}",
                f"{table.nbytes / 2**20:.0f}",
                f"{table.num_rows:,}",
            ]
        )
    page.table(
        f"Planning an epoch, 8 workers, batch {BATCH}: median (min to max) of {rounds} rounds",
        ["images", "CPU s", "us an image", "peak MiB", "of which the rows, MiB", "rows"],
        rows,
    )
    return medians


def measure_index(page: Page, sizes: tuple[int, ...], real: PreparedDataset, folder: str) -> None:
    """Time and memory of reading the light columns."""
    rows = []
    for num_images in sizes:
        uri = f"{folder}/light_{num_images}"
        write_light_set(uri, num_images, real)
        dataset = PreparedDataset.open(uri)
        time_s = seconds(dataset.index, CPU)
        peak = peak_mib(reading, "cpu", uri, threads=1)
        rows.append([f"{num_images:,}", f"{time_s:.2f}", f"{peak:.0f}"])
    page.table(
        f"Reading the index from Parquet ({ROWS_PER_SHARD} images to a file): one round",
        ["images", "CPU s", "peak MiB"],
        rows,
    )


@dataclass(frozen=True)
class StreamFigures:
    """What a stream over a whole run showed; memory of the driver in MiB."""

    first_batch_s: float
    rows_per_s: float
    before_mib: float
    peak_mib: float


def run_stream(num_images: int, real: PreparedDataset, num_rows: int) -> StreamFigures:
    """Start a stream over the whole run, and read its first rows.

    The driver's memory is that of its life so far, so this comes before all else: what it held
    before there was an index, and its peak with index, plan, loader and stream.
    """
    before = psutil.Process().memory_info().rss
    config = config_of()
    plan = RunPlan.from_config(config, made_up_index(num_images), None)
    loader = BatchLoader.from_config(
        config, real, None, made_up_index(num_images, pointing=True), None
    )
    started = time.perf_counter()
    batches = iterate_shard(stream(plan, loader, batch_bytes=3 * 64 * 64 * BATCH))
    batches = expect_order(batches, plan.layout.worker_rows(0))
    next(batches)
    first_s, begin = time.perf_counter() - started, time.perf_counter()
    for _ in range(num_rows):
        next(batches)
    rate = num_rows / (time.perf_counter() - begin)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return StreamFigures(first_s, rate, before / 2**20, peak_kib / 2**10)


def report_stream(page: Page, num_images: int, num_rows: int, figures: StreamFigures) -> None:
    """The stream's table."""
    page.table(
        f"A stream of {EPOCHS} epochs of {num_images:,} images, the first {num_rows:,} rows of it "
        "read; all Ray processes on this machine",
        [
            "first batch after, s",
            "rows a second",
            "images a second",
            "driver before index and plan, MiB",
            "driver's peak, MiB",
        ],
        [
            [
                f"{figures.first_batch_s:.1f}",
                f"{figures.rows_per_s:.1f}",
                f"{figures.rows_per_s * BATCH:.0f}",
                f"{figures.before_mib:.0f}",
                f"{figures.peak_mib:.0f}",
            ]
        ],
    )
    page.goal(
        f"first batch of {num_images:,} images",
        figures.first_batch_s,
        15,
        at_least=False,
        unit=" s",
    )


def main(quick: QuickOption = False, out: OutOption = None) -> None:
    """Plan and stream data sets of up to two million images."""
    page = Page("Does a very large data set fit?", device=None, threads=1)
    sizes, num_rows = ((2_000, 4_000), 100) if quick else (SIZES, 2000)
    with tempfile.TemporaryDirectory() as folder:
        real = make_shapes(f"{folder}/real", num_images=1, size_px=64, seed=1, split="train")
        keep_idle_processes()
        ray.init("local", num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False)
        figures = run_stream(sizes[-1], real, num_rows)
        ray.shutdown()
        medians = measure_planning(page, sizes, 1 if quick else 5)
        report_planning(page, medians)
        measure_index(page, sizes[:1] if quick else (250_000, 2_000_000), real, folder)
    report_stream(page, sizes[-1], num_rows, figures)
    page.text(f"ray {ray.__version__}, pyarrow {pa.__version__}, numpy {np.__version__}.")
    page.finish(out)


def report_planning(page: Page, medians: dict[int, float]) -> None:
    """Whether planning is linear, and what OpenImages costs."""
    smallest, largest = min(medians), max(medians)
    per_image = medians[largest] / largest
    page.goal(
        f"planning time an image, {largest:,} images over {smallest:,} (1 is linear)",
        per_image / (medians[smallest] / smallest),
        1.5,
        at_least=False,
        unit="x",
    )
    page.text(
        f"OpenImages ({OPEN_IMAGES:,} images, {EPOCHS} epochs): "
        f"{per_image * OPEN_IMAGES:.1f} s an epoch in every process that decodes, "
        f"{EPOCHS * per_image * OPEN_IMAGES:.0f} s over the whole run, an epoch at a time."
    )


if __name__ == "__main__":
    typer.run(main)
