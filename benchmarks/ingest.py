"""How much of the bare speed of decoding does the stream reach, and how does it compare?

The same images three ways, in turn, several rounds: (a) OpenCV's decode and resize in a bare loop
in one process, (b) torch's DataLoader with torchvision's v2 transforms and a worker for each core,
(c) a run's plan through Ray Data to a consumer that does nothing. All read from memory or the page
cache, resize to the same size, and (b) and (c) flip and make batches.

A stream is timed in its steady state, between two arrivals far from its start and its end. Beside
wall-clock speed stand CPU seconds of all processes, raylet and driver included: other programs on
the machine slow a stream down, but do not change what it computes.

python benchmarks/ingest.py --voc BCCD --coco COCO_TINY
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import psutil
import pyarrow.parquet as pq
import ray
import torch
import typer
from measure import OutOption, QuickOption, Spread, ratios
from page import Page
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from retina_ray.config import ExperimentConfig, SyntheticConfig, with_overrides
from retina_ray.data.augment.transforms import shortest_edge_size
from retina_ray.data.importers.coco import import_coco
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.importers.voc import import_voc
from retina_ray.data.loading.batch_loader import BatchLoader
from retina_ray.data.loading.ray_stream import keep_idle_processes, stream
from retina_ray.data.loading.stream_reader import expect_order, iterate_shard
from retina_ray.data.plan.run_plan import RunPlan
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.synthetic.prepare import prepare_synthetic

BARE, LOADER, OURS = "bare decode + resize", "torch DataLoader", "ours through Ray Data"
BATCH = 16
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Case:
    """A data set at a size: the shorter side's length and the longer one's limit, in pixels."""

    name: str
    dataset: PreparedDataset
    size_px: int
    max_size_px: int

    def __str__(self) -> str:
        return f"{self.name} to {self.size_px} px"


@dataclass(frozen=True)
class Speed:
    """Images a second by the clock, and CPU milliseconds an image over all processes."""

    images_per_s: float
    cpu_ms: float


def measured(batches: Iterable[int], *, warm_up: int, num_images: int) -> Speed:
    """Time a stream of batches, given by their numbers of images, between two of its arrivals.

    Args:
        batches: endless, or long enough.
        warm_up: images that are let pass first.
        num_images: images that are timed.
    """
    iterator = iter(batches)
    passed = 0
    while passed < warm_up:
        passed += next(iterator)
    started, before, passed = time.perf_counter(), cpu_seconds(), 0
    while passed < num_images:
        passed += next(iterator)
    time_s = time.perf_counter() - started
    cpu_s = sum(s - before.get(process, 0.0) for process, s in cpu_seconds().items())
    return Speed(passed / time_s, 1000 * cpu_s / passed)


def cpu_seconds() -> dict[int, float]:
    """CPU seconds so far of this process and each that it started and that still runs."""
    this = psutil.Process()
    seconds = {}
    for process in (this, *this.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        seconds[process.pid] = times.user + times.system
    return seconds


def photographs(voc: Path | None, coco: Path | None, folder: str) -> dict[str, PreparedDataset]:
    """Prepare the sets that were given, by name."""
    sets = {}
    if voc is not None:
        sets["BCCD, 640x480"] = import_voc(
            voc, f"{folder}/bccd", split="train", options=ImportOptions(on_bad_box="drop")
        )
    if coco is not None:
        annotations = coco / "annotations" / "instances_train2017.json"
        sets["COCO"] = import_coco(annotations, coco / "train2017", f"{folder}/coco", split="train")
    return sets


def encoded_images(case: Case) -> list[tuple[bytes, int, int]]:
    """All images of the set with the (height, width) that they are resized to."""
    images = []
    for shard in case.dataset.info.shards:
        table = pq.read_table(
            f"{case.dataset.uri}/{shard.file}", columns=["image", "height", "width"]
        )
        for row in table.to_pylist():
            size = shortest_edge_size(row["height"], row["width"], case.size_px, case.max_size_px)
            images.append((row["image"], *size))
    return images


def bare(case: Case) -> Generator[int]:
    """OpenCV's decode and bilinear resize, without a care for aliasing, one after the other."""
    cv2.setNumThreads(1)
    images = encoded_images(case)
    while True:
        for data, height, width in images:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            assert image is not None
            cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
            yield 1


class _Images(Dataset):
    """What torchvision's reference does to an image, at one size."""

    def __init__(self, case: Case, length: int) -> None:
        self._images = encoded_images(case)
        self._length = length
        self._flip = v2.RandomHorizontalFlip()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> torch.Tensor:
        data, height, width = self._images[index % len(self._images)]
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        image = decode_image(encoded, ImageReadMode.RGB)
        return self._flip(v2.functional.resize(image, [height, width], antialias=True))


def _collate(images: list[torch.Tensor]) -> torch.Tensor:
    height, width = (max(i.shape[axis] for i in images) for axis in (1, 2))
    batch = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    for target, image in zip(batch, images, strict=True):
        target[:, : image.shape[1], : image.shape[2]] = image
    return batch


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def data_loader(case: Case) -> Generator[int]:
    """A DataLoader of torch's with a worker for each core."""
    loader: Any = DataLoader(
        _Images(case, 10**7),
        batch_size=BATCH,
        num_workers=CORES,
        # Forked, they would share the connections of this process to Ray, and break them.
        multiprocessing_context="spawn",
        collate_fn=_collate,
        worker_init_fn=_one_thread,
    )
    for batch in loader:
        yield len(batch)


