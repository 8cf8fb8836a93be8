"""Precision over recall by class, AP, and the score threshold with the best F1.

Precision is read at COCO's 101 recall points, each taking the largest precision at its recall or
above it, as `COCOeval` does.

Shapes: K classes, D detections, R = 101 recall points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retina_ray.evaluation.matching import Bools, Floats, Ints, Matching

RECALL_POINTS: NDArray[np.float64] = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class Threshold:
    """A score from which on detections are kept, and their precision and recall.

    The score is NaN where no detection is right, so that none is good.
    """

    score: float
    f1: float
    precision: float
    recall: float


def precision_at_recalls(score: Floats, hit: Bools, num_true: int) -> Floats:
    """Precision (R,) at the 101 recall points, for the detections (D,) of one class.

    0 where the recall is not reached, NaN everywhere without true boxes.
    """
    if num_true == 0:
        return np.full(len(RECALL_POINTS), math.nan)
    hit = hit[np.argsort(-score, kind="stable")]
    hits = np.cumsum(hit).astype(np.float64)
    precision = hits / (np.arange(1, len(hit) + 1) + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(hits / num_true, RECALL_POINTS, side="left")
    return np.append(precision, 0.0)[at]


def class_precisions(matching: Matching) -> Floats:
    """Precision over recall of each class: (K, R), NaN for a class without true boxes."""
    scene = matching.scene
    return _by_class(
        scene.found_label[~matching.ignored],
        scene.found_score[~matching.ignored],
        matching.matched[~matching.ignored] >= 0,
        scene.num_true,
    )


def mean_precision(label: Ints, score: Floats, hit: Bools, num_true: Ints) -> float:
    """AP of some detections, meant over the classes that have true boxes; NaN if none has.

    Label, score and hit (whether it finds a true box) are (D,), the number of true boxes (K,).
    """
    precision = _by_class(label, score, hit, num_true)
    defined = precision[num_true > 0]
    return float(defined.mean()) if defined.size else math.nan


def best_threshold(score: Floats, hit: Bools, num_true: int) -> Threshold:
    """The threshold on (D,) detections with the largest F1; of equal ones the highest."""
    if num_true == 0 or not hit.any():
        return Threshold(math.nan, math.nan if num_true == 0 else 0.0, math.nan, 0.0)
    order = np.argsort(-score, kind="stable")
    score, hits = score[order], np.cumsum(hit[order])
    kept = np.arange(1, len(score) + 1)
    f1 = 2 * hits / (kept + num_true)
    # A threshold keeps all detections of its score or none of them.
    f1[:-1][score[:-1] == score[1:]] = -1
    best = int(f1.argmax())
    return Threshold(
        score=float(score[best]),
        f1=float(f1[best]),
        precision=float(hits[best] / kept[best]),
        recall=float(hits[best] / num_true),
    )


def best_thresholds(matching: Matching) -> tuple[Threshold, list[Threshold]]:
    """One threshold for all classes together, and one for each class."""
    scene, counts = matching.scene, ~matching.ignored
    score, hit = scene.found_score[counts], matching.matched[counts] >= 0
    label, num_true = scene.found_label[counts], scene.num_true
    each = [
        best_threshold(score[members], hit[members], int(num_true[k]))
        for k, members in enumerate(_members(label, len(num_true)))
    ]
    return best_threshold(score, hit, int(num_true.sum())), each


def _by_class(label: Ints, score: Floats, hit: Bools, num_true: Ints) -> Floats:
    return np.stack(
        [
            precision_at_recalls(score[members], hit[members], int(num_true[k]))
            for k, members in enumerate(_members(label, len(num_true)))
        ]
    )


def _members(label: Ints, num_classes: int) -> Iterator[Ints]:
    order = np.argsort(label, kind="stable")
    ends = np.searchsorted(label[order], np.arange(num_classes + 1))
    for start, end in itertools.pairwise(ends.tolist()):
        yield order[start:end]
