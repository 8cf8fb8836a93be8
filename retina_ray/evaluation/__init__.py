"""Scoring detections as COCO does, and drawing them."""

from retina_ray.evaluation.coco import CocoMetrics, evaluate_coco
from retina_ray.evaluation.pictures import Picture, contact_sheet, draw_boxes
from retina_ray.evaluation.results import to_results, write_results
from retina_ray.evaluation.tables import metrics_table

__all__ = [
    "CocoMetrics",
    "Picture",
    "contact_sheet",
    "draw_boxes",
    "evaluate_coco",
    "metrics_table",
    "to_results",
    "write_results",
]
