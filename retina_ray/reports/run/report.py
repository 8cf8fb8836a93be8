"""The page of a run: what was run, how it went, how good it is, and what is wrong with it.

It is made of what lies in the run's folder and of the validation set. Each part says what it lacks
where it lacks something; the others are there all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from retina_ray.config import ConfigError
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.errors import DataError
from retina_ray.reports.dataset.page import page
from retina_ray.reports.dataset.pictures import Album
from retina_ray.reports.dataset.splits import read_split
from retina_ray.reports.run.analysis import NoAnalysis, RunAnalysis, analyse
from retina_ray.reports.run.head import (
    bad_image_list,
    problem_list,
    run_facts,
    settings_table,
)
from retina_ray.reports.run.mistakes import confusion_part, error_bars
from retina_ray.reports.run.pictures import best_images, worst_images
from retina_ray.reports.run.progress import progress_charts
from retina_ray.reports.run.record import RunRecord, read_run
from retina_ray.reports.run.style import RUN_STYLE
from retina_ray.reports.run.tables import (
    class_table,
    coco_figures,
    logged_class_table,
    precision_charts,
)
from retina_ray.storage.files import write_text

NUM_IMAGES = 12
"""Worst images that are shown; of the best, a third as many."""

OnStage = Callable[[str], None]
Section = tuple[str, str, str]


@dataclass(frozen=True)
class RunReport:
    """The page of a run.

    Attributes:
        html: refers to nothing outside itself.
        problems: what is missing or damaged, as the page says too.
    """

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
    sections = [
        ("figures", "How good it is", _figures(record, analysis)),
        ("curves", "How it went", progress_charts(record)),
        *_classes(record, analysis),
    ]
    if analysis is not None:
        sections += _analysis(analysis, datasets["val"], num_images, on_stage)
    sections.append(("settings", "Settings", settings_table(record)))
    if record.bad_images:
        sections.append(("bad", "Images that could not be decoded", bad_image_list(record)))
    if analysis is None:
        problems.append(
            "The curves of precision over recall, the kinds of errors, the confusion matrix and "
            "the images are made from predictions and the validation set."
        )
    intro = run_facts(record, datasets, analysis.step if analysis else None)
    html = page(
        title=f"Run {record.name}",
        intro=intro + problem_list(problems),
        sections=sections,
        style=RUN_STYLE,
    )
    return RunReport(html=html, problems=problems)


def write_page(path: Path, html: str) -> None:
    """Write a page in one step: readers see the old one or the new one, whole.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        write_text(path, html)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error


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


def _figures(record: RunRecord, analysis: RunAnalysis | None) -> str:
    """COCO's figures, of the predictions or as they were logged."""
    if analysis is not None:
        when = "" if analysis.step is None else f" at step {analysis.step:,}"
        figures = analysis.metrics.as_metrics(prefix="")
        return coco_figures(figures, f"Of the predictions in this folder{when}.")
    logged = _logged(record)
    if logged is None:
        return "<p>The run was not evaluated yet, so there is no AP to show.</p>"
    step, figures = logged
    return coco_figures(figures, f"As the run logged them at step {step:,}.")


def _classes(record: RunRecord, analysis: RunAnalysis | None) -> Iterator[Section]:
    """The classes one by one."""
    if analysis is not None:
        yield "classes", "Classes", class_table(analysis)
        yield "precision", "Precision over recall", precision_charts(analysis)
    elif (logged := _logged(record)) is not None:
        yield "classes", "Classes", logged_class_table(logged[1])


def _logged(record: RunRecord) -> tuple[int, dict[str, float]] | None:
    """Step and figures of the best checkpoint's evaluation, or of the last one."""
    logged = record.evaluation(record.best_step) or record.evaluation()
    if logged is None:
        return None
    return logged[0], {key.removeprefix("val/"): value for key, value in logged[1].items()}


def _analysis(
    analysis: RunAnalysis, dataset: PreparedDataset, num_images: int, on_stage: OnStage
) -> Iterator[Section]:
    """What is wrong, in numbers and in pictures."""
    yield "errors", "What is wrong", error_bars(analysis)
    yield "confusion", "Which class is taken for which", confusion_part(analysis)
    if num_images:
        on_stage("drawing images")
        album = Album(read_split("val", dataset))
        yield "worst", "Worst images", worst_images(analysis, album, num_images)
        yield "best", "Best images", best_images(analysis, album, -(-num_images // 3))
