"""Line charts as SVG within the page: sharp at any size, light and dark with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from retina_ray.reports.dataset.page import legend
from retina_ray.reports.dataset.plots import SERIES

_SIZE, _SMALL_SIZE = (470.0, 250.0), (290.0, 190.0)
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 12.0, 10.0, 36.0
_MAX_POINTS = 240  # of a line: more cannot be told apart
_MAX_DOTS = 40
_DASHES = ("", "7 4", "2 3")


@dataclass(frozen=True, eq=False)
class Line:
    """One line of a chart.

    Attributes:
        x: (N,) ascending.
        y: (N,) finite.
        name: for the legend, and for the mouse.
        colour: number of its colour and kind of line.
        dots: whether to mark the points, where they are few.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    name: str
    colour: int = 0
    dots: bool = False


def thin_out(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray, NDArray, int]:
    """Average neighbours until a line has few enough points to be drawn.

    Args:
        x: (N,).
        y: (N,).

    Returns:
        Both again with fewer points, and how many of them make a new one at most.
    """
    each = math.ceil(len(x) / _MAX_POINTS)
    if each <= 1:
        return x, y, 1
    starts = np.arange(0, len(x), each)
    counts = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts, each


def figure(title: str, chart: str, *, names: Sequence[str] = (), notes: Sequence[str] = ()) -> str:
    """A chart with its title, legend and notes.

    Args:
        title: plain text.
        chart: its SVG.
        names: of the lines, by their colour; none needs no legend.
        notes: plain sentences below it.
    """
    words = "".join(f"<div>{escape(note)}</div>" for note in notes)
    key = legend(names, range(len(names))) if names else ""
    return (
        f'<figure class="chart"><h3>{escape(title)}</h3>{key}{chart}'
        f"<figcaption>{words}</figcaption></figure>"
    )


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    x_span: tuple[float, float] | None = None,
    y_span: tuple[float, float] | None = None,
    mark: float | None = None,
    small: bool = False,
) -> str:
    """Draw lines over a common axis.

    Args:
        lines: those without points are left out.
        x_label: below the axis.
        x_span: ends of the axis; None: those of the lines.
        y_span: ends of the other axis; None: from 0 to the largest value.
        mark: where to draw an upright line, e.g. the best step.
        small: one of many, so that its letters stay as large as those of others.

    Returns:
        An SVG element.
    """
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return '<p class="soft">nothing to draw</p>'
    x_low, x_high = x_span or _span([line.x for line in lines])
    y_low, y_high = y_span or (
        min(0.0, min(float(line.y.min()) for line in lines)),
        max(float(line.y.max()) for line in lines),
    )
    if y_high <= y_low:
        y_high = y_low + 1.0
    scale = _Scale(x_low, x_high, y_low, y_high, *(_SMALL_SIZE if small else _SIZE))
    parts = [_grid(scale, x_label)]
    if mark is not None and x_low <= mark <= x_high:
        at = scale.x(mark)
        parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{scale.bottom}"/>'
        )
    parts += [_line(line, scale) for line in lines]
    label = escape(", ".join(line.name for line in lines if line.name) or x_label)
    return (
        f'<svg class="lines" viewBox="0 0 {scale.width:g} {scale.height:g}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )


@dataclass(frozen=True)
class _Scale:
    """Where values stand in the picture."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.width - _RIGHT

    @property
    def bottom(self) -> float:
        return self.height - _BOTTOM

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return _LEFT + share * (self.right - _LEFT)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return self.bottom - min(max(share, 0.0), 1.0) * (self.bottom - _TOP)


def _span(values: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    low = min(float(part.min()) for part in values)
    high = max(float(part.max()) for part in values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _line(line: Line, scale: _Scale) -> str:
    colour = SERIES[line.colour % len(SERIES)]
    dash = _DASHES[line.colour % len(_DASHES)]
    points = [(scale.x(x), scale.y(y)) for x, y in zip(line.x, line.y, strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    title = f"<title>{escape(line.name)}</title>" if line.name else ""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    shape = f'<polyline points="{path}" stroke="{colour}"{dashed}>{title}</polyline>'
    if not (line.dots or len(points) == 1) or len(points) > _MAX_DOTS:
        return shape
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"><title>'
        f"{escape(line.name)} {line.y[at]:.4g} at {line.x[at]:g}</title></circle>"
        for at, (x, y) in enumerate(points)
    )
    return shape + dots


def _grid(scale: _Scale, x_label: str) -> str:
    """Lines and numbers of both axes."""
    parts = []
    for value in _ticks(scale.y_low, scale.y_high, 5):
        y = scale.y(value)
        parts.append(f'<line x1="{_LEFT}" x2="{scale.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">')
        parts.append(f"{_short(value)}</text>")
    for value in _ticks(scale.x_low, scale.x_high, 5):
        x = scale.x(value)
        parts.append(f'<text x="{x:.1f}" y="{scale.bottom + 16:.1f}" text-anchor="middle">')
        parts.append(f"{_short(value)}</text>")
    middle, low = (_LEFT + scale.right) / 2, scale.height - 4
    parts.append(f'<text x="{middle}" y="{low}" text-anchor="middle">{escape(x_label)}</text>')
    return f'<g class="grid">{"".join(parts)}</g>'


def _ticks(low: float, high: float, number: int) -> list[float]:
    """Round values between two ends, about so many."""
    rough = (high - low) / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def _short(value: float) -> str:
    """A number in few letters."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if 0 < abs(value) < 0.001:
        digits, _, power = f"{value:.6e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:g}"
