"""Which class is taken for which, and how good the detections of each image are.

Both at a score threshold: they tell of what a user sees, where AP tells of all thresholds at once.

Shapes: n images, K classes, D detections, G true boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retina_ray.evaluation.errors import FOREGROUND_IOU, ErrorAnalysis, Verdict, covered_boxes
from retina_ray.evaluation.matching import Floats, Ints, Scene, box_overlaps


def confusion_matrix(scene: Scene, *, score_threshold: float) -> Ints:
    """Count what each true box was taken for, and each detection from the threshold on taken from.

    True boxes and detections of an image are paired whatever their classes are: of all pairs with
    an IoU of 0.5 or more, the one that overlaps most is taken first (of equal ones that of the
    better score), and each box takes part in one pair. That is the confusion matrix of Ultralytics'
    YOLOv5 with rows and columns exchanged, except that a box whose best partner is taken may have
    its next one. A detection without a partner counts as found in the background, unless it lies in
    a crowd region of its class; crowd regions themselves are left out.

    Returns:
        (K + 1, K + 1) counts: rows are true classes, columns predicted ones, the last of each is
        the background. A row without its last entry are the boxes that were found.
    """
    num_classes = len(scene.category_ids)
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    kept = scene.found_score >= score_threshold
    for image in range(len(scene.image_ids)):
        found, true = scene.found_in(image), scene.true_in(image)
        crowd, labels = scene.crowd[true], scene.true_label[true]
        boxes, seen = scene.found_box[found][kept[found]], scene.found_label[found][kept[found]]
        overlap = box_overlaps(boxes, scene.true_box[true], crowd)
        rows, columns = _pairs(np.where(crowd, 0.0, overlap))
        np.add.at(matrix, (labels[columns], seen[rows]), 1)
        missed = ~crowd
        missed[columns] = False
        matrix[:num_classes, num_classes] += np.bincount(labels[missed], minlength=num_classes)
        excused = (overlap >= FOREGROUND_IOU) & crowd & (labels[None] == seen[:, None])
        made_up = ~excused.any(axis=1)
        made_up[rows] = False
        matrix[num_classes, :num_classes] += np.bincount(seen[made_up], minlength=num_classes)
    return matrix


def _pairs(overlap: Floats) -> tuple[Ints, Ints]:
    """Rows and columns of the pairs, each row and column once; rows stand by falling score."""
    rows, columns = np.nonzero(overlap >= FOREGROUND_IOU)
    order = np.argsort(-overlap[rows, columns], kind="stable")
    free_row, free_column = np.ones(overlap.shape[0], bool), np.ones(overlap.shape[1], bool)
    taken = []
    for at in order.tolist():
        row, column = rows[at], columns[at]
        if free_row[row] and free_column[column]:
            free_row[row] = free_column[column] = False
            taken.append(at)
    return rows[taken], columns[taken]


@dataclass(frozen=True, eq=False)
class ImageScores:
    """How good the detections of each image are, from a score threshold on."""

    score_threshold: float
    verdict: np.ndarray  # (D,) as in the error analysis; those below the threshold are `IGNORED`
    missed: np.ndarray  # (G,) boxes that nothing found, nor an error of class or location points at
    right: Ints  # (n,) boxes found
    wrong: Ints  # (n,) detections
    lost: Ints  # (n,) boxes not found
    f1: Floats  # (n,) 2 right / (2 right + wrong + lost); NaN without boxes and detections

    def worst(self, number: int) -> list[int]:
        """Images with the lowest F1 below 1, those with more errors first; positions."""
        with np.errstate(invalid="ignore"):
            faulty = np.flatnonzero(self.f1 < 1)
        errors = self.wrong + self.lost
        order = np.lexsort((faulty, -errors[faulty], self.f1[faulty]))
        return faulty[order[:number]].tolist()

    def best(self, number: int) -> list[int]:
        """Images with the highest F1 above 0, those with more boxes found first; positions."""
        with np.errstate(invalid="ignore"):
            good = np.flatnonzero(self.f1 > 0)
        order = np.lexsort((good, -self.right[good], -self.f1[good]))
        return good[order[:number]].tolist()


def score_images(analysis: ErrorAnalysis, *, score_threshold: float) -> ImageScores:
    """Judge each image by its detections from a score threshold on, at an IoU of 0.5.

    Matching goes by falling score, so what a detection is does not depend on those below it.
    """
    matching, scene = analysis.matching, analysis.matching.scene
    low = scene.found_score < score_threshold
    verdict = np.where(low, np.int8(Verdict.IGNORED), analysis.verdict)
    found_by = matching.found_by
    found = (found_by >= 0) & ~low[found_by] if len(low) else np.zeros(len(found_by), bool)
    lost = ~found & ~scene.crowd
    images = (
        scene.true_image[found],
        scene.found_image[verdict >= Verdict.CLASS],
        scene.true_image[lost],
    )
    num_right, num_wrong, num_lost = (
        np.bincount(i, minlength=len(scene.image_ids)) for i in images
    )
    with np.errstate(invalid="ignore"):
        f1 = 2 * num_right / (2 * num_right + num_wrong + num_lost)
    return ImageScores(
        score_threshold=score_threshold,
        verdict=verdict,
        missed=lost & ~covered_boxes(scene, verdict, analysis.target),
        right=num_right,
        wrong=num_wrong,
        lost=num_lost,
        f1=f1,
    )
