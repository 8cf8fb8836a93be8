"""COCO's detection metrics: its twelve, and AP for each class.

They come from pycocotools' `COCOeval` (Lin et al., "Microsoft COCO: Common Objects in
Context", 2014, and the detection evaluation page of cocodataset.org), or from faster-coco-eval,
which computes the same in C++. Rotated boxes have a `bbox` of five numbers (x_center,
y_center, width, height, angle) and are scored by pycocotools with the overlap of rotated boxes.

Shapes: T IoU thresholds, Q recall points, K classes, S object sizes, L limits on the detections of
an image.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from retina_ray.config import ConfigError
from retina_ray.evaluation.backends import Backend, backend_classes, resolve_backend
from retina_ray.evaluation.coco_checks import coco_faults

_AP50, _AP75 = 0, 5  # rows of the IoU thresholds 0.50, 0.55, ..., 0.95
_SIZES = {"": 0, "s": 1, "m": 2, "l": 3}  # all, area below 32**2, up to 96**2, above, in pixels


@dataclass(frozen=True)
class CocoMetrics:
    """COCO's twelve metrics, each from 0 to 1.

    A metric is NaN where the ground truth has no box that it could be measured on (no small
    boxes: `APs`; a class without boxes: its entry in `per_class`). pycocotools writes -1 there.

    AP is the mean over classes and the IoU thresholds 0.50:0.05:0.95, AP50 and AP75 are at one
    threshold. AR1, AR10 and AR100 are the average recall with one detection an image, ten, and
    `max_detections` (100 unless set otherwise). s, m and l stand for boxes with an area below 32**2
    pixels, up to 96**2, and above. `per_class` is AP by name; names are made unique and fit for
    metric keys: "/" becomes "_", and names that are then equal get their category id appended.
    """

    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    AR1: float
    AR10: float
    AR100: float
    ARs: float
    ARm: float
    ARl: float
    per_class: dict[str, float] = field(default_factory=dict)

    def as_metrics(self, prefix: str = "val/") -> dict[str, float]:
        """All values under metric keys: `val/AP`, ..., and `val/AP_<class>` for each class."""
        values = {f"{prefix}{name}": float(getattr(self, name)) for name in COCO_METRICS}
        return values | {f"{prefix}AP_{name}": ap for name, ap in self.per_class.items()}


COCO_METRICS = tuple(metric.name for metric in fields(CocoMetrics) if metric.name != "per_class")


def evaluate_coco(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    max_detections: int = 100,
    backend: Backend = "pycocotools",
) -> CocoMetrics:
    """Score detections against COCO ground truth by their boxes, without printing.

    Crowd regions (`iscrowd`) count neither as found nor as missed, and a detection inside one is
    not a false alarm. Neither argument is changed.

    The ground truth is the content of an `instances_*.json`: `images`, `annotations`, `categories`.
    An annotation without `area` gets that of its box. Results are entries as `to_results` makes
    them; images without an entry count as empty, and of the others the best `max_detections`. Every
    `bbox` has four numbers, or every one has five: then they are rotated boxes.

    Raises:
        ValueError: ground truth without images, categories or boxes; entries with an unknown
            image or category, or with a number that is not finite; boxes of both kinds; rotated
            boxes for a backend that does not know them; all faults at once.
        ConfigError: the backend is not installed.
    """
    faults = list(coco_faults(ground_truth, results))
    rotated = any(len(a["bbox"]) == 5 for a in ground_truth.get("annotations", ()))
    try:
        backend = resolve_backend(backend, rotated=rotated)
    except ConfigError:
        raise
    except ValueError as error:
        faults.append(str(error))
    if max_detections < 1:
        faults.append(f"max_detections: expected 1 or more, got {max_detections}")
    if faults:
        raise ValueError("cannot compute COCO metrics:\n" + "\n".join(faults))
    # A redirect, because pycocotools prints its progress and has no switch for it.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _accumulate(
            ground_truth, results, max_detections, backend_classes(backend, rotated=rotated)
        )
    precision = np.asarray(evaluation["precision"])  # (T, Q, K, S, L)
    recall = np.asarray(evaluation["recall"])  # (T, K, S, L)
    values = {f"AP{s}": _mean(precision[..., i, -1]) for s, i in _SIZES.items()}
    values |= {f"AR{s or 100}": _mean(recall[..., i, -1]) for s, i in _SIZES.items()}
    values |= {"AR1": _mean(recall[..., 0, 0]), "AR10": _mean(recall[..., 0, 1])}
    values["AP50"] = _mean(precision[_AP50, ..., 0, -1])
    values["AP75"] = _mean(precision[_AP75, ..., 0, -1])
    names = metric_names(ground_truth["categories"])
    per_class = {
        names[category]: _mean(precision[:, :, k, 0, -1])
        for k, category in enumerate(sorted(names))  # the backends sort categories by id
    }
    return CocoMetrics(**values, per_class=per_class)


def _accumulate(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    max_detections: int,
    classes: tuple[Any, Any],
) -> Mapping[str, Any]:
    """Run a backend on its own copies, and return its precision and recall arrays."""
    coco_class, eval_class = classes
    images = [{"id": image["id"]} for image in ground_truth["images"]]
    categories = [dict(category) for category in ground_truth["categories"]]
    sides = []
    for boxes in (_truth_entries(ground_truth["annotations"]), _result_entries(results)):
        side = coco_class()
        side.dataset = {"images": images, "categories": categories, "annotations": list(boxes)}
        side.createIndex()
        sides.append(side)
    evaluator = eval_class(*sides, "bbox")
    evaluator.params.maxDets = [1, min(10, max_detections), max_detections]
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval


def _truth_entries(annotations: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Slim copies: masks do not matter for boxes, and the evaluator writes into what it gets.

    Numbered from 1, because pycocotools takes a match with annotation 0 for no match.
    """
    for number, annotation in enumerate(annotations, start=1):
        box = annotation["bbox"]
        yield {
            "id": number,
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": list(box),
            "area": annotation.get("area", box[2] * box[3]),
            "iscrowd": int(annotation.get("iscrowd", 0)),
        }


def _result_entries(results: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """What pycocotools' `loadRes` makes of results; it cannot load an empty list."""
    for number, result in enumerate(results, start=1):
        box = [float(value) for value in result["bbox"]]
        yield {
            "id": number,
            "image_id": result["image_id"],
            "category_id": result["category_id"],
            "bbox": box,
            "area": box[2] * box[3],
            "score": float(result["score"]),
            "iscrowd": 0,
        }


def _mean(values: np.ndarray) -> float:
    """Mean of the entries that are defined (the backends mark the others -1), else NaN."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else math.nan


def metric_names(categories: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Category id to a name that is unique and does not split a metric key (see `per_class`)."""
    names = {
        c["id"]: str(c.get("name") or f"class_{c['id']}").replace("/", "_") for c in categories
    }
    counts = Counter(names.values())
    taken = {name for name, count in counts.items() if count == 1}
    for category, name in names.items():
        if counts[name] > 1:
            unique = f"{name}_{category}"
            while unique in taken:
                unique += "_"
            taken.add(unique)
            names[category] = unique
    return names
