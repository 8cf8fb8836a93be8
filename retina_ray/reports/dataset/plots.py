"""The figures of a data set's page, each drawn twice: for a light and for a dark page.

Made without pyplot, so there is no global state and no window. No text of the data set (names of
splits, say) is drawn: the page writes it beside the figures, where it can be escaped.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image  # matplotlib needs it anyway

SERIES = ("#2b83c6", "#e07b00", "#009e73", "#cc79a7", "#8c8c8c", "#b59f00")
"""Colours of the splits: told apart by the colour-blind, and seen on light and on dark."""
LINE_STYLES = ("solid", "dashed", "dotted")

_DPI = 180
_LOG_BINS = 37  # odd, so that equal values stand in the middle
_CELLS = (14, 64)  # of a figure of colours, each way: few for few boxes, so that no noise shows
_TICKS = {1.0: (1, 1.5, 2, 3, 4, 5, 7), 3.2: (1, 2, 5), math.inf: (1,)}
"""What is numbered in a decade of a log axis that spans up to so many decades."""
_WIDE_PLACE = (0.115, 0.16, 0.855, 0.775)  # left, bottom, width, height in shares of the figure
_SQUARE_PLACE = (0.135, 0.13, 0.725, 0.834)
_BAR_PLACE = (0.88, 0.13, 0.022, 0.834)

Values = Sequence[NDArray[np.float64]]


@dataclass(frozen=True)
class Plot:
    """A figure as two PNG files of the same size."""

    light: bytes
    dark: bytes


@dataclass(frozen=True)
class _Theme:
    paper: str
    ink: str
    faint: str
    colours: str


_LIGHT = _Theme(paper="#ffffff", ink="#39424b", faint="#dfe3e6", colours="YlGnBu")
_DARK = _Theme(paper="#171b1f", ink="#c3cad1", faint="#333b43", colours="viridis")


def histogram(
    series: Values,
    *,
    label: str,
    of: str,
    log: bool,
    marks: Sequence[float] = (),
    pale_marks: Sequence[float] = (),
    span: tuple[float, float] | None = None,
) -> Plot:
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

    def draw(axes: Axes, theme: _Theme) -> None:
        for value in pale_marks:
            axes.axvline(value, color=theme.ink, alpha=0.35, linewidth=0.8, linestyle=":")
        for value in marks:
            axes.axvline(value, color=theme.ink, alpha=0.7, linewidth=0.9)
            axes.annotate(
                f"{value:g}", (value, 1), (0, 2), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center", fontsize=9.5, color=theme.ink,
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
            _log_axis(axes, "x", edges[0], edges[-1])
        else:
            axes.set_xlim(edges[0], edges[-1] + 0.02 * (edges[-1] - edges[0]))
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.grid(axis="y", color=theme.faint, linewidth=0.8)

    return _plot(draw, empty=not any(map(len, series)))


def density(
    points: NDArray[np.float64],
    *,
    labels: tuple[str, str],
    unit: bool,
    span: tuple[float, float] | None = None,
    guides: Sequence[float] = (),
) -> Plot:
    """How many points lie where, by colour.

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

    def draw(axes: Axes, theme: _Theme) -> None:
        top = max(1.0, counts.max())
        norm = Normalize(0, top) if unit else LogNorm(1, max(top, 2.0))
        shown = np.ma.masked_less(counts.T, 1)  # no box: the page shows through
        mesh = axes.pcolormesh(edges, edges, shown, norm=norm, cmap=theme.colours, rasterized=True)
        bar = axes.figure.colorbar(mesh, cax=axes.figure.add_axes(_BAR_PLACE))
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8.5, colors=theme.ink, which="both", length=2)
        bar.locator = MaxNLocator(5, integer=True) if unit else LogLocator(subs=(1, 2, 5))
        bar.minorlocator = NullLocator()
        bar.formatter = FuncFormatter(lambda value, _: f"{value:g}")
        bar.update_ticks()
        for side in guides:
            x = np.array([edges[0], edges[-1]])
            axes.plot(x, side**2 / x, color=theme.ink, alpha=0.7, linewidth=0.9)
            start = max(edges[0], side**2 / edges[-1]) * 1.15
            if start < edges[-1] and side**2 / start > edges[0]:
                axes.annotate(
                    f"{side:g}\u00b2", (start, side**2 / start), (4, 1),
                    textcoords="offset points", fontsize=9.5, color=theme.ink,
                )  # fmt: skip
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.set_aspect("equal")
        if unit:
            axes.set_xlim(0, 1)
            axes.set_ylim(1, 0)
        else:
            _log_axis(axes, "x", edges[0], edges[-1])
            _log_axis(axes, "y", edges[0], edges[-1])

    return _plot(draw, empty=not len(points), square=True)


