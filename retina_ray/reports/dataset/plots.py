"""How the charts of a data set's page are drawn.

No text of the data set (names of splits, say) is drawn: the page writes it beside the charts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from retina_ray.reports.html.charts import Draw, draw_counts, short_number
from retina_ray.reports.html.colors import LINE_STYLES, SERIES, theme_color

_LOG_BINS = 37  # odd, so that equal values stand in the middle
_CELLS = (14, 64)  # of a chart of colors, each way: few for few boxes, so that no noise shows
_TICKS = {1.0: (1, 1.5, 2, 3, 4, 5, 7), 3.2: (1, 2, 5), math.inf: (1,)}
"""What is numbered in a decade of a log axis that spans up to so many decades."""
_BAR_PLACE = (0.88, 0.13, 0.022, 0.834)

Values = Sequence[NDArray[np.float64]]


def histogram(
    series: Values,
    *,
    label: str,
    of: str,
    log: bool,
    marks: Sequence[float] = (),
    pale_marks: Sequence[float] = (),
    span: tuple[float, float] | None = None,
) -> Draw | None:
    """Shares of each split's values by size, as steps.

    Args:
        series: values of each split; any may be empty. On a log axis all are above 0.
        label: of the axis.
        of: what the shares are of, e.g. "boxes".
        log: a log axis; otherwise the values are whole numbers.
        marks: values to mark by a line with its number.
        pale_marks: values to mark by a faint line.
        span: ends of the axis; None takes the ends of the values.
    """
    edges = _log_edges(series, span) if log else _whole_edges(series, span)

    def draw(axes: Axes) -> None:
        ink = theme_color("axis")
        for value in pale_marks:
            axes.axvline(value, color=ink, alpha=0.5, linewidth=0.8, linestyle=":")
        for value in marks:
            axes.axvline(value, color=ink, alpha=0.7, linewidth=0.9)
            axes.annotate(
                f"{value:g}", (value, 1), (0, 2), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center", fontsize=9.5,
                annotation_clip=True,
            )  # fmt: skip
        for number, values in enumerate(series):
            if len(values):
                counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
                axes.stairs(
                    100 * counts / len(values), edges, color=SERIES[number % len(SERIES)],
                    linestyle=LINE_STYLES[number % len(LINE_STYLES)], linewidth=1.8,
                )  # fmt: skip
        axes.set_xlabel(label)
        axes.set_ylabel(f"% of {of}")
        axes.set_ylim(bottom=0)
        if log:
            axes.set_xscale("log")
            axes.set_xlim(edges[0], edges[-1])
            axes.xaxis.set_major_locator(FixedLocator(_log_ticks(edges[0], edges[-1])))
            axes.xaxis.set_major_formatter(short_number)
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.set_xlim(edges[0], edges[-1] + 0.02 * (edges[-1] - edges[0]))
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))

    return draw if any(map(len, series)) else None


def density(
    points: NDArray[np.float64],
    *,
    labels: tuple[str, str],
    unit: bool,
    span: tuple[float, float] | None = None,
    guides: Sequence[float] = (),
) -> Draw | None:
    """How many points lie where, by color.

    Args:
        points: (N, 2) x and y; above 0 unless `unit`.
        labels: of the two axes.
        unit: points lie in 0 to 1 each way, y downwards, as in an image; else both axes are log.
        span: both axes' ends; None takes the ends of the points.
        guides: sides of squares whose lines of equal area are drawn (log axes only).
    """
    num = int(np.clip(math.sqrt(len(points)) / 2, *_CELLS))
    edges = np.linspace(0, 1, num + 1) if unit else _log_edges([points.ravel()], span, num)
    clipped = np.clip(points, edges[0], edges[-1])
    counts, _, _ = np.histogram2d(clipped[:, 0], clipped[:, 1], bins=(edges, edges))
    low, high = (0.0, 1.0) if unit else (math.log10(edges[0]), math.log10(edges[-1]))

    def draw(axes: Axes) -> None:
        top = max(1.0, counts.max())
        norm = Normalize(0, top) if unit else LogNorm(1, max(top, 2.0))
        extent = (low, high, high, low) if unit else (low, high, low, high)
        draw_counts(axes, counts.T if unit else counts.T[::-1], norm, extent)
        _color_bar(axes, norm)
        for side in guides:
            _equal_area(axes, 2 * math.log10(side), f"{side:g}\u00b2", low, high)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.set_aspect("equal")
        axes.grid(False)
        if not unit:  # cells are equal on log axes: these are linear ones of logarithms
            for axis in (axes.xaxis, axes.yaxis):
                ticks = _log_ticks(edges[0], edges[-1])
                axis.set_ticks([math.log10(tick) for tick in ticks], list(map(short_number, ticks)))

    return draw if len(points) else None


def bubbles(sizes: NDArray[np.int64], *, color: int, end: float) -> Draw | None:
    """Widths and heights of images; the area of a bubble says how many share a size.

    Args:
        sizes: (N, 2) width and height of each image.
        color: number of the split.
        end: where both axes end, so that splits compare.
    """
    places, counts = np.unique(sizes.reshape(-1, 2), axis=0, return_counts=True)

    def draw(axes: Axes) -> None:
        axes.plot([0, end], [0, end], color=theme_color("line"), linewidth=1, zorder=1)
        share = counts / max(1, counts.max())
        order = np.argsort(-counts, kind="stable")  # the small ones on top
        axes.scatter(
            places[order, 0], places[order, 1], s=7 + 420 * share[order],
            color=SERIES[color % len(SERIES)], alpha=0.5, linewidths=0.5,
            edgecolors=theme_color("paper"), zorder=2,
        )  # fmt: skip
        axes.set_xlim(0, end)
        axes.set_ylim(0, end)
        axes.set_aspect("equal")
        axes.set_xlabel("width, px")
        axes.set_ylabel("height, px")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(axis="both", linewidth=0.6)

    return draw if len(sizes) else None


def _color_bar(axes: Axes, norm: Normalize) -> None:
    """What the colors of `draw_counts` mean."""
    bar = axes.figure.add_axes(_BAR_PLACE)
    low, high = float(norm.vmin or 0), float(norm.vmax or 1)
    log = isinstance(norm, LogNorm)
    steps = np.geomspace(low, high, 64) if log else np.linspace(low, high, 64)
    ends = (math.log10(low), math.log10(high)) if log else (low, high)
    draw_counts(bar, np.maximum(steps, 1)[::-1, None], norm, (0, 1, *ends))
    locator = LogLocator(subs=(1, 2, 5)) if log else MaxNLocator(5, integer=True)
    ticks = [tick for tick in locator.tick_values(low, high) if low <= tick <= high]
    bar.set_yticks([math.log10(tick) if log else tick for tick in ticks])
    bar.set_yticklabels([short_number(tick) for tick in ticks])
    bar.yaxis.tick_right()
    bar.set_xticks([])
    bar.spines[:].set_visible(False)
    bar.tick_params(labelsize=8.5, length=2)
    bar.grid(False)


def _equal_area(axes: Axes, area: float, text: str, low: float, high: float) -> None:
    """A line of equal area where both axes are logarithms: x + y = `area`."""
    ink = theme_color("axis")
    axes.plot([low, high], [area - low, area - high], color=ink, alpha=0.7, linewidth=0.9)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    x = max(low, area - high) + 0.06
    if x < high and area - x > low:
        axes.annotate(text, (x, area - x), (4, 1), textcoords="offset points", fontsize=9.5)


def _log_edges(
    series: Values, span: tuple[float, float] | None, num: int = _LOG_BINS
) -> NDArray[np.float64]:
    """Edges of equal factors around all values."""
    full = [values for values in series if len(values)]
    low, high = span or ((min(map(np.min, full)), max(map(np.max, full))) if full else (1.0, 10.0))
    if high / low < 4:  # equal values in the middle of an axis
        middle = math.sqrt(low * high)
        low, high = middle / 2, middle * 2
    return np.geomspace(low * 0.97, high * 1.03, num + 1)


def _whole_edges(series: Values, span: tuple[float, float] | None) -> NDArray[np.float64]:
    """Edges between whole numbers, at most 40 bins."""
    full = [values for values in series if len(values)]
    low, high = span or ((0.0, max(map(np.max, full))) if full else (0.0, 1.0))
    width = max(1, math.ceil((high - low + 1) / 40))
    num = max(1, math.ceil((high - low + 1) / width))
    return low - 0.5 + float(width) * np.arange(num + 1, dtype=np.float64)


def _log_ticks(low: float, high: float) -> list[float]:
    """Plain numbers for a log axis: 1, 2, 5, 10, ... as many as fit."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = next(steps for span, steps in _TICKS.items() if math.log10(high / low) < span)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return [tick for tick in ticks if low <= tick <= high]
