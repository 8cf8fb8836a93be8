"""What do the training loop and Ray add to a training step?

Images a second of the same step, the same model and optimizer on batches of the same drawn set:
(a) in a bare loop over batches in memory, as one writes it by hand; (b) in the training loop,
without Ray, over the same batches; (c) in a `TorchTrainer` of one worker, whose batches Ray Data
reads, decodes and augments beside it.

(b) and (c) each take turns with a bare loop in their own process, round by round, so each has an
(a) of the same minutes. Beside the clock stand the CPU seconds of the thread that trains: other
programs on the machine slow the clock's figure down, but do not change what a step computes.

(c) can keep up with (a) only where decoding has CPUs of its own: the step has one thread, the
images are small, and how busy all cores are is measured. Ray's object store is as small as it may
be, so that few batches are decoded ahead, and decoding goes on while the steps are timed.

python benchmarks/train_overhead.py
python benchmarks/train_overhead.py --device cuda --out benchmarks/results/overhead_MACHINE_DATE.md
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from typing import Annotated

import psutil
import typer
from measure import DeviceOption, OutOption, QuickOption, Spread, ThreadsOption, ratios, set_up
from overhead_loops import STORE_BYTES, WARM_UP, Measured, through_ray, without_ray
from page import Page

from retina_ray.config import (
    AnchorConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    SyntheticConfig,
    with_overrides,
)
from retina_ray.storage.uris import join_uri
from retina_ray.train.run.resolve import resolve
from retina_ray.train.run_files import METRICS
from retina_ray.train.spec import RunInputs, RunSpec
from retina_ray.train.tracking.metrics_file import read_metrics

IMPORTED_S = time.time() - psutil.Process().create_time()
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
LOOP, RAY = "training loop", "TorchTrainer over Ray Data"
STARTED = {LOOP: "model and optimizer", RAY: "worker group"}

EPOCHS = 1000
"""Far more than are timed: the stream must not come to its end before that."""

FULL = 0.9
"""Share of the cores' time above which the CPUs are taken for the limit."""


@dataclass(frozen=True)
class Size:
    """What a step trains on, for a device: small enough for a CPU, or large enough for a GPU.

    Attributes:
        backbone: a ResNet.
        fpn_channels: of pyramid and head.
        head_num_convs: of each tower.
        size_px: height and width of the drawn images, which are not resized.
        batch_size: images a step.
        precision: fp32 or bf16.
        steps: of a round; a block of Ray Data's holds eight batches at most.
    """

    backbone: str
    fpn_channels: int
    head_num_convs: int
    size_px: int
    batch_size: int
    precision: str
    steps: int

    def __str__(self) -> str:
        return (
            f"{self.backbone}, {self.fpn_channels} channels, towers of {self.head_num_convs}; "
            f"{self.batch_size} images of {self.size_px} x {self.size_px} px a step, "
            f"{self.precision}; rounds of {self.steps} steps"
        )


SIZES = {
    "cpu": Size("resnet18", 128, 2, 128, 8, "fp32", steps=8),
    "cuda": Size("resnet50", 256, 4, 512, 16, "bf16", steps=40),
}
QUICK = Size("resnet18", 32, 1, 64, 2, "fp32", steps=4)