def ours(case: Case) -> Generator[int]:
    """A run's plan through Ray Data."""
    train = case.dataset
    config = with_overrides(
        ExperimentConfig(),
        {
            "train.batch_size": BATCH,
            "train.epochs": 1000,
            "input.train_sizes_px": [case.size_px],
            "input.train_max_size_px": case.max_size_px,
        },
    )
    index = train.index()
    plan = RunPlan.from_config(config, index, None)
    loader = BatchLoader.from_config(config, train, None, index, None)
    batch_bytes = 3 * case.size_px * min(case.max_size_px, case.size_px * 4 // 3) * BATCH
    dataset = stream(plan, loader, batch_bytes=batch_bytes)
    for planned in expect_order(iterate_shard(dataset), plan.layout.worker_rows(0)):
        yield len(planned.batch.image_ids)


WAYS: dict[str, Callable[[Case], Generator[int]]] = {BARE: bare, LOADER: data_loader, OURS: ours}


def compare(case: Case, rounds: int, warm_up: int, num_images: int) -> dict[str, list[Speed]]:
    """The speeds of all ways, one a round, in turn."""
    speeds: dict[str, list[Speed]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            batches = way(case)
            of_way = 64 if name == BARE else warm_up
            # A block holds some 250 small images, and a few that are ready may wait for one
            # before them: at either end of the time that is measured, but not alike.
            times = 4 if name != BARE and case.size_px < 500 else 1
            speeds[name].append(measured(batches, warm_up=of_way, num_images=times * num_images))
            batches.close()  # ends the workers
    return speeds


def report(page: Page, results: dict[str, dict[str, list[Speed]]], rounds: int) -> None:
    """The table, and the goals for each case."""
    rows = []
    for case, speeds in results.items():
        rate = {name: [s.images_per_s for s in of] for name, of in speeds.items()}
        cpu = {name: [s.cpu_ms for s in of] for name, of in speeds.items()}
        rows.append(
            [
                case,
                *(str(Spread.of(values)) for values in rate.values()),
                str(ratios(rate[OURS], rate[LOADER])),
                str(ratios(rate[OURS], [CORES * r for r in rate[BARE]])),
                *(f"{Spread.of(values).median:.3g}" for values in cpu.values()),
            ]
        )
    page.table(
        f"Images a second by the clock: median (min to max) of {rounds} rounds; CPU ms an image",
        [
            "images",
            f"{BARE}, one core",
            f"{LOADER}, {CORES} cores",
            f"{OURS}, {CORES} cores",
            f"ours / {LOADER}",
            f"ours / ({CORES} x bare)",
            *(f"CPU ms, {name}" for name in WAYS),
        ],
        rows,
    )
    for case, speeds in results.items():
        rate = {name: [s.images_per_s for s in of] for name, of in speeds.items()}
        page.goal(
            f"{case}, ours / {LOADER}",
            ratios(rate[OURS], rate[LOADER]).median,
            1,
            at_least=True,
            unit="x",
        )
        page.goal(
            f"{case}, ours / ({CORES} x bare)",
            ratios(rate[OURS], [CORES * r for r in rate[BARE]]).median,
            0.85,
            at_least=True,
            unit="x",
        )


def main(
    voc: Annotated[Path | None, typer.Option(help="BCCD: a folder in VOC's layout.")] = None,
    coco: Annotated[Path | None, typer.Option(help="A folder in COCO's layout.")] = None,
    size: Annotated[
        list[int] | None, typer.Option(help="Shorter side of photographs; repeatable.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    quick: QuickOption = False,
    out: OutOption = None,
) -> None:
    """Compare the stream with bare decoding and with torch's DataLoader.

    Without a data set of photographs, on drawn shapes.
    """
    page = Page("How fast is the input?", device=None, threads=CORES)
    rounds, warm_up, num_images = (1, 64, 64) if quick else (rounds, 1024, 3072)
    sizes = size or [320, 800]
    with tempfile.TemporaryDirectory() as folder:
        cases = [
            Case(name, train, each, 1333)
            for name, train in photographs(voc, coco, folder).items()
            for each in sizes
        ]
        if not cases:
            train, _ = prepare_synthetic(SyntheticConfig(), folder)
            cases += [Case("drawn shapes", PreparedDataset.open(train), 256, 1333)]
        keep_idle_processes()  # as `experiments/train.py` has it
        ray.init("local", num_cpus=CORES, include_dashboard=False, logging_level=logging.ERROR)
        try:
            results = {str(case): compare(case, rounds, warm_up, num_images) for case in cases}
        finally:
            ray.shutdown()
    report(page, results, rounds)
    page.text(f"ray {ray.__version__}, OpenCV {cv2.__version__}; batches of {BATCH}.")
    page.finish(out)


if __name__ == "__main__":
    typer.run(main)
