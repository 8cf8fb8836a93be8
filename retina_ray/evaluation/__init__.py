"""Scoring detections as COCO does, finding what is wrong with them, and drawing them."""

from retina_ray.evaluation.coco import CocoMetrics, evaluate_coco
from retina_ray.evaluation.drawing import AnnotatedImage, contact_sheet
from retina_ray.evaluation.results import to_results, write_results
from retina_ray.evaluation.tables import metrics_table

__all__ = [
    "AnnotatedImage",
    "CocoMetrics",
    "contact_sheet",
    "evaluate_coco",
    "metrics_table",
    "to_results",
    "write_results",
]
