"""COCO metrics as a table for the console."""

from __future__ import annotations

import math

from rich import box
from rich.markup import escape
from rich.table import Table

from retina_ray.evaluation.coco import COCO_METRICS, CocoMetrics

_MEANING = {
    "AP": "IoU 0.50:0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "small, area < 32² px",
    "APm": "medium",
    "APl": "large, area > 96² px",
    "AR1": "1 detection an image",
    "AR10": "10 detections an image",
    "AR100": "all detections (100)",
    "ARs": "small",
    "ARm": "medium",
    "ARl": "large",
}


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
        table.add_row(name, _percent(getattr(metrics, name)), _MEANING[name], style=style)
    table.add_section()
    ranked = sorted(
        metrics.per_class.items(), key=lambda item: (math.isnan(item[1]), -item[1], item[0])
    )
    for name, ap in ranked:
        table.add_row("AP", _percent(ap), escape(name))
    return table


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
