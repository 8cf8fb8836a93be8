"""A run's page: what kinds of errors cost how much, and which class is taken for which."""

from __future__ import annotations

import math
from html import escape

import numpy as np

from retina_ray.evaluation.errors import Verdict
from retina_ray.reports.run.analysis import RunAnalysis
from retina_ray.reports.run.tables import percent, table

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


def error_bars(analysis: RunAnalysis) -> str:
    """TIDE's kinds of errors with what each costs."""
    errors = analysis.errors
    costs = [value for value in errors.cost.values() if not math.isnan(value)]
    costs += [v for v in (errors.false_positives, errors.false_negatives) if not math.isnan(v)]
    top = max([*costs, 1e-9])
    counts = errors.count
    rows = [
        _bar(name, errors.cost[kind], top, f"{counts[kind]:,}", words)
        for kind, (name, words) in _KINDS.items()
    ]
    special = [
        _bar("all wrong detections", errors.false_positives, top, "",
             "If every wrong detection were left out."),
        _bar("all boxes not found", errors.false_negatives, top, "",
             "If every box that was not found were left out. Larger than the bar above: the model "
             "finds too little; smaller: it makes too much up."),
    ]  # fmt: skip
    return (
        f"<p>AP at IoU 0.5 is {percent(errors.ap)} %. Each bar says how many points it would gain "
        "if the errors of one kind alone were mended, and beside it how many there are, at any "
        "score: the longest bar is where work pays. The gains do not add up. Method: TIDE "
        '(arXiv:2008.08115).</p><div class="costs">'
        f'{"".join(rows)}</div><div class="costs">{"".join(special)}</div>'
    )


def _bar(name: str, cost: float, top: float, count: str, words: str) -> str:
    share = 0.0 if math.isnan(cost) else 100 * max(cost, 0.0) / top
    gain = "no AP left to compare" if math.isnan(cost) else f"{100 * cost:+.1f} AP50"
    number = f" · {count}" if count else ""
    return (
        f'<div class="cost"><span>{escape(name)}</span><span class="track">'
        f'<b style="width:{share:.1f}%"></b></span><span>{gain}{number}</span>'
        f"<p>{escape(words)}</p></div>"
    )


def confusion_part(analysis: RunAnalysis) -> str:
    """The confusion matrix, or with many classes the pairs that are confused most."""
    scene = analysis.errors.matching.scene
    matrix = analysis.confusion
    intro = (
        "<p>Detections with a score from "
        f"{analysis.images.score_threshold:.2f} on (the best F1 over all classes), paired with the "
        "true boxes that they overlap most, from IoU 0.5 on, whatever the classes are; each takes "
        "part in one pair. "
    )
    if len(scene.names) <= _MAX_MATRIX:
        return (
            f"{intro}Rows are true classes, columns what they were taken for; colour: share of the "
            "row. Last column: boxes not found; last row: detections on background.</p>"
            f"{_matrix(scene.names, matrix)}"
        )
    words = f"With {len(scene.names)} classes, the pairs that are confused most.</p>"
    return f"{intro}{words}{_pairs(scene.names, matrix)}"


def _matrix(names: tuple[str, ...], matrix: np.ndarray) -> str:
    labels = [escape(name) for name in (*names, "background")]
    totals = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shares = matrix / totals
    head = "".join(f'<th title="{label}">{label}</th>' for label in labels)
    lines = []
    for row, label in enumerate(labels):
        cells = "".join(
            _cell(row, column, int(matrix[row, column]), float(shares[row, column]), labels)
            for column in range(len(labels))
        )
        lines.append(f"<tr><th>{label}</th>{cells}</tr>")
    return (
        '<div class="wide"><table class="matrix"><thead><tr><th>true ↓ taken for →</th>'
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(row: int, column: int, count: int, share: float, labels: list[str]) -> str:
    last = len(labels) - 1
    if row == column == last:
        return "<td></td>"
    css = "" if row == column else ' class="off"'
    # Detections on background are no share of anything that the set knows the number of.
    depth = f' style="--s:{share:.3f}"' if count else ""
    title = f'title="{labels[row]} taken for {labels[column]}: {count:,}, {100 * share:.1f} %"'
    return f"<td{css}{depth} {title}>{count:,}</td>" if count else f"<td {title}>·</td>"


def _pairs(names: tuple[str, ...], matrix: np.ndarray) -> str:
    """The largest numbers off the diagonal, background aside."""
    inner = matrix[:-1, :-1].copy()
    np.fill_diagonal(inner, 0)
    rows, columns = np.unravel_index(
        np.argsort(-inner, axis=None, kind="stable")[:_MAX_PAIRS], inner.shape
    )
    totals = matrix[:-1].sum(axis=1)
    lines = [
        (
            f"{escape(names[row])} taken for {escape(names[column])}",
            f"{inner[row, column]:,}",
            percent(inner[row, column] / totals[row]),
        )
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        if inner[row, column]
    ]
    found, lost = int(np.trace(matrix[:-1, :-1])), int(matrix[:-1, -1].sum())
    sums = (
        f"<p>Of {int(totals.sum()):,} boxes, {found:,} are taken for what they are and {lost:,} "
        f"are not found; {int(matrix[-1].sum()):,} detections lie on background.</p>"
    )
    if not lines:
        return f"{sums}<p>No class is taken for another.</p>"
    return sums + table(("pair", "boxes", "% of the first"), lines)
