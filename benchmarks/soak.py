"""Does a long run whose worker is killed again and again end where an undisturbed one ends?

One run on the CPU, long enough for the minutes asked for, while its worker gets SIGKILL at random
(seeded) after two to four minutes of training each; then the same run with nobody in its way. Both
are done by this process on a Ray of this machine, so that afterwards Ray itself can be asked what
is left of them.

Compared are the last checkpoints, tensor by tensor and bit for bit: weights, their average,
optimizer, loss normalizer, generators; and the record of every step. Watched are the memory of
driver and worker, and what is left behind: processes, actors, placement groups, files.

python benchmarks/soak.py --minutes 30
python benchmarks/soak.py --minutes 30 --out benchmarks/results/soak_MACHINE_DATE.md
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import ray
import torch
import typer
from page import Page
from ray._private.state import actors as actor_table
from soak_watch import MARK, Killer, Watched, own_processes

from retina_ray.config import AnchorConfig, ExperimentConfig, ModelConfig, with_overrides
from retina_ray.data.synthetic.prepare import make_shapes
from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.run.resources import connect

CALIBRATION_EPOCHS = 4
WARM_UP_S = 60.0
"""Of a process's life, left out of its memory's trend: it still loads and fills its pools."""

TEMPORARY = "retina_ray_*"

RAY_DATAS_OWN = ("_AutoscalingCoordinatorActor", "_StatsActor")


def main(
    minutes: Annotated[float, typer.Option(help="How long the run trains at least.")] = 30.0,
    shortest: Annotated[float, typer.Option(help="Least minutes between two kills.")] = 2.0,
    longest: Annotated[float, typer.Option(help="Most minutes between two kills.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Of the kills.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Markdown file for the figures.")] = None,
) -> None:
    """Run, kill, compare, and count what is left."""
    logging.basicConfig(level=logging.WARNING)
    os.environ[MARK] = uuid.uuid4().hex
    before = set(Path(tempfile.gettempdir()).glob(TEMPORARY))
    page = Page(
        "Does a long run whose worker is killed again and again end as an undisturbed one?",
        device=None,
        threads=1,
    )
    with tempfile.TemporaryDirectory(prefix="soak_") as folder:
        make_shapes(f"{folder}/data", num_images=64, size_px=96, seed=1, split="train")
        connect(soak_config(1))
        runs = soak(folder, page, minutes=minutes, pause=(shortest, longest), seed=seed)
        compare(*runs, page)
        memory(*runs, page)
        left_in_ray(page)
        ray.shutdown()
        left_behind(folder, before, page)
    page.finish(out)


def soak(
    folder: str, page: Page, *, minutes: float, pause: tuple[float, float], seed: int
) -> tuple[Watched, Watched]:
    """The disturbed run and the undisturbed one."""
    trial = Watched.run(folder, "calibration", soak_config(CALIBRATION_EPOCHS), killer=None)
    epoch_s = trial.training_s / (CALIBRATION_EPOCHS - 1)
    epochs = max(CALIBRATION_EPOCHS, round(minutes * 60 / epoch_s))
    page.text(
        f"An epoch of 16 steps takes {epoch_s:.2f} s (a checkpoint every 5 steps, an evaluation "
        f"every 8 epochs), so the run has {epochs} epochs: {minutes:g} minutes of training."
    )
    killer = Killer(pause, seed)
    disturbed = Watched.run(folder, "disturbed", soak_config(epochs), killer=killer)
    quiet = Watched.run(folder, "undisturbed", soak_config(epochs), killer=None)
    page.table(
        "Runs",
        ("run", "minutes", "kills", "steps done", "steps done twice"),
        [
            (w.name, f"{w.seconds / 60:.1f}", str(len(w.kills)), str(w.last_step), str(w.again))
            for w in (disturbed, quiet)
        ],
    )
    page.table(
        "Kills",
        ("minute", "last step in the record", "went on from step", "seconds to the next step"),
        [
            (f"{k.at_s / 60:.1f}", str(k.step), str(k.went_on), f"{k.lost_s:.0f}")
            for k in disturbed.kills
        ],
    )
    return disturbed, quiet


def soak_config(epochs: int) -> ExperimentConfig:
    """A small detector from scratch; group norm, average of the weights, both checkpoints."""
    base = ExperimentConfig(
        model=ModelConfig(
            num_classes=3,
            backbone="resnet18",
            backbone_norm="gn",
            freeze_stages=0,
            max_level=5,
            fpn_channels=32,
            head_num_convs=1,
            head_norm="gn",
            anchors=AnchorConfig(sizes=(16.0, 32.0, 64.0)),
        )
    )
    return with_overrides(
        base,
        {
            "input.train_sizes_px": (96,),
            "input.train_max_size_px": 96,
            "input.eval_size_px": 96,
            "input.eval_max_size_px": 96,
            "optimizer.name": "adamw",
            "optimizer.lr": 3e-4,
            "optimizer.clip": "norm",
            "schedule.name": "cosine",
            "schedule.warmup_steps": 10,
            "train.epochs": epochs,
            "train.batch_size": 4,
            "train.ema_decay": 0.99,
            "train.checkpoint_every_steps": 5,
            "train.eval_every_epochs": min(8, epochs),
            "train.log_every_steps": 1,
            "train.max_failures": 100_000,
            "tracking.wandb": "disabled",
        },
    )


def compare(disturbed: Watched, quiet: Watched, page: Page) -> None:
    """Hold the ends of both runs against each other."""
    ours, theirs = (load_checkpoint(str(w.spec.checkpoints.last)) for w in (disturbed, quiet))
    rows = []
    for part in ("model", "ema", "state"):
        one, other = (dict(tensors(getattr(c, part))) for c in (ours, theirs))
        same = one.keys() == other.keys()
        num_differing = sum(not torch.equal(one[k], other[k]) for k in one.keys() & other.keys())
        verdict = "bit for bit" if same and not num_differing else f"{num_differing} differ"
        rows.append((part, str(len(one)), verdict))
    figures = [
        [(r["step"], r["metrics"]["train/loss"], r["metrics"]["train/lr"]) for r in w.records]
        for w in (disturbed, quiet)
    ]
    whole = [step for step, _, _ in figures[0]] == list(range(1, quiet.last_step + 1))
    equal = figures[0] == figures[1]
    rows.append(
        (
            "record of the steps",
            str(len(figures[0])),
            ("every step once" if whole else "steps missing or twice")
            + (", losses and learning rates equal" if equal else ", figures differ"),
        )
    )
    ap = [checkpoint.meta.metrics.get("val/AP") for checkpoint in (ours, theirs)]
    rows.append(("last AP", "1", "equal" if ap[0] == ap[1] else f"{ap[0]} against {ap[1]}"))
    page.table("The ends compared", ("what", "tensors or lines", "verdict"), rows)


def tensors(tree: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of nested dicts and lists with its path."""
    if isinstance(tree, torch.Tensor):
        yield name, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from tensors(value, f"{name}/{key}")
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from tensors(value, f"{name}/{number}")


