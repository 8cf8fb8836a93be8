"""The files of a sweep's report: the page, two charts, and all results for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retina_ray.sweep.report.notes import failure_notes, one_line, report_notes, summary
from retina_ray.sweep.report.results import write_csv, write_json
from retina_ray.sweep.report.rows import (
    TrialRow,
    average_precision,
    best_trial,
    format_value,
    longest_run,
    rank,
    repeats,
    short_names,
    swept_paths,
)
from retina_ray.sweep.report.table import columns, outcome_cells, setting_cells


@dataclass(frozen=True)
class ReportPaths:
    """Where the parts of a report lie."""

    report: Path
    results_json: Path
    results_csv: Path
    learning_curves: Path
    parameters: Path


def write_report(
    rows: Sequence[TrialRow],
    out_dir: str | Path,
    *,
    sweep_name: str,
    train_on_command: str | None = None,
    resume_command: str | None = None,
    num_val_images: int | None = None,
    num_val_boxes: int | None = None,
) -> ReportPaths:
    """Write `report.html` (one file, images inside), `results.json`, `results.csv` and two PNGs.

    Args:
        rows: all trials, in any order; none, or failures only, are fine.
        out_dir: the folder; made where it is missing.
        sweep_name: the title.
        train_on_command: how to train on from the best checkpoint.
        resume_command: how to carry on with a sweep that was interrupted.
        num_val_images: images of the validation set.
        num_val_boxes: its boxes.
    """
    # Here, because trials import this module's rows and have no use for matplotlib.
    from retina_ray.reports.html.render import render
    from retina_ray.sweep.report.curves import plot_learning_curves
    from retina_ray.sweep.report.parameters import plot_parameters

    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    paths = ReportPaths(
        report=folder / "report.html",
        results_json=folder / "results.json",
        results_csv=folder / "results.csv",
        learning_curves=folder / "learning_curves.png",
        parameters=folder / "parameters.png",
    )
    write_json(
        paths.results_json,
        rows,
        sweep_name=sweep_name,
        num_val_images=num_val_images,
        num_val_boxes=num_val_boxes,
    )
    write_csv(paths.results_csv, rows)
    best = best_trial(rows)
    swept = swept_paths(rows)
    names = short_names(swept)
    spread = repeats(rows)
    longest = longest_run(rows)
    commands = {
        "Train on from the best checkpoint": train_on_command,
        "Resume this sweep": resume_command,
    }
    page = render(
        "sweep/report/page.html.j2",
        title=sweep_name,
        summary=summary(rows),
        best=None if best is None else best.trial_id,
        best_facts={} if best is None else _facts(best),
        commands={words: command for words, command in commands.items() if command},
        notes=[
            *failure_notes(rows),
            *report_notes(rows, num_val_images=num_val_images, num_val_boxes=num_val_boxes),
        ],
        header=[
            *("#", "trial", *columns(spread)),
            *(names[path] for path in swept),
            "status",
        ],
        lines=[
            (
                row.status,
                [
                    *(str(number), *outcome_cells(row, spread, longest)),
                    *(*setting_cells(row, swept), _status(row)),
                ],
            )
            for number, row in enumerate(rank(rows), start=1)
        ],
        curves=plot_learning_curves(rows, paths.learning_curves),
        parameters=plot_parameters(rows, paths.parameters),
    )
    paths.report.write_text(page, encoding="utf-8")
    return paths


def _facts(row: TrialRow) -> dict[str, list[str]]:
    """The best trial with its settings written out."""
    ap50 = row.metrics.get("AP50")
    metrics = f"AP {100 * average_precision(row):.1f}%"
    metrics += "" if ap50 is None else f", AP50 {100 * ap50:.1f}%"
    return {
        "result": [f"{metrics} at epoch {row.best_epoch} of {row.epochs_run} ({row.status})"],
        "checkpoint": [row.checkpoint or "none was kept"],
        **{path: [format_value(value, limit=400)] for path, value in row.params.items()},
    }


def _status(row: TrialRow) -> str:
    """Why a trial failed stands below the table, for it may be long."""
    has_reason = row.reason and row.status != "failed"
    return f"{row.status}: {one_line(row.reason)}" if has_reason else row.status
