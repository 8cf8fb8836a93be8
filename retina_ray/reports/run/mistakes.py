"""A run's page: what kinds of errors cost how much, and which class is taken for which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retina_ray.evaluation.errors import Verdict
from retina_ray.evaluation.tables import percent
from retina_ray.reports.run.analysis import RunAnalysis
from retina_ray.reports.run.tables import Table

_MAX_MATRIX = 20  # classes that a matrix is legible with
_MAX_PAIRS = 30
_KINDS = {
    Verdict.CLASS: (
        "wrong class",
        "Well placed (IoU from 0.5 on) on a box of another class. Large: classes look alike, or "
        "the labels are not sure; see which ones below.",
    ),
    Verdict.LOCATION: (
        "wrong place",
        "Right class, IoU from 0.1 to 0.5. Large: anchors that do not fit, too coarse an input, a "
        "box loss with too little weight, or loosely drawn boxes.",
    ),
    Verdict.BOTH: ("class and place", "Near a box of another class, IoU from 0.1 to 0.5."),
    Verdict.DUPLICATE: (
        "found twice",
        "Right, but a better detection has the box already. Large: a lower inference.nms_threshold "
        "may help.",
    ),
    Verdict.BACKGROUND: (
        "on background",
        "On no box at all (IoU below 0.1). Large: look-alikes, or boxes missing in the annotation.",
    ),
    Verdict.MISSED: (
        "missed",
        "A box that no detection found, nor one of the wrong class or place. Large: often small "
        "boxes, or rare classes; see recall by size above.",
    ),
}
_SUMS = (
    ("all wrong detections", "If every wrong detection were left out."),
    (
        "all boxes not found",
        "If every box that was not found were left out. Larger than the bar above: the model finds "
        "too little; smaller: it makes too much up.",
    ),
)


@dataclass(frozen=True)
class ErrorBar:
    """What errors of a kind cost.

    `gain`: the AP at IoU 0.5 that mending them alone would give, NaN where there is no AP;
    `length`: of its bar, in percent of the longest; `count`: how many there are, None for sums.
    """

    name: str
    gain: float
    length: float
    count: int | None
    words: str


def error_bars(analysis: RunAnalysis) -> tuple[list[ErrorBar], list[ErrorBar]]:
    """TIDE's kinds of errors with what each costs, and all of the wrong and of the lost."""
    errors = analysis.errors
    sums = (errors.false_positives, errors.false_negatives)
    costs = [value for value in (*errors.cost.values(), *sums) if not math.isnan(value)]
    top = max([*costs, 1e-9])

    def bar(name: str, words: str, gain: float, count: int | None = None) -> ErrorBar:
        length = 0.0 if math.isnan(gain) else 100 * max(gain, 0.0) / top
        return ErrorBar(name, gain, length, count, words)

    kinds = [bar(*_KINDS[kind], errors.cost[kind], errors.count[kind]) for kind in _KINDS]
    return kinds, [bar(*words, gain) for words, gain in zip(_SUMS, sums, strict=True)]


@dataclass(frozen=True)
class Confusion:
    """Which class is taken for which.

    Attributes:
        names: of the rows and columns: the classes, then the background.
        rows: number and share of its row of each cell; empty with many classes.
        pairs: with many classes, those that are confused most.
        boxes: true boxes; `right` of them are taken for what they are, `lost` not found.
        invented: detections on background.
    """

    names: Sequence[str]
    rows: Sequence[Sequence[tuple[int, float]]]
    pairs: Table
    boxes: int
    right: int
    lost: int
    invented: int


def confusion(analysis: RunAnalysis) -> Confusion:
    """The confusion matrix, or with many classes the pairs that are confused most."""
    names, matrix = analysis.names, analysis.confusion
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    few = len(names) <= _MAX_MATRIX
    cells = zip(matrix.tolist(), shares.tolist(), strict=True)
    return Confusion(
        names=(*names, "background"),
        rows=[list(zip(*row, strict=True)) for row in cells] if few else [],
        pairs=Table(("pair", "boxes", "% of the first"), [] if few else _pairs(names, matrix)),
        boxes=int(matrix[:-1].sum()),
        right=int(np.trace(matrix[:-1, :-1])),
        lost=int(matrix[:-1, -1].sum()),
        invented=int(matrix[-1].sum()),
    )


def _pairs(names: Sequence[str], matrix: np.ndarray) -> list[tuple[str, str, str]]:
    """The largest numbers off the diagonal, background aside."""
    inner = matrix[:-1, :-1].copy()
    np.fill_diagonal(inner, 0)
    order = np.argsort(-inner, axis=None, kind="stable")[:_MAX_PAIRS]
    totals = matrix[:-1].sum(axis=1)
    return [
        (
            f"{names[row]} taken for {names[column]}",
            f"{inner[row, column]:,}",
            percent(inner[row, column] / totals[row]),
        )
        for row, column in zip(*np.unravel_index(order, inner.shape), strict=True)
        if inner[row, column]
    ]