def memory(disturbed: Watched, quiet: Watched, page: Page) -> None:
    """Show the trend of each process's memory over its life."""
    rows = []
    for watched in (disturbed, quiet):
        driver = watched.memory.get(None, [])
        rows.append((f"{watched.name}: driver", *trend(driver)))
        workers = [s for process, s in watched.memory.items() if process is not None]
        longest = max(workers, key=len, default=[])
        rows.append((f"{watched.name}: its longest worker", *trend(longest)))
        peaks = [max(mib for _, mib in samples) for samples in workers]
        if len(peaks) > 1:
            first, last = peaks[0], peaks[-1]
            rows.append(
                (
                    f"{watched.name}: peaks of {len(peaks)} workers",
                    f"{first:.0f}",
                    f"{last:.0f}",
                    f"{max(peaks):.0f}",
                    f"{100 * (last / first - 1):+.1f} %",
                )
            )
    page.table(
        "Resident memory in MiB, without pages of Ray's shared store",
        ("process", "first third", "last third", "peak", "change"),
        rows,
    )


def trend(samples: list[tuple[float, float]]) -> tuple[str, str, str, str]:
    """Medians of the first and the last third after the warm-up, the peak, and the change."""
    settled = [mib for at, mib in samples if at - samples[0][0] >= WARM_UP_S]
    if len(settled) < 6:
        return "-", "-", f"{max((mib for _, mib in samples), default=0):.0f}", "too short to say"
    third = len(settled) // 3
    first, last = statistics.median(settled[:third]), statistics.median(settled[-third:])
    change = f"{100 * (last / first - 1):+.1f} %"
    return f"{first:.0f}", f"{last:.0f}", f"{max(settled):.0f}", change


def left_in_ray(page: Page) -> None:
    """Ask Ray what is left of the runs."""
    time.sleep(5)  # it clears up behind the run
    groups = [
        group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"
    ]
    actors = list(actor_table(actor_state_name="ALIVE").values())
    total, free = ray.cluster_resources(), ray.available_resources()
    page.text(
        f"Left in Ray: {len(groups)} placement groups, {len(actors)} actors"
        f"{names_of(actors)}, {total['CPU'] - free.get('CPU', 0):g} of {total['CPU']:g} CPUs "
        f"taken. {' and '.join(RAY_DATAS_OWN)} are Ray Data's, one of each for a cluster."
    )


def names_of(actors: list[dict[str, Any]]) -> str:
    """The classes of actors, for the reader to judge."""
    names = sorted(str(actor.get("ActorClassName", "?")) for actor in actors)
    return f" ({', '.join(names)})" if names else ""


def left_behind(folder: str, before: set[Path], page: Page) -> None:
    """Count processes and files that outlive the runs and their Ray."""
    end = time.monotonic() + 20
    while (processes := list(own_processes())) and time.monotonic() < end:
        time.sleep(0.5)
    files = set(Path(tempfile.gettempdir()).glob(TEMPORARY)) - before
    partial = [path for path in Path(folder).rglob("*") if "partial" in path.name]
    page.text(
        f"Left on the machine: {len(processes)} processes, {len(files)} temporary files or "
        f"folders, {len(partial)} half-written files in the runs' folders."
    )


if __name__ == "__main__":
    typer.run(main)
