"""The trials of a sweep as a table for the console, and the cells that all tables share."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from retina_ray.evaluation.tables import percent
from retina_ray.sweep.report.notes import failure_notes, report_notes
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

_METRICS = ("AP %", "AP50 %")
_COURSE = ("epochs", "best at", "time")
_WIDTHS = {"AP %": 5, "AP50 %": 4, "AP over seeds": 18, "epochs": 6, "best at": 4, "time": 6}
_MAX_SETTING_COLUMNS = 3  # more of them share a column on the console; the page has one for each
_WIDE = 100  # letters of a line; on a narrower console settings share a column, too
_ON_WIDE = ("best at", "time")  # give way to the settings on a narrow one
_STATUS_STYLES = {"finished": "green", "stopped": "yellow", "failed": "red"}


def report_table(rows: Sequence[TrialRow], *, width: int = _WIDE) -> Table:
    """All trials of a sweep, in any order, best first, as a table for a console of this width."""
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
    headings = columns(spread)
    shown = [i for i, heading in enumerate(headings) if width >= _WIDE or heading not in _ON_WIDE]
    for heading in (headings[i] for i in shown):
        table.add_column(heading, justify="right", min_width=_WIDTHS.get(heading))
    table.add_column("status", no_wrap=True)
    # Settings last and foldable: in a narrow terminal they give way, not the metrics.
    together = len(paths) > (_MAX_SETTING_COLUMNS if width >= _WIDE else 1)
    for heading in ["settings"] if together else [names[path] for path in paths]:
        table.add_column(escape(heading), justify="left" if together else "right", overflow="fold")
    ranked = rank(rows)
    for number, row in enumerate(ranked, start=1):
        style = _STATUS_STYLES.get(row.status, "")
        status = f"[{style}]{escape(row.status)}[/]" if style else escape(row.status)
        name, *cells = map(escape, outcome_cells(row, spread, longest_run(rows)))
        outcome = [name, *(cells[i] for i in shown)]
        settings = setting_cells(row, paths)
        if together:
            named = zip(paths, settings, strict=True)
            settings = [", ".join(f"{names[path]}={value}" for path, value in named)]
        bold = "bold" if row is best_trial(ranked) else None
        table.add_row(str(number), *outcome, status, *map(escape, settings), style=bold)
    notes = [*failure_notes(rows), *report_notes(rows)]
    table.caption = escape("\n".join(notes)) if rows else "no trials"
    return table


def columns(spread: dict[str, Repeats]) -> list[str]:
    """The heads of the columns that say how a trial went."""
    return [*_METRICS, *(["AP over seeds"] if spread else []), *_COURSE]


def outcome_cells(row: TrialRow, spread: dict[str, Repeats], longest: int) -> list[str]:
    """A trial's name, its metrics and its course, in the order of the columns."""
    ap = percent(average_precision(row))
    mark = "*" if ap != "-" and row.epochs_run < longest else ""
    cells = [row.trial_id, ap + mark, percent(row.metrics.get("AP50"))]
    if spread:
        same = spread.get(row.trial_id)
        cells.append(
            f"{100 * same.mean:.1f} ± {100 * same.std:.1f} (n={same.num_seeds})" if same else "-"
        )
    best_at = str(row.best_epoch) if ap != "-" else "-"
    return [*cells, str(row.epochs_run), best_at, format_duration(row.time_s)]


def setting_cells(row: TrialRow, paths: Sequence[str]) -> list[str]:
    """A trial's settings, in the order of the paths."""
    return [format_value(row.params.get(path)) for path in paths]
