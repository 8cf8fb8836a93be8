"""A run's page: COCO's metrics, the table of classes, and precision over recall."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retina_ray.evaluation.coco import COCO_METRICS
from retina_ray.evaluation.curves import RECALL_POINTS
from retina_ray.evaluation.tables import MEANINGS, percent
from retina_ray.reports.html.charts import Chart, Line, draw_lines, make_chart
from retina_ray.reports.run.analysis import RunAnalysis

IOU_NAMES = ("IoU 0.50", "IoU 0.75")

_MAX_CURVES = 120


def coco_metrics(metrics: Mapping[str, float]) -> list[tuple[str, float, str]]:
    """COCO's twelve metrics: name, value from 0 to 1 (NaN where unknown) and meaning."""
    return [(name, metrics.get(name, math.nan), MEANINGS[name]) for name in COCO_METRICS]


@dataclass(frozen=True)
class Table:
    """A table of words and numbers, ready to be written."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def class_table(analysis: RunAnalysis) -> Table:
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
        rows.append(
            (
                scene.names[k],
                *(percent(float(value[k])) for value in (ap, at_half, at_strict)),
                f"{boxes[k]:,}",
                f"{found[k]:,}",
                "-" if math.isnan(best.score) else f"{best.score:.2f}",
                *map(percent, (best.precision, best.recall, best.f1)),
            )
        )
    head = ("class", "AP", "AP50", "AP75", "boxes", "detections", "best score", "precision",
            "recall", "F1")  # fmt: skip
    return Table(head, rows)


def logged_class_table(metrics: Mapping[str, float]) -> Table:
    """AP of each class as the run logged it (`AP_<class>`), lowest first."""
    of_class = {
        key.removeprefix("AP_"): value for key, value in metrics.items() if key.startswith("AP_")
    }
    order = sorted(of_class, key=lambda n: (math.isnan(of_class[n]), of_class[n], n))
    return Table(("class", "AP"), [(name, percent(of_class[name])) for name in order])


@dataclass(frozen=True)
class PrecisionCharts:
    """Precision over recall; `left_out` classes of the fewest boxes have no chart."""

    charts: list[Chart]
    left_out: int


def precision_charts(analysis: RunAnalysis) -> PrecisionCharts:
    """The mean over the classes, then each class, most boxes first."""
    scene = analysis.errors.matching.scene
    boxes = scene.num_true
    present = [k for k in np.argsort(-boxes, kind="stable").tolist() if boxes[k]]
    curves = (analysis.precision, analysis.strict_precision)
    charts = []
    if len(present) > 1:
        mean = [curve[present].mean(axis=0) for curve in curves]
        charts.append(_curve("mean of all classes", mean))
    for k in present[:_MAX_CURVES]:
        best = analysis.thresholds[k]
        words = f"{boxes[k]:,} boxes"
        words += "" if math.isnan(best.score) else f", best F1 at score {best.score:.2f}"
        charts.append(_curve(scene.names[k], [curve[k] for curve in curves], words))
    return PrecisionCharts(charts, max(0, len(present) - _MAX_CURVES))


def _curve(name: str, curves: Sequence[np.ndarray], *notes: str) -> Chart:
    lines = []
    for title, precision in zip(IOU_NAMES, curves, strict=True):
        ends = int(np.flatnonzero(precision).max(initial=-1)) + 1
        if ends:
            lines.append(Line(*_corners(RECALL_POINTS[:ends], precision[:ends]), title))
    draw = draw_lines(lines, x_label="recall", x_span=(0.0, 1.0), y_span=(0.0, 1.02))
    return make_chart(name, draw, notes=notes, shape="small")


def _corners(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A line without the points between two equal ones."""
    keep = np.ones(len(y), bool)
    keep[1:-1] = (y[1:-1] != y[:-2]) | (y[1:-1] != y[2:])
    return x[keep], y[keep]
