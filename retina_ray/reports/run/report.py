"""The page of a run: what was run, how it went, how good it is, and what is wrong with it.

It is made of the run's folder and of the validation set. A part that lacks something says so; the
others are there all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.errors import DataError
from retina_ray.reports.dataset.images import Album
from retina_ray.reports.dataset.splits import read_split
from retina_ray.reports.html.render import render
from retina_ray.reports.run.analysis import NoAnalysis, RunAnalysis, analyse
from retina_ray.reports.run.facts import data_facts, run_facts, settings_table
from retina_ray.reports.run.images import JudgedImage, judged_images
from retina_ray.reports.run.mistakes import confusion, error_bars
from retina_ray.reports.run.progress import progress_charts
from retina_ray.reports.run.record import RunRecord, read_run
from retina_ray.reports.run.tables import (
    IOU_NAMES,
    class_table,
    coco_metrics,
    logged_class_table,
    precision_charts,
)

NUM_IMAGES = 12
"""Worst images that are shown; of the best, a third as many."""

OnStage = Callable[[str], None]


@dataclass(frozen=True)
class RunReport:
    """The page of a run, and what is missing or damaged, as the page says too."""

    html: str
    problems: list[str]


def run_report(
    folder: str | os.PathLike[str],
    *,
    shown_as: str | None = None,
    data: str | None = None,
    num_images: int = NUM_IMAGES,
    on_stage: OnStage = lambda what: None,
) -> RunReport:
    """Make the page of a run, finished or not.

    Args:
        folder: of the run, on a local disk.
        shown_as: what to call the folder; None: by its path.
        data: folder or URI of the validation set, where it has moved; None: as the run says.
        num_images: worst images to show; of the best, a third as many.
        on_stage: called with what is being done.

    Raises:
        DataError: there is no run.
        ValueError: `num_images` is negative.
    """
    if num_images < 0:
        raise ValueError(f"num_images = {num_images} must not be negative")
    on_stage("reading the run")
    record = read_run(Path(folder), shown_as)
    problems = list(record.problems)
    datasets = _open_datasets(record, data, problems)
    analysis: RunAnalysis | None = None
    if "val" in datasets:
        on_stage("analysing the predictions")
        try:
            analysis = analyse(record, datasets["val"])
        except (NoAnalysis, DataError) as error:
            problems.append(str(error))
    if analysis is None:
        problems.append(
            "The curves of precision over recall, the kinds of errors, the confusion matrix and "
            "the images are made from predictions and the validation set."
        )
    on_stage("drawing charts")
    logged = _logged(record)
    shown = {} if logged is None else logged[1]
    album: Album | None = None
    if analysis is not None:
        shown = analysis.metrics.as_metrics(prefix="")
        if num_images:
            on_stage("drawing images")
            album = Album(read_split("val", datasets["val"]))

    def judged(chosen: Sequence[int]) -> list[JudgedImage]:
        return list(judged_images(analysis, album, chosen)) if analysis and album else []

    html = render(
        "reports/run/page.html.j2",
        title=f"Run {record.name}",
        record=record,
        facts=run_facts(record, analysis.step if analysis else None),
        data_facts=data_facts(record, datasets),
        problems=problems,
        analysis=analysis,
        logged_step=None if logged is None else logged[0],
        coco=coco_metrics(shown) if shown else [],
        curves=list(progress_charts(record)),
        classes=class_table(analysis) if analysis else logged_class_table(shown),
        precision=precision_charts(analysis) if analysis else None,
        iou_names=IOU_NAMES,
        errors=error_bars(analysis) if analysis else None,
        confusion=confusion(analysis) if analysis else None,
        with_images=album is not None,
        worst=judged(analysis.images.worst(num_images)) if analysis else [],
        best=judged(analysis.images.best(-(-num_images // 3))) if analysis else [],
        settings=settings_table(record),
    )
    return RunReport(html=html, problems=problems)


def _open_datasets(
    record: RunRecord, data: str | None, problems: list[str]
) -> dict[str, PreparedDataset]:
    """The run's sets; one that cannot be opened is told of."""
    datasets = {}
    for name, place in (("train", record.run.get("train_uri")),
                        ("val", data or record.run.get("val_uri"))):  # fmt: skip
        if not place:
            problems.append(f"run.json names no {name} set.")
            continue
        try:
            datasets[name] = PreparedDataset.open(place)
        except DataError as error:
            hint = " If it has moved, name its place by --data." if name == "val" else ""
            problems.append(f"The {name} set cannot be opened: {error}.{hint}")
    return datasets


def _logged(record: RunRecord) -> tuple[int, dict[str, float]] | None:
    """Step and metrics of the best checkpoint's evaluation, or of the last one."""
    logged = record.evaluation(record.best_step) or record.evaluation()
    if logged is None:
        return None
    return logged[0], {key.removeprefix("val/"): value for key, value in logged[1].items()}
