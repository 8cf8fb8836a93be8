"""The report of a sweep: a table for the console, and files that say what it can and cannot show.

The ranking is honest about three things: which trials ran less long than others, that a best of
many evaluations flatters, and how far runs of equal settings lie apart, where the sweep knows it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from retina_ray.sweep.report.notes import failure_notes, one_line, report_notes, summary
from retina_ray.sweep.report.results import read_results, write_csv, write_json
from retina_ray.sweep.report.rows import (
    Repeats,
    TrialRow,
    average_precision,
    best_trial,
    format_duration,
    format_value,
    longest_run,
    rank,
    repeats,
    short_names,
    swept_paths,
)

__all__ = [
    "ReportPaths",
    "TrialRow",
    "rank",
    "read_results",
    "report_notes",
    "report_table",
    "write_report",
]

_FIGURES = ("AP %", "AP50 %")
_COURSE = ("epochs", "best at", "time")
_WIDTHS = {"AP %": 5, "AP50 %": 4, "AP over seeds": 18, "epochs": 6, "best at": 4, "time": 6}
_MAX_SETTING_COLUMNS = 3  # more of them share a column on the console; the page has one for each
_STATUS_STYLES = {"finished": "green", "stopped": "yellow", "failed": "red"}


@dataclass(frozen=True)
class ReportPaths:
    """Where the parts of a report lie."""

    report: Path
    results_json: Path
    results_csv: Path
    learning_curves: Path
    parameters: Path


def report_table(rows: Sequence[TrialRow], *, max_rows: int | None = None) -> Table:
    """The trials as a table for the console, best first.

    Args:
        rows: all trials of the sweep, in any order.
        max_rows: show only the first ones; null shows all.
    """
    paths = swept_paths(rows)
    names = short_names(paths)
    spread = repeats(rows)
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption_justify="left",
        caption_style="dim",
    )
    table.add_column("#", justify="right")
    table.add_column("trial", no_wrap=True)
    for heading in (*_FIGURES, *(["AP over seeds"] if spread else []), *_COURSE):
        table.add_column(heading, justify="right", min_width=_WIDTHS.get(heading))
    table.add_column("status", no_wrap=True)
    # Settings last and foldable: in a narrow terminal they give way, not the figures.
    together = len(paths) > _MAX_SETTING_COLUMNS
    for heading in ["settings"] if together else [names[path] for path in paths]:
        table.add_column(escape(heading), justify="left" if together else "right", overflow="fold")
    ranked = rank(rows)
    for number, row in enumerate(ranked[:max_rows], start=1):
        style = _STATUS_STYLES.get(row.status, "")
        status = f"[{style}]{escape(row.status)}[/]" if style else escape(row.status)
        outcome = map(escape, _outcome(row, spread, longest_run(rows)))
        settings = _settings(row, paths)
        if together:
            named = zip(paths, settings, strict=True)
            settings = [", ".join(f"{names[path]} {value}" for path, value in named)]
        bold = "bold" if row is best_trial(ranked) else None
        table.add_row(str(number), *outcome, status, *map(escape, settings), style=bold)
    hidden = len(ranked) - len(ranked[:max_rows])
    notes = [f"{hidden} more trials are in the report"] if hidden else []
    notes += [*failure_notes(rows), *report_notes(rows)]
    table.caption = escape("\n".join(notes)) if rows else "no trials"
    return table


def write_report(
    rows: Sequence[TrialRow],
    out_dir: str | Path,
    *,
    sweep_name: str,
    train_on_command: str | None = None,
    resume_command: str | None = None,
    num_val_images: int | None = None,
    num_val_boxes: int | None = None,
    log_params: Collection[str] | None = None,
) -> ReportPaths:
    """Write `report.html` (one file, pictures inside), `results.json`, `results.csv` and two PNGs.

    Args:
        rows: all trials, in any order; none, or failures only, are fine.
        out_dir: the folder; made where it is missing.
        sweep_name: the title.
        train_on_command: how to train on from the best checkpoint.
        resume_command: how to carry on with a sweep that was interrupted.
        num_val_images: images of the validation set.
        num_val_boxes: boxes of the validation set.
        log_params: dotted paths that are plotted on a log axis; null: numbers with a wide span.
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
        notes=report_notes(rows, num_val_images=num_val_images, num_val_boxes=num_val_boxes),
        header=[
            *("#", "trial", *_FIGURES, *(["AP over seeds"] if spread else []), *_COURSE),
            *(names[path] for path in swept),
            "status",
        ],
        lines=[
            (
                row.status,
                [
                    *(str(number), *_outcome(row, spread, longest)),
                    *(*_settings(row, swept), _status(row)),
                ],
            )
            for number, row in enumerate(rank(rows), start=1)
        ],
        curves=plot_learning_curves(rows, paths.learning_curves),
        parameters=plot_parameters(rows, paths.parameters, log_params=log_params),
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


def _outcome(row: TrialRow, spread: dict[str, Repeats], longest: int) -> list[str]:
    """A trial's name, its figures and its course, in the order of the columns."""
    ap = _percent(average_precision(row))
    mark = "*" if ap != "-" and row.epochs_run < longest else ""
    cells = [row.trial_id, ap + mark, _percent(row.metrics.get("AP50"))]
    if spread:
        same = spread.get(row.trial_id)
        cells.append(
            f"{100 * same.mean:.1f} ± {100 * same.std:.1f} (n={same.num_seeds})" if same else "-"
        )
    best_at = str(row.best_epoch) if ap != "-" else "-"
    return [*cells, str(row.epochs_run), best_at, format_duration(row.time_s)]


def _settings(row: TrialRow, paths: Sequence[str]) -> list[str]:
    return [format_value(row.params.get(path)) for path in paths]


def _status(row: TrialRow) -> str:
    return f"{row.status}: {one_line(row.reason)}" if row.reason else row.status


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"
