"""AP over each swept setting of a sweep: numbers on an axis, choices in columns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from retina_ray.reports.html.charts import chart_style, say, short_number
from retina_ray.reports.html.colors import SERIES, theme_color
from retina_ray.sweep.report.curves import BEST, new_figure, save
from retina_ray.sweep.report.rows import (
    TrialRow,
    average_precision,
    best_trial,
    format_value,
    longest_run,
    short_names,
    swept_paths,
)

_LOG_SPAN = 50  # numbers that span more than this get a log axis

Point = tuple[float, float, TrialRow]


def plot_parameters(rows: Sequence[TrialRow], path: Path) -> Markup:
    """Draw a panel for each swept setting; trials without an AP show as a red x at the bottom.

    Writes a PNG to `path`, and returns the same as SVG, for a page.
    """
    paths = swept_paths(rows)
    names = short_names(paths)
    num_columns = min(3, max(1, len(paths)))
    num_rows = max(1, math.ceil(len(paths) / num_columns))
    with chart_style(path.stem):
        figure = new_figure(max(7.5, 3.7 * num_columns), 3.2 * num_rows + 1.2)
        grid = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True)
        panels = list(grid.flat)
        for ax, swept in zip(panels, paths, strict=False):
            ax.set_title(names[swept], fontsize=10, fontweight="bold")
            _draw_parameter(ax, rows, swept)
        for ax in panels[len(paths) :]:
            ax.set_axis_off()
        if not paths:
            say(panels[0], "no setting was swept")
        if all(math.isnan(average_precision(row)) for row in rows):
            panels[0].set_ylim(0, 1)  # shared by all panels
        for line in grid:
            line[0].set_ylabel("AP, %")
        figure.legend(
            handles=_legend(rows), loc="outside upper left", ncols=8, frameon=False, fontsize=8
        )
        caption = theme_color("soft")
        figure.supxlabel(_caption(rows), fontsize=8, color=caption, x=0.01, ha="left")
        return save(figure, path)


def _legend(rows: Sequence[TrialRow]) -> list[Line2D]:
    """What the size and depth of a point mean, and the marks."""
    longest = longest_run(rows)
    run = sorted({row.epochs_run for row in rows if not math.isnan(average_precision(row))})
    shown = [run[at] for at in sorted({0, len(run) // 2, len(run) - 1})] if run else []
    handles = [
        Line2D(
            [], [], marker="o", linestyle="", color=SERIES[0], alpha=_depth(epochs, longest),
            markersize=math.sqrt(_size(epochs, longest)), markeredgewidth=0,
            label=f"{epochs} epoch{'s' * (epochs != 1)}",
        )
        for epochs in shown
    ]  # fmt: skip
    if shown:
        ring = Line2D(
            [], [], marker="o", linestyle="", markersize=11, markerfacecolor="none",
            markeredgecolor=BEST, markeredgewidth=1.8, label="best trial",
        )  # fmt: skip
        handles.append(ring)
    return handles


def _size(epochs: int, longest: int) -> float:
    return 18 + 50 * epochs / max(1, longest)


def _depth(epochs: int, longest: int) -> float:
    return 0.35 + 0.65 * epochs / max(1, longest)


def _caption(rows: Sequence[TrialRow]) -> str:
    caption = (
        "A point is one trial at its best evaluation. Other settings vary too, so a trend here is "
        "no proof.\n"
    )
    longest = longest_run(rows)
    scored = [row for row in rows if not math.isnan(average_precision(row))]
    if shorter := sum(row.epochs_run < longest for row in scored):
        caption += (
            f"Small, faint points ran fewer than {longest} epochs ({shorter} trials): "
            "they do not compare with the large, full ones.\n"
        )
    if missing := len(rows) - len(scored):
        caption += f"Red x at the bottom: no AP ({missing} trials)."
    return caption


def _draw_parameter(ax: Axes, rows: Sequence[TrialRow], swept: str) -> None:
    """One panel; trials in which the setting had no effect are left out and counted."""
    ax.tick_params(labelsize=8)
    used = [row for row in rows if row.params.get(swept) is not None]
    values = [row.params[swept] for row in used]
    if values and all(map(_is_number, values)):
        positions = [float(value) for value in values]
        if min(positions) > 0 and max(positions) / min(positions) > _LOG_SPAN:
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter(short_number)
        if len(set(positions)) <= 6:
            _name_ticks(ax, sorted(set(positions)))
    else:
        positions = _columns(ax, values)
    if not used:
        say(ax, "without effect in every trial")
    points = [(x, 100 * average_precision(r), r) for x, r in zip(positions, used, strict=True)]
    _draw_points(ax, points, longest=longest_run(rows), best=best_trial(rows))
    if idle := len(rows) - len(used):
        ax.text(
            0.99, 0.98, f"without effect in {idle}", transform=ax.transAxes, ha="right", va="top",
            fontsize=7, color=theme_color("soft"),
        )  # fmt: skip


def _columns(ax: Axes, values: Sequence[Any]) -> list[float]:
    """A column for each different value, its points side by side; returns where they lie."""
    labels = [format_value(value, limit=60) for value in values]
    different = list(dict.fromkeys(sorted(labels, key=lambda label: (len(label), label))))
    seen = dict.fromkeys(different, 0)
    positions = []
    for label in labels:
        count, number = labels.count(label), seen[label]
        seen[label] += 1
        step = min(0.12, 0.6 / count)
        positions.append(different.index(label) + step * (number - (count - 1) / 2))
    room = max(8, 44 // max(1, len(different)))
    tall = any(len(label) > room for label in different)
    shown = [format_value(label, limit=24 if tall else room) for label in different]
    ax.set_xticks(range(len(different)), shown, rotation=25 if tall else 0)
    if tall:
        for tick in ax.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor", fontsize=7)
    ax.set_xlim(-0.6, max(len(different) - 0.4, 0.6))
    return positions


def _name_ticks(ax: Axes, values: Sequence[float]) -> None:
    """Few different numbers: a tick at each of them, unless they would overlap."""
    low, high = min(values), max(values)
    scale = math.log if ax.get_xscale() == "log" else float
    width = scale(high) - scale(low)
    steps = [scale(b) - scale(a) for a, b in itertools.pairwise(values)]
    if len(values) == 1 or min(steps) > 0.12 * width:
        ax.set_xticks(values, [format_value(value) for value in values], minor=False)
        ax.set_xticks([], minor=True)


def _draw_points(ax: Axes, points: Sequence[Point], *, longest: int, best: TrialRow | None) -> None:
    for x, y, row in points:
        if math.isnan(y):
            ax.scatter(
                [x], [0.03], transform=ax.get_xaxis_transform(), marker="x", s=28,
                color=theme_color("warn"), linewidths=1.3, zorder=3, clip_on=False,
            )  # fmt: skip
            continue
        ax.scatter(
            [x], [y], color=SERIES[0], alpha=_depth(row.epochs_run, longest),
            s=_size(row.epochs_run, longest), linewidths=0.6, edgecolors=theme_color("paper"),
            zorder=3,
        )  # fmt: skip
        if best is not None and row.trial_id == best.trial_id:
            ax.scatter([x], [y], s=150, facecolors="none", edgecolors=BEST, linewidths=1.8)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
