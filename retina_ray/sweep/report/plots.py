"""The two pictures of a sweep's report: learning curves, and AP over each swept setting.

Figures are made without pyplot, so there is no global state and no window.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from retina_ray.sweep.report.rows import (
    TrialRow,
    average_precision,
    best_trial,
    format_value,
    longest_run,
    rank,
    short_names,
    swept_paths,
)

_BEST, _REST, _FAILED, _NEXT = "#d55e00", "#9aa3ab", "#b2182b", ("#0072b2", "#009e73")
_DPI = 130
_MAX_LEGEND = 120  # letters of the settings in a line of the legend
_LOG_SPAN = 50  # numbers that span more than this get a log axis, where the caller does not say

Point = tuple[float, float, TrialRow]


def plot_learning_curves(rows: Sequence[TrialRow], path: Path) -> Path:
    """AP over epochs of all trials, and the training loss where there is one.

    The best three are coloured; an x ends a trial that was stopped, and a red one a failed trial.
    """
    with_loss = any(_curve(row, "loss", 1.0) for row in rows)
    figure = _figure(11 if with_loss else 8.5, 5.3)
    axes = figure.subplots(1, 2 if with_loss else 1, squeeze=False)[0]
    colours = _colours(rows)
    for row in reversed(rank(rows)):  # the best on top
        _draw_curve(axes[0], row, "AP", 100.0, colours.get(row.trial_id))
        if with_loss:
            _draw_curve(axes[1], row, "loss", 1.0, colours.get(row.trial_id))
    for ax in axes:
        _style(ax)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("AP on the validation set, %")
    axes[0].set_ylim(bottom=0)
    axes[0].set_title("Learning curves", loc="left", fontweight="bold", fontsize=10)
    if with_loss:
        axes[1].set_ylabel("training loss")
        axes[1].set_title(
            "Training loss (compares only under equal loss settings)", loc="left", fontsize=10
        )
        if all(value > 0 for line in axes[1].lines for value in line.get_ydata()):
            axes[1].set_yscale("log")
            for axis_part in (axes[1].yaxis.set_major_formatter, axes[1].yaxis.set_minor_formatter):
                axis_part(FuncFormatter(lambda value, _: f"{value:g}"))
    if not axes[0].lines:
        _say(axes[0], "no trial has been evaluated")
    figure.legend(
        handles=_curve_legend(rows, colours), loc="outside lower left", ncols=1, frameon=False,
        fontsize=8,
    )  # fmt: skip
    return _save(figure, path)


def plot_parameters(
    rows: Sequence[TrialRow], path: Path, *, log_params: Collection[str] | None = None
) -> Path:
    """AP over each swept setting: numbers on an axis, choices in columns.

    Args:
        rows: the trials; those without an AP show as a red x at the bottom.
        path: of the PNG.
        log_params: dotted paths that are drawn on a log axis; null: numbers that span a factor
            above 50.
    """
    paths = swept_paths(rows)
    num_columns = min(3, max(1, len(paths)))
    num_rows = max(1, math.ceil(len(paths) / num_columns))
    figure = _figure(max(7.5, 3.9 * num_columns), 3.4 * num_rows + 1.1)
    grid = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True)
    panels = list(grid.flat)
    epochs = Normalize(0, max(1, longest_run(rows)))
    names = short_names(paths)
    for ax, swept in zip(panels, paths, strict=False):
        _draw_parameter(ax, rows, swept, epochs, log_params)
        ax.set_title(names[swept], fontsize=10, fontweight="bold")
        _style(ax)
    for ax in panels[len(paths) :]:
        ax.set_axis_off()
    if not paths:
        _say(panels[0], "no setting was swept")
    if all(map(_is_nan, rows)):
        panels[0].set_ylim(0, 1)  # shared by all panels
    for line in grid:
        line[0].set_ylabel("AP, %")
    colour_bar = ScalarMappable(norm=epochs, cmap="viridis_r")
    bar = figure.colorbar(colour_bar, ax=grid, label="epochs run", shrink=0.8, pad=0.01)
    bar.locator = MaxNLocator(integer=True, nbins=6)
    bar.update_ticks()
    figure.supxlabel(_parameter_caption(rows), fontsize=8, color="#444444", x=0.01, ha="left")
    return _save(figure, path)


def _parameter_caption(rows: Sequence[TrialRow]) -> str:
    caption = (
        "A point is one trial at its best evaluation; the orange ring marks the best trial.\n"
        "Other settings vary too, so a trend here is no proof.\n"
    )
    longest = longest_run(rows)
    shorter = sum(row.epochs_run < longest for row in rows if not _is_nan(row))
    if shorter:
        caption += (
            f"Small, pale points ran fewer than {longest} epochs ({shorter} trials): "
            "they do not compare with the large, dark ones.\n"
        )
    if missing := sum(map(_is_nan, rows)):
        caption += f"Red x at the bottom: no AP ({missing} trials)."
    return caption


def _draw_parameter(
    ax: Axes,
    rows: Sequence[TrialRow],
    swept: str,
    epochs: Normalize,
    log_params: Collection[str] | None,
) -> None:
    """One panel; trials in which the setting had no effect are left out and counted."""
    used = [row for row in rows if row.params.get(swept) is not None]
    values = [row.params[swept] for row in used]
    numbers = bool(values) and all(_is_number(value) for value in values)
    if numbers:
        positions = [float(value) for value in values]
        spread = min(positions) > 0 and max(positions) / min(positions) > _LOG_SPAN
        wanted = spread if log_params is None else swept in log_params and min(positions) > 0
        if wanted:
            ax.set_xscale("log")
        if len(set(positions)) <= 6:
            _name_ticks(ax, sorted(set(positions)))
    else:
        positions = _columns(ax, values)
    if not used:
        _say(ax, "without effect in every trial")
    points = [(x, 100 * average_precision(r), r) for x, r in zip(positions, used, strict=True)]
    _draw_points(ax, points, epochs, best=best_trial(rows))
    if idle := len(rows) - len(used):
        ax.text(
            0.99, 0.98, f"without effect in {idle}", transform=ax.transAxes, ha="right", va="top",
            fontsize=7, color="#666666",
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
    limit = 24 if tall else room
    shown = [format_value(label, limit=limit).replace("$", r"\$") for label in different]
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


def _draw_points(
    ax: Axes, points: Sequence[Point], epochs: Normalize, *, best: TrialRow | None
) -> None:
    shown = [point for point in points if not math.isnan(point[1])]
    if shown:
        run = [row.epochs_run for _, _, row in shown]
        ax.scatter(
            [x for x, _, _ in shown], [y for _, y, _ in shown], c=run, norm=epochs,
            s=[18 + 50 * float(epochs(n)) for n in run], cmap="viridis_r", edgecolors="white",
            linewidths=0.6, zorder=3,
        )  # fmt: skip
    for x, y, row in shown:
        if best is not None and row.trial_id == best.trial_id:
            ax.scatter(
                [x], [y], s=150, facecolors="none", edgecolors=_BEST, linewidths=1.8, zorder=4
            )
    if missing := [x for x, y, _ in points if math.isnan(y)]:
        ax.scatter(
            missing, [0.03] * len(missing), transform=ax.get_xaxis_transform(), marker="x", s=28,
            color=_FAILED, linewidths=1.3, zorder=3, clip_on=False,
        )  # fmt: skip


def _draw_curve(ax: Axes, row: TrialRow, key: str, factor: float, colour: str | None) -> None:
    points = _curve(row, key, factor)
    if not points:
        return
    epochs, values = zip(*points, strict=True)
    style = {"color": colour or _REST, "zorder": 3 if colour else 2, "alpha": 1 if colour else 0.7}
    ax.plot(epochs, values, linewidth=2.0 if colour else 1.0, **style)
    if len(points) == 1:
        ax.plot(epochs, values, marker=".", markersize=4, **style)
    if row.status in ("stopped", "failed"):
        if row.status == "failed":
            style["color"] = _FAILED
        ax.plot(epochs[-1:], values[-1:], marker="x", markersize=6, markeredgewidth=1.6, **style)
    if key == "AP" and colour == _BEST:
        x, y = max(points, key=lambda point: point[1])
        ax.plot([x], [y], marker="o", markersize=8, color=_BEST, markeredgecolor="white", zorder=4)


def _curve_legend(rows: Sequence[TrialRow], colours: dict[str, str]) -> list[Line2D]:
    names = short_names(swept_paths(rows))
    handles = []
    for row in rank(rows):
        if row.trial_id not in colours:
            continue
        settings = ", ".join(f"{names[p]} {format_value(v)}" for p, v in row.params.items())
        if len(settings) > _MAX_LEGEND:
            settings = f"{settings[: _MAX_LEGEND - 3]}..."
        label = f"{row.trial_id}: AP {100 * average_precision(row):.1f}%  {settings}"
        line = Line2D([], [], color=colours[row.trial_id], linewidth=2, label=_plain(label))
        handles.append(line)
    statuses = {row.status for row in rows}
    if any(_curve(row, "AP", 1.0) for row in rows if row.trial_id not in colours):
        handles.append(Line2D([], [], color=_REST, label="other trials"))
    for status, colour, text in (
        ("stopped", "#555555", "stopped early by the scheduler"),
        ("failed", _FAILED, "failed"),
    ):
        if status in statuses:
            handles.append(Line2D([], [], color=colour, marker="x", linestyle="", label=text))
    return handles


def _colours(rows: Sequence[TrialRow]) -> dict[str, str]:
    """Colours of the best three by trial id."""
    first = [row for row in rank(rows) if not _is_nan(row)][:3]
    return {row.trial_id: c for row, c in zip(first, (_BEST, *_NEXT), strict=False)}


def _curve(row: TrialRow, key: str, factor: float) -> list[tuple[float, float]]:
    """(epoch, value) of a trial's evaluations, without those that are not finite."""
    points = []
    for record in row.history:
        value = record.get(key)
        if value is not None and math.isfinite(value):
            points.append((record["epoch"], factor * value))
    return points


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path)
    figure.clear()
    return path


def _style(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#e3e6e8", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8)


def _say(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="#666666")


def _plain(text: str) -> str:
    """Text that matplotlib takes neither for a formula nor for a hidden label."""
    return text.replace("$", r"\$").lstrip("_")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_nan(row: TrialRow) -> bool:
    return math.isnan(average_precision(row))
