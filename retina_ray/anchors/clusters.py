"""Clusters of box shapes by their overlap: the dimension clusters of YOLO9000 (arXiv:1612.08242).

As in section 2 there, the distance of two shapes is 1 - IoU of the rectangles laid on one centre:
by differences in pixels, large boxes would count for more than small ones.

Shapes: M boxes, k clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NUM_STARTS = 5
"""Times that the clustering starts afresh; the best end counts."""

MAX_ROUNDS = 50
MAX_SHAPES = 10_000
"""Shapes that take part; of more, so many are drawn."""


@dataclass(frozen=True)
class Clusters:
    """The outcome of a clustering.

    Attributes:
        shapes: (k, 2) width and height of the clusters, by ascending area.
        share: (k,) of the boxes.
        mean_iou: of the boxes with their cluster's shape, on one centre.
    """

    shapes: Floats
    share: Floats
    mean_iou: float


def shape_iou(a: Floats, b: Floats) -> Floats:
    """IoU (M, k) of rectangles (M, 2) with rectangles (k, 2) of the same centre."""
    overlap = np.minimum(a[:, None], b).prod(-1)
    return overlap / (a.prod(-1)[:, None] + b.prod(-1) - overlap)


def cluster_shapes(shapes: Floats, k: int, *, seed: int) -> Clusters:
    """Find k shapes that stand for all.

    Each start is drawn as k-means++ does, with 1 - IoU as the distance. A cluster's centre is the
    median of its widths and of its heights: for a distance that is no square, the mean is not the
    nearest point to all, and a few odd boxes would pull it. Since the median is not exactly the
    nearest point either, the best round counts, not the last one.

    Args:
        shapes: (M, 2) width and height, positive; M is at least 1.
        k: number of clusters; fewer come out where there are fewer different shapes.
        seed: of the starts.
    """
    rng = np.random.default_rng(seed)
    shapes = np.asarray(shapes, np.float64)
    if len(shapes) > MAX_SHAPES:
        shapes = shapes[rng.choice(len(shapes), MAX_SHAPES, replace=False)]
    k = min(k, len(np.unique(shapes, axis=0)))
    centers = max(
        (_improve(shapes, _start(shapes, k, rng)) for _ in range(NUM_STARTS)),
        key=lambda found: float(shape_iou(shapes, found).max(1).mean()),
    )
    centers = centers[np.argsort(centers.prod(1), kind="stable")]
    iou = shape_iou(shapes, centers)
    counts = np.bincount(iou.argmax(1), minlength=k)
    return Clusters(centers, counts / len(shapes), float(iou.max(1).mean()))


def _start(shapes: Floats, k: int, rng: np.random.Generator) -> Floats:
    """Draw k different shapes, each the likelier the farther it is from those drawn before."""
    chosen = [int(rng.integers(len(shapes)))]
    distance = np.ones(len(shapes))
    for _ in range(k - 1):
        newest = 1 - shape_iou(shapes, shapes[chosen[-1:]])[:, 0]
        distance = np.minimum(distance, newest.clip(min=0))
        weights = distance if distance.sum() > 0 else np.ones(len(shapes))
        chosen.append(int(rng.choice(len(shapes), p=weights / weights.sum())))
    return shapes[chosen]


def _improve(shapes: Floats, centers: Floats) -> Floats:
    """Move the centres (k, 2) to the medians of their boxes until nothing changes."""
    best, best_iou = centers, -1.0
    owner = np.full(len(shapes), -1)
    for _ in range(MAX_ROUNDS):
        iou = shape_iou(shapes, centers)
        mean_iou = float(iou.max(1).mean())
        if mean_iou > best_iou:
            best, best_iou = centers, mean_iou
        before, owner = owner, iou.argmax(1)
        if np.array_equal(before, owner):
            break
        centers = np.stack(
            [
                np.median(shapes[owner == i], axis=0) if (owner == i).any() else centers[i]
                for i in range(len(centers))
            ]
        )
    return best
