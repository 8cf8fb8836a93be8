"""COCO metrics as a table for the console."""

from __future__ import annotations

import math

from rich import box
from rich.markup import escape
from rich.table import Table

from retina_ray.evaluation.coco import COCO_METRICS, CocoMetrics

MEANINGS = {
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
"""What each of COCO's twelve metrics is measured on."""


def metrics_table(metrics: CocoMetrics) -> Table:
    """The twelve metrics, then AP of each class, best first.

    All in percent; a dash where the ground truth has no box to measure on.
    """
    table = Table(title="COCO metrics", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("metric", no_wrap=True)
    table.add_column("%", justify="right", no_wrap=True)
    table.add_column("on", style="dim")
    for name in COCO_METRICS:
        style = "bold" if name == "AP" else None
        table.add_row(name, percent(getattr(metrics, name)), MEANINGS[name], style=style)
    table.add_section()
    ranked = sorted(
        metrics.per_class.items(), key=lambda item: (math.isnan(item[1]), -item[1], item[0])
    )
    for name, ap in ranked:
        table.add_row("AP", percent(ap), escape(name))
    return table


def percent(value: float | None) -> str:
    """A share in percent, a dash where it is NaN or not known."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"
