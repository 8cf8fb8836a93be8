"""The learning curves of a sweep: AP, and the training loss where there is one, over epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from retina_ray.reports.html.charts import chart_style, say, short_number, to_svg
from retina_ray.reports.html.colors import SERIES, theme_color
from retina_ray.sweep.report.rows import (
    TrialRow,
    average_precision,
    format_value,
    rank,
    short_names,
    swept_paths,
)

BEST = SERIES[1]
_FIRST = (BEST, SERIES[0], SERIES[2])  # of the best three trials
_DPI = 130
_MAX_LEGEND = 120  # letters of the settings in a line of the legend


def plot_learning_curves(rows: Sequence[TrialRow], path: Path) -> Markup:
    """Draw all trials; the best three are colored, an x ends one that was stopped or failed.

    Writes a PNG to `path`, and returns the same as SVG, for a page.
    """
    with chart_style(path.stem):
        with_loss = any(_curve(row, "loss", 1.0) for row in rows)
        figure = new_figure(11 if with_loss else 8.5, 5.3)
        axes = figure.subplots(1, 2 if with_loss else 1, squeeze=False)[0]
        colors = _colors(rows)
        for row in reversed(rank(rows)):  # the best on top
            _draw_curve(axes[0], row, "AP", 100.0, colors.get(row.trial_id))
            if with_loss:
                _draw_curve(axes[1], row, "loss", 1.0, colors.get(row.trial_id))
        for ax in axes:
            ax.set_xlabel("epoch")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].set_ylabel("AP on the validation set, %")
        axes[0].set_ylim(bottom=0)
        axes[0].set_title("Learning curves", loc="left", fontweight="bold", fontsize=10)
        if with_loss:
            _finish_losses(axes[1])
        if not axes[0].lines:
            say(axes[0], "no trial has been evaluated")
        figure.legend(
            handles=_legend(rows, colors), loc="outside lower left", frameon=False, fontsize=8
        )
        return save(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; width and height in inches. Call it within `chart_style`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> Markup:
    """Write a PNG on light paper, and return the figure as SVG."""
    figure.savefig(path, dpi=_DPI, facecolor=theme_color("paper"))
    figure.set_layout_engine("none")  # what it found stays
    return to_svg(figure)


def _finish_losses(ax: Axes) -> None:
    ax.set_ylabel("training loss")
    ax.set_title("Training loss (compares only under equal loss settings)", loc="left", fontsize=10)
    if all((np.asarray(line.get_ydata()) > 0).all() for line in ax.lines):
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(short_number))
        ax.yaxis.set_minor_formatter(FuncFormatter(short_number))


def _draw_curve(ax: Axes, row: TrialRow, key: str, factor: float, color: str | None) -> None:
    points = _curve(row, key, factor)
    if not points:
        return
    epochs, values = zip(*points, strict=True)
    style: dict[str, Any] = {"color": color or theme_color("rest"), "zorder": 3 if color else 2}
    ax.plot(epochs, values, linewidth=2.0 if color else 1.0, **style)
    if len(points) == 1:
        ax.plot(epochs, values, marker=".", markersize=4, **style)
    if row.status in ("stopped", "failed"):
        if row.status == "failed":
            style["color"] = theme_color("warn")
        ax.plot(epochs[-1:], values[-1:], marker="x", markersize=6, markeredgewidth=1.6, **style)
    if key == "AP" and color == BEST:
        x, y = max(points, key=lambda point: point[1])
        edge = theme_color("paper")
        ax.plot([x], [y], marker="o", markersize=8, color=BEST, markeredgecolor=edge, zorder=4)


def _legend(rows: Sequence[TrialRow], colors: dict[str, str]) -> list[Line2D]:
    names = short_names(swept_paths(rows))
    handles = []
    for row in rank(rows):
        if row.trial_id not in colors:
            continue
        settings = ", ".join(f"{names[p]} {format_value(v)}" for p, v in row.params.items())
        if len(settings) > _MAX_LEGEND:
            settings = f"{settings[: _MAX_LEGEND - 3]}..."
        label = f"{row.trial_id}: AP {100 * average_precision(row):.1f}%  {settings}"
        # matplotlib leaves out a label that begins with an underscore.
        line = Line2D([], [], color=colors[row.trial_id], linewidth=2, label=label.lstrip("_"))
        handles.append(line)
    statuses = {row.status for row in rows}
    if any(_curve(row, "AP", 1.0) for row in rows if row.trial_id not in colors):
        handles.append(Line2D([], [], color=theme_color("rest"), label="other trials"))
    for status, color, text in (
        ("stopped", "soft", "stopped early by the scheduler"),
        ("failed", "warn", "failed"),
    ):
        if status in statuses:
            mark = Line2D([], [], color=theme_color(color), marker="x", linestyle="", label=text)
            handles.append(mark)
    return handles


def _colors(rows: Sequence[TrialRow]) -> dict[str, str]:
    """Colors of the best three by trial id."""
    first = [row for row in rank(rows) if not math.isnan(average_precision(row))][:3]
    return {row.trial_id: color for row, color in zip(first, _FIRST, strict=False)}


def _curve(row: TrialRow, key: str, factor: float) -> list[tuple[float, float]]:
    """(epoch, value) of a trial's evaluations, without those that are not finite."""
    return [
        (record["epoch"], factor * record[key])
        for record in row.history
        if record.get(key) is not None and math.isfinite(record[key])
    ]