def bubbles(sizes: NDArray[np.int64], *, colour: int, end: float) -> Plot:
    """Widths and heights of images; the area of a bubble says how many share a size.

    Args:
        sizes: (N, 2) width and height of each image.
        colour: number of the split.
        end: where both axes end, so that splits compare.
    """
    places, counts = np.unique(sizes.reshape(-1, 2), axis=0, return_counts=True)

    def draw(axes: Axes, theme: _Theme) -> None:
        axes.plot([0, end], [0, end], color=theme.faint, linewidth=1, zorder=1)
        share = counts / max(1, counts.max())
        order = np.argsort(-counts, kind="stable")  # the small ones on top
        axes.scatter(
            places[order, 0], places[order, 1], s=7 + 420 * share[order],
            color=SERIES[colour % len(SERIES)], alpha=0.5, linewidths=0.5,
            edgecolors=theme.paper, zorder=2,
        )  # fmt: skip
        axes.set_xlim(0, end)
        axes.set_ylim(0, end)
        axes.set_aspect("equal")
        axes.set_xlabel("width, px")
        axes.set_ylabel("height, px")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(color=theme.faint, linewidth=0.6)

    return _plot(draw, empty=not len(sizes), square=True)


def _plot(draw: Callable[[Axes, _Theme], None], *, empty: bool, square: bool = False) -> Plot:
    """Draw a figure for each theme, or say that there is nothing to draw."""

    def render(theme: _Theme) -> bytes:
        # Fixed places: quicker than matplotlib's layouts, and figures of a row line up.
        size, place = ((4.6, 4.0), _SQUARE_PLACE) if square else ((5.6, 3.3), _WIDE_PLACE)
        figure = Figure(figsize=size, dpi=_DPI, facecolor=theme.paper)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes(place, facecolor=theme.paper)
        axes.set_axisbelow(True)
        if empty:
            axes.set_axis_off()
            axes.text(
                0.5, 0.5, "nothing to draw", transform=axes.transAxes, ha="center", va="center",
                color=theme.ink,
            )  # fmt: skip
        else:
            draw(axes, theme)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["bottom", "left"]].set_color(theme.ink)
        axes.tick_params(colors=theme.ink, which="both", labelsize=10)
        for text in (axes.xaxis.label, axes.yaxis.label):
            text.set(color=theme.ink, fontsize=11)
        return _png(figure, canvas)

    # Settings of the user's own matplotlibrc would make other pictures.
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        return Plot(light=render(_LIGHT), dark=render(_DARK))


def _png(figure: Figure, canvas: FigureCanvasAgg) -> bytes:
    """A PNG of 256 colours, about a third of the size of a full one."""
    canvas.draw()
    full = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    small = io.BytesIO()
    reduced = full.quantize(256, method=Image.Quantize.FASTOCTREE)
    # Reducing may move the ground a bit off the page's colour, which would show as a pale frame.
    palette, at = reduced.getpalette() or [], 3 * int(np.asarray(reduced)[0, 0])
    palette[at : at + 3] = [round(255 * part) for part in to_rgb(figure.get_facecolor())]
    reduced.putpalette(palette)
    reduced.save(small, format="png")
    return small.getvalue()


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


def _log_axis(axes: Axes, which: str, low: float, high: float) -> None:
    """A log axis with plain numbers: 1, 2, 5, 10, ... as many as fit."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = next(steps for span, steps in _TICKS.items() if math.log10(high / low) < span)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
