"""What is wrong with detections, and what each kind of error costs: TIDE.

Bolya, Foley, Hays, Hoffman, "TIDE: A General Toolbox for Identifying Object Detection Errors"
(arXiv:2008.08115), sections 2.2 and 2.3. A detection that found no box is, at a foreground
threshold t_f = 0.5 and a background threshold t_b = 0.1,

- `location`: of the right class but badly placed, t_b <= IoU < t_f;
- `class`: well placed but of the wrong class, IoU >= t_f with a box of another class;
- `duplicate`: right, but a better detection had found the box before;
- `background`: on no box at all, IoU < t_b;
- `both`: the rest, wrong class and badly placed;

tried in this order, that of the authors' program (the paper leaves it open where several fit). A
true box that none found is `missed`, unless an error of class or location points at it. What a kind
costs (dAP) is the AP at t_f after these errors alone are mended, less the AP before.

The authors' program `tidecv` comes to the same values but for this: it puts an IoU of exactly t_f
under `location`, where COCO's matching takes it for well placed; it counts a class without true
boxes as an AP of 0, where COCO leaves it out; it mends only one of the errors of class and location
that point at the same box, though only one of the two kinds is mended at a time; and it shows
negative costs, which the 101 recall points may bring about, as 0.

Shapes: K classes, D detections, G true boxes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from retina_ray.evaluation.curves import mean_precision
from retina_ray.evaluation.matching import Bools, Ints, Matching, Scene, match

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1


class Verdict(IntEnum):
    """What a detection is, or of a true box: that it was missed."""

    RIGHT = 0
    IGNORED = 1
    CLASS = 2
    LOCATION = 3
    BOTH = 4
    DUPLICATE = 5
    BACKGROUND = 6
    MISSED = 7


_ERRORS = tuple(Verdict)[Verdict.CLASS :]


@dataclass(frozen=True, eq=False)
class ErrorAnalysis:
    """The errors of a set of detections; an AP is 0 to 1, at the foreground threshold.

    Attributes:
        target: (D,) the true box that it found, found again, or would have found with the right
            class or place; -1 where there is none (background, both, ignored).
        missed: (G,) boxes that no detection found and no error of class or location points at.
        cost: AP gained by mending one kind of error alone.
        false_positives: AP gained if every wrong detection were left out.
        false_negatives: AP gained if every box that was not found were left out.
    """

    matching: Matching
    verdict: NDArray[np.int8]  # (D,) of `Verdict`
    target: Ints
    missed: Bools
    ap: float
    cost: dict[Verdict, float]
    false_positives: float
    false_negatives: float

    @property
    def count(self) -> dict[Verdict, int]:
        """How many errors of each kind there are."""
        counts = np.bincount(self.verdict, minlength=len(Verdict))
        counts[Verdict.MISSED] = self.missed.sum()
        return {kind: int(counts[kind]) for kind in _ERRORS}


def find_errors(scene: Scene) -> ErrorAnalysis:
    """Find the errors of all detections, and what each kind costs."""
    matching = match(scene, iou=FOREGROUND_IOU)
    verdict, target = _verdicts(matching)
    lost = (matching.found_by < 0) & ~scene.crowd
    missed = lost & ~covered_boxes(scene, verdict, target)
    world = _World.of(matching, verdict)
    ap = world.ap()
    cost = {
        kind: world.mended(kind, verdict, target).ap() - ap
        for kind in _ERRORS
        if kind is not Verdict.MISSED
    }
    cost[Verdict.MISSED] = world.without(missed).ap() - ap
    return ErrorAnalysis(
        matching=matching,
        verdict=verdict,
        target=target,
        missed=missed,
        ap=ap,
        cost=cost,
        false_positives=world.keep(world.hit).ap() - ap,
        false_negatives=world.without(lost).ap() - ap,
    )


def covered_boxes(scene: Scene, verdict: NDArray[np.int8], target: Ints) -> Bools:
    """(G,) whether an error of class or location points at a true box."""
    covered = np.zeros(len(scene.true_label), bool)
    covered[target[np.isin(verdict, (Verdict.CLASS, Verdict.LOCATION))]] = True
    return covered


def _verdicts(matching: Matching) -> tuple[NDArray[np.int8], Ints]:
    low, high = BACKGROUND_IOU, FOREGROUND_IOU
    same, other = matching.same_iou, matching.other_iou
    # The first that holds counts.
    rules: list[tuple[Verdict, Bools, Ints | None]] = [
        (Verdict.RIGHT, matching.matched >= 0, matching.matched),
        (Verdict.IGNORED, matching.ignored, None),
        (Verdict.LOCATION, (low <= same) & (same < high), matching.same_at),
        (Verdict.CLASS, other >= high, matching.other_at),
        (Verdict.DUPLICATE, same >= high, matching.same_at),
        (Verdict.BACKGROUND, np.maximum(same, other) < low, None),
    ]
    verdict = np.full(len(same), Verdict.BOTH, np.int8)
    target = np.full(len(same), -1)
    for kind, holds, at in reversed(rules):
        verdict[holds] = kind
        target[holds] = -1 if at is None else at[holds]
    return verdict, target


@dataclass(frozen=True, eq=False)
class _World:
    """What an AP is computed from: detections that count, and the number of true boxes."""

    position: Ints  # of each detection in the scene
    label: Ints
    score: NDArray[np.float64]
    hit: Bools
    num_true: Ints
    matching: Matching

    @classmethod
    def of(cls, matching: Matching, verdict: NDArray[np.int8]) -> _World:
        at = np.flatnonzero(verdict != Verdict.IGNORED)
        scene = matching.scene
        return cls(
            position=at,
            label=scene.found_label[at],
            score=scene.found_score[at],
            hit=verdict[at] == Verdict.RIGHT,
            num_true=scene.num_true,
            matching=matching,
        )

    def ap(self) -> float:
        return mean_precision(self.label, self.score, self.hit, self.num_true)

    def keep(self, kept: Bools) -> _World:
        return replace(
            self,
            position=self.position[kept],
            label=self.label[kept],
            score=self.score[kept],
            hit=self.hit[kept],
        )

    def without(self, some: Bools) -> _World:
        """Without some true boxes that nothing found.

        A class that loses all of them has no AP, and is left out of the mean.
        """
        labels = self.matching.scene.true_label[some]
        return replace(
            self, num_true=self.num_true - np.bincount(labels, minlength=len(self.num_true))
        )

    def mended(self, kind: Verdict, verdict: NDArray[np.int8], target: Ints) -> _World:
        """With the errors of one kind mended as the paper's oracles do.

        A wrong class or place is put right where its box is still free and no better detection of
        the same error takes it; else, and for all other kinds, the detection is left out.
        """
        wrong = verdict[self.position] == kind
        if kind not in (Verdict.CLASS, Verdict.LOCATION):
            return self.keep(~wrong)
        aim = target[self.position]
        able = np.flatnonzero(wrong)
        able = able[self.matching.found_by[aim[able]] < 0]
        able = able[np.argsort(-self.score[able], kind="stable")]
        _, first = np.unique(aim[able], return_index=True)
        right = able[first]
        label, hit = self.label.copy(), self.hit.copy()
        label[right], hit[right] = self.matching.scene.true_label[aim[right]], True
        wrong[right] = False
        return replace(self, label=label, hit=hit).keep(~wrong)
