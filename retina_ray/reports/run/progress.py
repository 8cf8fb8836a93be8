"""A run's page: how the run went, from the lines of its `metrics.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from retina_ray.reports.html.charts import Chart, Line, draw_lines, make_chart
from retina_ray.reports.run.record import RunRecord

_MAX_OTHERS = 12  # charts of metrics that this page knows nothing of
_MAX_POINTS = 240  # of a line: more cannot be told apart
_MAX_DOTS = 40
_CUT_FACTOR = 6.0  # a loss may start far above what it is nearly all the time


def progress_charts(record: RunRecord) -> Iterator[Chart]:
    """The curves of a run; what it never logged is left out."""
    keys = record.keys
    losses = sorted((key for key in keys if key.startswith("train/loss")), key=len)
    known: list[tuple[str, Sequence[str], dict[str, bool]]] = [
        ("Losses", losses, {"cut": True}),
        ("Validation", ("val/AP", "val/AP50", "val/AP75"), {"dots": True}),
        ("Learning rate", ("train/lr",), {}),
        ("Images per second", ("perf/images_per_s",), {}),
        ("Share of time spent waiting for data", ("perf/data_wait_fraction",), {}),
        ("Images that could not be decoded", ("data/bad_images",), {}),
    ]
    shown = {key for _, of, _ in known for key in of} | {"train/epoch"}
    others = [key for key in keys if key not in shown and key.startswith(("train/", "perf/"))]
    known += [(key, (key,), {"cut": True}) for key in others[:_MAX_OTHERS]]
    for title, of, options in known:
        if chart := _chart(record, title, of, **options):
            yield chart


def _chart(
    record: RunRecord, title: str, keys: Sequence[str], *, cut: bool = False, dots: bool = False
) -> Chart | None:
    lines, notes, each = [], [], 1
    for key in keys:
        steps, values = record.series(key)
        if len(steps):
            steps, values, each_of = thin_out(steps, values)
            each = max(each, each_of)
            lines.append(Line(steps, values, key))
    if not lines:
        return None
    if each > 1:
        notes.append(f"Each point is the mean of {each} of the values that were logged.")
    y_span = (min(0.0, *(float(line.y.min()) for line in lines)), None)
    if dots:
        y_span = (0.0, max(0.05, 1.05 * max(float(line.y.max()) for line in lines)))
        notes += _best_words(record)
    elif cut and (top := _cut_at(lines[0].y)) is not None:
        y_span = (0.0, top)
        notes.append(f"Cut off at {top:.3g}; it began at {lines[0].y[0]:.3g}.")
    draw = draw_lines(
        lines, x_label="step", x_span=_span(record), y_span=y_span, mark=record.best_step,
        dots=dots and len(lines[0].x) <= _MAX_DOTS,
    )  # fmt: skip
    legend = [(line.name, number) for number, line in enumerate(lines)] if len(lines) > 1 else ()
    return make_chart(title, draw, legend=legend, notes=notes)


def thin_out(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Average neighbours of a line (N,) until it has few enough points to be drawn.

    Returns:
        Both again with fewer points, and how many of them make a new one at most.
    """
    each = math.ceil(len(x) / _MAX_POINTS)
    if each <= 1:
        return x, y, 1
    starts = np.arange(0, len(x), each)
    counts = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts, each


def _cut_at(values: NDArray[np.float64]) -> float | None:
    """Where to cut an axis so that a few large values do not flatten the rest; None: nowhere."""
    top = float(_CUT_FACTOR * np.median(values))
    return top if 0 < top < values.max() else None


def _best_words(record: RunRecord) -> list[str]:
    steps, values = record.series("val/AP")
    if not len(values):
        return []
    best = int(values.argmax())
    words = f"AP is best at step {steps[best]:,.0f}: {values[best]:.3f}"
    return [f"{words}, and {values[-1]:.3f} at the last evaluation (step {steps[-1]:,.0f})."]


def _span(record: RunRecord) -> tuple[float, float] | None:
    """All charts share an axis, so that they compare."""
    end = max((line["step"] for line in record.lines), default=0)
    return (0.0, 1.015 * end) if end > 0 else None