def config_of(size: Size, *, device: str, clip: str, threads: int) -> ExperimentConfig:
    """A detector from scratch on drawn shapes; its figures are logged twice a round."""
    base = ExperimentConfig(
        model=ModelConfig(
            num_classes=None,
            backbone_norm="bn",
            freeze_stages=0,
            max_level=6,
            head_norm="gn",
            anchors=AnchorConfig(sizes=(12.0, 24.0, 48.0, 96.0)),
        ),
        data=DataConfig(
            synthetic=SyntheticConfig(
                num_train=40 * size.batch_size, num_val=size.batch_size, size_px=size.size_px
            )
        ),
    )
    return with_overrides(
        base,
        {
            "model.backbone": size.backbone,
            "model.fpn_channels": size.fpn_channels,
            "model.head_num_convs": size.head_num_convs,
            "loss.box_loss": "giou",
            "input.train_sizes_px": (size.size_px,),
            "input.train_max_size_px": size.size_px,
            "input.eval_size_px": size.size_px,
            "input.eval_max_size_px": size.size_px,
            "input.flip": "both",
            "optimizer.name": "adamw",
            "optimizer.lr": 1e-4,
            "optimizer.clip": clip,
            "schedule.name": "cosine",
            "schedule.warmup_steps": 20,
            "train.epochs": EPOCHS,
            "train.eval_every_epochs": EPOCHS,
            "train.batch_size": size.batch_size,
            "train.precision": size.precision,
            "train.use_gpu": device == "cuda",
            "train.cpus_per_worker": float(threads),
            "train.log_every_steps": size.steps // 2,
            "tracking.wandb": "disabled",
        },
    )


def spec_of(config: ExperimentConfig, folder: str) -> RunSpec:
    """Draw the set, and describe the run over it."""
    complete, train_uri, val_uri = resolve(config, folder)
    return RunSpec(
        config=complete,
        train_uri=train_uri,
        val_uri=val_uri,
        run_uri=f"{folder}/run",
        name="run",
        run_id="run",
    )


def report_speeds(page: Page, results: dict[str, Measured], size: Size) -> None:
    """Show what each loop reaches, and its share of the bare one's."""
    rows = []
    for name, measured in results.items():
        walls, cpus = measured.of("wall_s"), measured.of("thread_s")
        for which, label in enumerate((f"bare loop, beside {name}", name)):
            speeds = [size.steps * size.batch_size / wall_s for wall_s in walls[which]]
            cpu_ms = [1000 * cpu_s / size.steps for cpu_s in cpus[which]]
            shares = [str(ratios(*walls)), str(ratios(*cpus))] if which else ["", ""]
            rows.append(
                [label, str(Spread.of(speeds)), shares[0], str(Spread.of(cpu_ms)), shares[1]]
            )
    page.table(
        f"The steady state: median (min to max) of {len(results[LOOP].bare)} rounds",
        [
            "",
            "images / s by the clock",
            "of the bare loop's",
            "CPU ms a step of the thread that trains",
            "bare loop's / this",
        ],
        rows,
    )


def report_cpus(page: Page, measured: Measured, size: Size) -> float:
    """Show where the CPU time goes when Ray runs; returns how many cores are busy on average."""
    rows, busy = [], 0.0
    for label, rounds in (("bare loop", measured.bare), (RAY, measured.loop)):
        num_steps = size.steps * len(rounds)
        wall, thread, process, others = (
            1000 * sum(getattr(one, figure) for one in rounds) / num_steps
            for figure in ("wall_s", "thread_s", "process_s", "others_s")
        )
        busy = (process + others) / wall
        figures = (wall, thread, process - thread, others)
        rows.append([label, *(f"{ms:.4g}" for ms in figures), f"{busy:.3g}"])
    page.table(
        "ms a step in the worker's process and beside it: means of all timed rounds",
        [
            "",
            "by the clock",
            "CPU, the thread that trains",
            "CPU, other threads of its process",
            "CPU, other processes of Ray",
            f"cores busy of {CORES}",
        ],
        rows,
    )
    return busy


def has_room(page: Page, spec: RunSpec, measured: Measured, size: Size, threads: int) -> bool:
    """Whether the CPUs leave a step of the Ray run what it needs; says why."""
    busy = report_cpus(page, measured, size)
    step_s = statistics.median(measured.of("wall_s")[0]) / size.steps
    batch_s = decoding_s(spec)
    is_so = threads < CORES and busy < FULL * CORES
    page.text(
        f"Reading, decoding and augmenting a batch takes {1000 * batch_s:.3g} ms of CPU in a "
        f"process without Ray, {100 * batch_s / step_s:.2g} % of a bare step by the clock. The "
        f"store of {STORE_BYTES // 2**20} MiB holds few batches, so this goes on beside the timed "
        f"steps. perf/data_wait_fraction: {Spread.of(data_waits(spec, size))}. The step has "
        f"{threads} of {CORES} cores, and {busy:.3g} are busy on average: the CPUs are "
        + ("not the limit." if is_so else "the limit, so the goal for Ray does not hold here.")
    )
    return is_so


