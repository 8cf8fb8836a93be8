"""Charts of matplotlib as SVG within the page: sharp at any size, light and dark with it.

A chart is drawn once, in the colors of the light theme; in the SVG they become CSS variables.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from retina_ray.reports.html.colors import COLOR_MAPS, LINE_STYLES, SERIES, THEME, theme_color

_SHAPES = {
    "wide": ((5.6, 3.3), (0.115, 0.16, 0.855, 0.775)),
    "square": ((4.6, 4.0), (0.135, 0.13, 0.725, 0.834)),
    "small": ((3.5, 2.4), (0.115, 0.19, 0.855, 0.745)),
}
"""Size in inches; left, bottom, width and height of the axes in shares of it. Fixed places are
drawn quicker than layouts, and charts of a row line up."""

Draw = Callable[[Axes], None]
_VARIABLES = {light: f"var(--{name})" for name, (light, _) in THEME.items()}


@dataclass(frozen=True)
class Chart:
    """A chart with its words.

    Attributes:
        legend: names of the lines with the numbers of their colors.
        notes: sentences below it.
        square: as high as wide; those of one title stand in a row.
    """

    title: str
    svg: Markup
    legend: Sequence[tuple[str, int]] = ()
    notes: Sequence[str] = ()
    square: bool = False


@dataclass(frozen=True, eq=False)
class Line:
    """One line of a chart: x (N,) ascending, y (N,) finite, and its name."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    name: str


@contextlib.contextmanager
def chart_style(name: str = "") -> Iterator[None]:
    """The settings that charts are made with, whatever the user's matplotlibrc says.

    Ids within the SVG are derived from the name, which is unique on its page.
    """
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": f"retina_ray {name}",
        "text.parse_math": False,  # a $ in a name is a $
        "image.composite_image": False,
        "text.color": theme_color("axis"),
        "axes.axisbelow": True,
        "axes.edgecolor": theme_color("axis"),
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.labelcolor": theme_color("axis"),
        "axes.labelsize": 11,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "grid.color": theme_color("line"),
        "xtick.color": theme_color("axis"),
        "ytick.color": theme_color("axis"),
    }
    default = matplotlib.rcParamsDefault
    # To look up the default backend is to start pyplot.
    with matplotlib.rc_context({key: default[key] for key in default if key != "backend"}):
        matplotlib.rcParams.update(settings)
        yield


def make_chart(
    title: str,
    draw: Draw | None,
    *,
    legend: Sequence[tuple[str, int]] = (),
    notes: Sequence[str] = (),
    shape: Literal["wide", "square", "small"] = "wide",
) -> Chart:
    """Draw a chart of one pair of axes.

    Args:
        title: above it; on a page, no two charts have the same title and legend.
        draw: draws on the axes that it is given; None: there is nothing to draw.
        legend: as in `Chart`, as the notes.
        notes: below it.
        shape: its size.
    """
    size, place = _SHAPES[shape]
    with chart_style(f"{title} {legend}"):
        figure = Figure(figsize=size)
        FigureCanvasAgg(figure)
        axes = figure.add_axes(place)
        if draw is None:
            axes.set_axis_off()
            say(axes, "nothing to draw")
        else:
            draw(axes)
        return Chart(title, to_svg(figure), legend, notes, square=shape == "square")


def draw_lines(
    lines: Sequence[Line],
    *,
    x_label: str,
    x_span: tuple[float, float] | None = None,
    y_span: tuple[float | None, float | None] = (None, None),
    mark: float | None = None,
    dots: bool = False,
) -> Draw | None:
    """Draw lines over a common axis.

    Args:
        lines: the first takes the first color.
        x_label: below the axis, with the unit.
        x_span: ends of the axis; None: those of the lines.
        y_span: ends of the other axis; None: those of the values.
        mark: where to draw an upright dashed line, e.g. at the best step.
        dots: whether to mark each point.
    """

    def draw(axes: Axes) -> None:
        for number, line in enumerate(lines):
            alone = dots or len(line.x) == 1
            axes.plot(
                line.x, line.y, color=SERIES[number % len(SERIES)], linewidth=1.5,
                linestyle=LINE_STYLES[number % len(LINE_STYLES)],
                marker="o" if alone else None, markersize=4.5,
            )  # fmt: skip
        axes.set_xlabel(x_label)
        axes.set_ylim(*y_span)
        if x_span is not None:
            axes.set_xlim(*x_span)
        if mark is not None:
            axes.axvline(mark, color=theme_color("soft"), linewidth=0.8, linestyle=(0, (3, 3)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
            axis.set_major_formatter(short_number)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)

    return draw if lines else None


def draw_counts(
    axes: Axes,
    counts: NDArray[np.float64],
    norm: Normalize,
    extent: tuple[float, float, float, float],
) -> None:
    """Draw a color for each cell, one image in the colors of each theme; no count, no color.

    Args:
        axes: to draw on.
        counts: (rows, columns), from the top.
        norm: of the colors.
        extent: left, right, bottom, top.
    """
    for theme, colors in COLOR_MAPS.items():
        image = axes.imshow(
            np.ma.masked_less(counts, 1), cmap=colors, norm=norm, extent=extent, aspect="auto",
            interpolation="none",
        )  # fmt: skip
        image.set_gid(f"only-{theme}")


def say(axes: Axes, text: str) -> None:
    """Write in the middle of axes that show nothing else."""
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center",
        color=theme_color("soft"),
    )  # fmt: skip


def short_number(value: float, _: float = 0) -> str:
    """A number at an axis in few letters: 0.5, 12k."""
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


def to_svg(figure: Figure) -> Markup:
    """A figure as an SVG element whose colors follow the page; call it within `chart_style`."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # the same bytes every time
    figure.savefig(out, format="svg", metadata=nothing, facecolor="none", transparent=True)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    # A style element in it would hold for the whole page; the page's own style sheet has it.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'^<svg[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg class="plot" \1>', svg)
    svg = re.sub(r' id="(only-\w+)"', r' class="\1"', svg)
    svg = re.sub(r' id="[^"]*_\d{1,4}"', "", svg)  # no one refers to numbered ones
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    return Markup(re.sub(r"\s*\n\s*", " ", svg))
