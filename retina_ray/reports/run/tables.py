"""A run's page: figures, the table of classes, and precision over recall."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from retina_ray.evaluation.coco import COCO_METRICS
from retina_ray.evaluation.curves import RECALL_POINTS
from retina_ray.reports.dataset.page import legend
from retina_ray.reports.run.analysis import RunAnalysis
from retina_ray.reports.run.chart import Line, figure, line_chart

_OPEN_CURVES, _MAX_CURVES = 12, 120
_OPEN_ROWS = 30
_IOU_NAMES = ("IoU 0.50", "IoU 0.75")
_MEANING = {
    "AP": "mean over IoU 0.50 to 0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "APs": "small boxes, area below 32² px",
    "APm": "medium boxes",
    "APl": "large boxes, area above 96² px",
    "AR1": "recall, 1 detection an image",
    "AR10": "recall, 10 detections an image",
    "AR100": "recall, all detections",
    "ARs": "recall, small boxes",
    "ARm": "recall, medium boxes",
    "ARl": "recall, large boxes",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is words and whose others are numbers; cells are HTML."""
    titles = "".join(
        f"<th{' class=number' * (at > 0)}>{escape(name)}</th>" for at, name in enumerate(head)
    )
    lines = [
        "<tr>"
        + f"<th>{first}</th>"
        + "".join(f'<td class="number">{cell}</td>' for cell in rest)
        + "</tr>"
        for first, *rest in rows
    ]

    def part(lines: Sequence[str]) -> str:
        return (
            f'<div class="wide table-wide"><table><thead><tr>{titles}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div>"
        )

    if len(lines) <= _OPEN_ROWS:
        return part(lines)
    more = len(lines) - _OPEN_ROWS
    return (
        part(lines[:_OPEN_ROWS])
        + f"<details><summary>{more:,} more</summary>{part(lines[_OPEN_ROWS:])}</details>"
    )


def coco_figures(figures: Mapping[str, float], source: str) -> str:
    """COCO's twelve figures.

    Args:
        figures: by name, 0 to 1.
        source: HTML that says where they come from.
    """
    rows = [
        (escape(name), percent(figures.get(name, math.nan)), _MEANING[name])
        for name in COCO_METRICS
    ]
    items = "".join(
        f"<div><b>{value}</b> <span>{name}</span><small>{meaning}</small></div>"
        for name, value, meaning in rows
    )
    return (
        f"<p>{source} In percent; a dash where the set has no box to measure on.</p>"
        f'<div class="figures">{items}</div>'
    )


def class_table(analysis: RunAnalysis) -> str:
    """A row for each class, lowest AP first."""
    scene = analysis.errors.matching.scene
    boxes = scene.num_true
    found = np.bincount(scene.found_label, minlength=len(scene.names))
    at_half = analysis.precision.mean(axis=1)
    at_strict = analysis.strict_precision.mean(axis=1)
    ap = analysis.class_ap
    order = np.lexsort((-boxes, np.where(np.isnan(ap), 2.0, ap)))
    rows = []
    for k in order.tolist():
        best = analysis.thresholds[k]
        worth = (best.precision, best.recall, best.f1)
        score = "-" if math.isnan(best.score) else f"{best.score:.2f}"
        rows.append(
            (
                escape(scene.names[k]),
                *(percent(float(value[k])) for value in (ap, at_half, at_strict)),
                f"{boxes[k]:,}",
                f"{found[k]:,}",
                score,
                *map(percent, worth),
            )
        )
    together = analysis.together
    words = ""
    if not math.isnan(together.score):
        words = (
            f" For all classes together it is {together.score:.2f}: precision "
            f"{percent(together.precision)} %, recall {percent(together.recall)} %."
        )
    head = ("class", "AP", "AP50", "AP75", "boxes", "detections", "best score", "precision",
            "recall", "F1")  # fmt: skip
    return (
        "<p>Lowest AP first, in percent. A class with few boxes has a figure that chance moves. "
        "Best score: the threshold with the best F1 at IoU 0.5, for a program that needs one; "
        f"precision and recall are those at it.{escape(words)}</p>{table(head, rows)}"
    )


def logged_class_table(figures: Mapping[str, float]) -> str:
    """AP of each class as the run logged it, lowest first.

    Args:
        figures: `AP_<class>` and others.
    """
    prefix = "AP_"
    of_class = {
        key.removeprefix(prefix): value for key, value in figures.items() if key.startswith(prefix)
    }
    if not of_class:
        return "<p>The run logged no AP by class.</p>"
    order = sorted(of_class, key=lambda n: (math.isnan(of_class[n]), of_class[n], n))
    rows = [(escape(name), percent(of_class[name])) for name in order]
    return f"<p>Lowest AP first, in percent.</p>{table(('class', 'AP'), rows)}"


def precision_charts(analysis: RunAnalysis) -> str:
    """Precision over recall: the mean over the classes, then each class, most boxes first."""
    scene = analysis.errors.matching.scene
    boxes = scene.num_true
    present = [k for k in np.argsort(-boxes, kind="stable").tolist() if boxes[k]]
    curves = (analysis.precision, analysis.strict_precision)
    mean = [curve[present].mean(axis=0) for curve in curves]
    charts = []
    if len(present) > 1:
        charts.append(_curve("mean of all classes", mean, ()))
    for k in present[:_MAX_CURVES]:
        best = analysis.thresholds[k]
        notes = [f"{boxes[k]:,} boxes"]
        if not math.isnan(best.score):
            notes.append(f"best F1 at score {best.score:.2f}")
        charts.append(_curve(scene.names[k], [curve[k] for curve in curves], (", ".join(notes),)))
    html = (
        "<p>How right the detections are when so much of the boxes is to be found, at COCO's 101 "
        "recall points; the area below a line is the AP. A line that ends early: the rest is never "
        "found, however low the score. One that starts low: the most certain detections are wrong. "
        "A large gap between the lines: found, but placed badly.</p>"
        f"{legend(_IOU_NAMES, range(2))}"
        f'<div class="charts small">{"".join(charts[:_OPEN_CURVES])}</div>'
    )
    if rest := charts[_OPEN_CURVES:]:
        left_out = len(present) - _MAX_CURVES
        more = f" (without {left_out:,} classes of the fewest boxes)" if left_out > 0 else ""
        html += (
            f"<details><summary>{len(rest)} more classes{more}</summary>"
            f'<div class="charts small">{"".join(rest)}</div></details>'
        )
    return html


def _curve(name: str, curves: Sequence[np.ndarray], notes: Sequence[str]) -> str:
    lines = []
    for number, precision in enumerate(curves):
        reached = int(np.flatnonzero(precision).max(initial=-1)) + 1
        x, y = _corners(RECALL_POINTS[:reached], precision[:reached])
        lines.append(Line(x, y, _IOU_NAMES[number], colour=number))
    chart = line_chart(lines, x_label="recall", x_span=(0.0, 1.0), y_span=(0.0, 1.0), small=True)
    return figure(name, chart, notes=notes)


def _corners(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A line without the points between two equal ones."""
    keep = np.ones(len(y), bool)
    keep[1:-1] = (y[1:-1] != y[:-2]) | (y[1:-1] != y[2:])
    return x[keep], y[keep]


def percent(value: float) -> str:
    """A share in percent, a dash for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