def decoding_s(spec: RunSpec) -> float:
    """CPU seconds of making a batch in this process."""
    inputs = RunInputs.open(spec)
    rows = inputs.plan.segment(0)
    inputs.loader.load_table(rows.slice(0, 8))  # the first ones open files and load code
    begin = time.process_time()
    inputs.loader.load_table(rows)
    return (time.process_time() - begin) / rows.num_rows


def data_waits(spec: RunSpec, size: Size) -> list[float]:
    """What the run itself has logged, of the intervals in which no bare loop had its turn."""
    lines = read_metrics(join_uri(spec.run_uri, METRICS))
    return [
        line["metrics"]["perf/data_wait_fraction"]
        for line in lines
        if line["metrics"] and line["step"] > WARM_UP * size.steps and not line["step"] % size.steps
    ]


def report_starts(
    page: Page, results: dict[str, Measured], before: dict[str, dict[str, float]]
) -> None:
    """Show the seconds until the first step is done, part by part."""
    rows = []
    for name, measured in results.items():
        parts = {
            "imports": IMPORTED_S,
            **before.get(name, {}),
            STARTED[name]: measured.entered_at - measured.asked_at,
            "first batch": measured.first_batch_at - measured.entered_at,
            "first step": measured.first_step_at - measured.first_batch_at,
        }
        told = ", ".join(f"{part} {part_s:.2g}" for part, part_s in parts.items())
        rows.append([name, f"{sum(parts.values()):.3g}", told])
    page.table(
        "Start-up, which the steady state leaves out", ["", "s", "in the order of time"], rows
    )


def main(
    threads: ThreadsOption = 1,
    device: DeviceOption = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds of each loop.")] = 15,
    clip: Annotated[str, typer.Option(help="optimizer.clip: norm, value or none.")] = "norm",
    quick: QuickOption = False,
    out: OutOption = None,
) -> None:
    """Compare a bare loop, the training loop, and a Ray Train worker (where Ray is installed)."""
    where = set_up(device, threads)
    size, num_rounds = (QUICK, 2) if quick else (SIZES[device], rounds)
    question = "What do the training loop and Ray add to a training step?"
    page = Page(question, device=where, threads=threads)
    page.text(f"{size}; optimizer.clip = {clip}.")
    before, bounds = {}, {LOOP: 0.99}
    with tempfile.TemporaryDirectory(prefix="overhead_") as folder:
        spec = spec_of(config_of(size, device=device, clip=clip, threads=threads), folder)
        measured, num_differing = without_ray(spec, where, steps=size.steps, num_rounds=num_rounds)
        results = {LOOP: measured}
        if importlib.util.find_spec("ray") is not None:
            measured, before[RAY] = through_ray(spec, steps=size.steps, num_rounds=num_rounds)
            results[RAY] = measured
        report_speeds(page, results, size)
        page.text(
            f"Without Ray, after {size.steps * (WARM_UP + num_rounds)} steps on the same batches, "
            f"{num_differing or 'no'} tensors of the two models differ in any bit."
        )
        if RAY in results and has_room(page, spec, results[RAY], size, threads):
            bounds[RAY] = 0.97
        report_starts(page, results, before)
    for name, bound in bounds.items():
        speed = ratios(*results[name].of("wall_s")).median
        page.goal(f"{name} / bare loop", speed, bound, at_least=True, unit="x")
    page.finish(out)


if __name__ == "__main__":
    typer.run(main)
