"""Does our RetinaNet learn as well as torchvision's?

Both from random weights, with the same trunk, pyramid, head, anchors, assignment thresholds, kinds
of loss, optimizer, schedule and detection thresholds, on the same batches in the same order; both
scored by the same COCO evaluation after the last epoch. Each learns with the rate that served it
best in short runs of another seed. What stays different is said on the page.

Runs that have ended are remembered in the folder `--work`: a benchmark that was broken off goes on
with those that are missing.

python benchmarks/learning.py --bccd BCCD_FOLDER
python benchmarks/learning.py --bccd BCCD_FOLDER --out benchmarks/results/learning_MACHINE_DATE.md
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from contestants import NAMES, Name
from learning_runs import Job, Run, Score, run_all
from learning_setup import SUBJECTS, Subject, agreement, prepared
from measure import OutOption, QuickOption
from page import Page

from retina_ray.config import DataConfig

TRIAL_SEED = 100
"""Of the runs that try a learning rate; none of the seeds that are compared."""

SAME = """The same for both: ResNet-18 (batch norm, nothing frozen), FPN of 64 channels with P3 to
P5 and P6 from C5, four convolutions with group norm in each tower of the head, prior probability
0.01, Kaiming's and Xavier's initialisation of the same forms; anchors (our unrounded ones, centred
in their cells, are handed to torchvision's generator) of 12, 24, 48 and 96 px times three octave
scales and three ratios; IoU thresholds 0.4 and 0.5 with low-quality matches; focal loss with alpha
0.25 and gamma 2; GIoU loss of weight 1; batches of 8 from our plan and loader, both flips; pixel
statistics; AdamW with weight decay 0.05 (none for norms), gradient norm clipped to 1, cosine with
20 steps of warm-up; score threshold 0.05, 1000 candidates a level, NMS 0.5, 100 detections; scored
by `retina_ray.evaluation`. The learning rate is each one's own best of the trials."""

DIFFERENT = """Different: torchvision divides an image's losses by the positive anchors of that
image and takes the mean over images, ours divides those of the batch by its positives, smoothed
over the steps (momentum 0.9 from 100). torchvision also takes for matched what overlaps a box by 0,
if no anchor overlaps it by more; ours never. Our head's convolutions keep their bias under the
norm. The random weights are each model's own draw from the same distributions. torchvision's GIoU
has an epsilon of 1e-7 in its quotients. torchvision gets each image without padding and pads by
itself. Its P6 is a block of ours in the place of its `LastLevelP6P7`, since images this small have
no use for P7."""


def main(
    work: Annotated[Path, typer.Option(help="Data and finished runs.")] = Path("results/learning"),
    bccd: Annotated[
        Path | None, typer.Option(help="BCCD in VOC's layout; without it only the drawn shapes.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Runs of each, 0, 1, ...")] = 3,
    at_once: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Of torch in each run.")] = 1,
    quick: QuickOption = False,
    out: OutOption = None,
) -> None:
    """Train both with several seeds on both sets, and compare their AP."""
    page = Page("Does our RetinaNet learn as well as torchvision's?", device=None, threads=threads)
    page.text(" ".join(SAME.split()))
    page.text(" ".join(DIFFERENT.split()))
    work.mkdir(parents=True, exist_ok=True)
    for subject in SUBJECTS:
        if subject.name == "BCCD" and bccd is None:
            continue
        data = prepared(subject, work, bccd)
        if quick:
            subject = subject.quick()
        page.text(agreement(subject.config(data, seed=0, lr=1e-3, epochs=1)))

        def run(jobs: Sequence[Job]) -> list[Run]:
            done = run_all(jobs, work, at_once=at_once, threads=threads)
            return [done[job.key] for job in jobs]

        rates = choose_rates(subject, data, run, page)
        jobs = [
            Job(
                subject.name,
                name,
                subject.config(data, seed=seed, lr=rates[name], epochs=subject.epochs),
            )
            for seed in range(seeds)
            for name in NAMES
        ]
        report(subject, run(jobs), page)
    page.finish(out)


def choose_rates(
    subject: Subject, data: DataConfig, run: Callable[[Sequence[Job]], list[Run]], page: Page
) -> dict[Name, float]:
    """The learning rate with which each contestant ends best in short runs of another seed."""
    jobs = [
        Job(
            subject.name,
            name,
            subject.config(data, seed=TRIAL_SEED, lr=lr, epochs=subject.trial_epochs),
        )
        for lr in subject.rates
        for name in NAMES
    ]
    trials = run(jobs)
    own = {name: [trial for trial in trials if trial.name == name] for name in NAMES}
    rows = [[name, *(f"{t.last.ap:.3f}" for t in own[name])] for name in NAMES]
    page.table(
        f"{subject.name}: AP of learning rates after {subject.trial_epochs} epochs, "
        f"seed {TRIAL_SEED}",
        ["", *(f"{lr:g}" for lr in subject.rates)],
        rows,
    )
    return {name: max(own[name], key=lambda trial: trial.last.ap).lr for name in NAMES}


def report(subject: Subject, runs: Sequence[Run], page: Page) -> None:
    """Tables and verdict of a set."""
    own = {name: [run for run in runs if run.name == name] for name in NAMES}
    seeds = [f"seed {run.seed}" for run in own["ours"]]
    height, width = subject.size_px
    for figure, of in (("AP", _ap), ("AP50", _ap50)):
        rows = [
            [name, f"{own[name][0].lr:g}", *_with_spread([of(run.last) for run in own[name]])]
            for name in NAMES
        ]
        page.table(
            f"{subject.name}, {height} x {width} px, {figure} after {subject.epochs} epochs",
            ["", "learning rate", *seeds, "mean", "standard deviation"],
            rows,
        )
    epochs = [score.epoch for score in own["ours"][0].scores]
    page.table(
        f"{subject.name}, AP (AP50) over the epochs, mean of the seeds",
        ["", *(str(epoch) for epoch in epochs)],
        [[name, *(_mean_score(own[name], i) for i in range(len(epochs)))] for name in NAMES],
    )
    for name in NAMES:
        train_s = statistics.mean(run.train_cpu_s for run in own[name])
        eval_s = statistics.mean(run.eval_cpu_s for run in own[name])
        skipped = sum(run.num_skipped for run in own[name])
        page.text(
            f"{subject.name}, {name}: {train_s:.0f} CPU seconds of training and {eval_s:.0f} of "
            f"evaluation a run; {skipped} steps left out for a gradient that was not finite."
        )
    for figure, of in (("AP", _ap), ("AP50", _ap50)):
        ours, theirs = ([of(run.last) for run in own[name]] for name in NAMES)
        page.goal(
            f"{subject.name}, mean {figure} of ours less torchvision's, against twice the standard "
            "error of that difference",
            statistics.mean(ours) - statistics.mean(theirs),
            -2 * _standard_error(ours, theirs),
            at_least=True,
            unit="",
        )


def _ap(score: Score) -> float:
    return score.ap


def _ap50(score: Score) -> float:
    return score.ap50


def _with_spread(values: Sequence[float]) -> list[str]:
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    return [*(f"{value:.3f}" for value in values), f"{mean:.3f}", f"{deviation:.3f}"]


def _mean_score(runs: Sequence[Run], index: int) -> str:
    ap = statistics.mean(run.scores[index].ap for run in runs)
    ap50 = statistics.mean(run.scores[index].ap50 for run in runs)
    return f"{ap:.3f} ({ap50:.3f})"


def _standard_error(a: Sequence[float], b: Sequence[float]) -> float:
    """Of the difference of two means."""
    return math.sqrt(statistics.variance(a) / len(a) + statistics.variance(b) / len(b))


if __name__ == "__main__":
    typer.run(main)
