"""Shapes: N images, M boxes, R anchors."""

import pytest
import torch
from box_cases import random_boxes
from matcher_cases import owners

from retina_ray.ops.best_anchor import BestAnchorMatcher
from retina_ray.ops.boxes import box_iou

# Side by side, 10 x 10 each; the fourth is the third moved by 2.
ANCHORS = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10], [22, 0, 32, 10]])


def ignored_by(match, image=0):
    return set(match.ignored[image].nonzero().flatten().tolist())


def algorithm(boxes, anchors, ignore_iou):
    """A box after the other, in plain Python: {anchor: box} and the ignored anchors."""
    table = box_iou(boxes, anchors).tolist()
    owner = {}
    for g, row in enumerate(table):
        best = max(row)
        anchor = row.index(best)
        if best > 0 and (anchor not in owner or best > table[owner[anchor]][anchor]):
            owner[anchor] = g
    ignored = {
        a
        for a in range(len(anchors))
        if a not in owner and 0 < max(row[a] for row in table) >= ignore_iou
    }
    return owner, ignored


LOOSE, EXACT = [0.0, 0, 10, 8], [0.0, 0, 10, 10]
OUTSIDE, INSIDE = [500.0, 0, 510, 10], [1.0, 0, 9, 10]


@pytest.mark.parametrize(
    ("boxes", "ignore_iou", "owner", "ignored"),
    [
        # The first box is anchor 2, and overlaps anchor 3 by 80 / 120. The second overlaps anchor 1
        # by 30 / 170, which is its best, and no other one.
        ([[20.0, 0, 30, 10], [13, 5, 20, 15]], 0.5, {2: 0, 1: 1}, {3}),
        ([[20.0, 0, 30, 10]], 0.7, {2: 0}, set()),
        # The first of equals is taken: over anchors 0 and 1 alike.
        ([[5.0, 0, 15, 10]], 1 / 3, {0: 0}, {1}),
        # A shared anchor goes to the larger overlap, and to the first of equals.
        ([LOOSE, EXACT, EXACT], 0.5, {0: 1}, set()),
        ([EXACT, LOOSE, EXACT], 0.5, {0: 0}, set()),
        # No overlap is background, whatever the threshold.
        ([OUTSIDE], 0.0, {}, set()),
        ([INSIDE], 0.0, {0: 0}, set()),
        ([INSIDE], 0.5, {0: 0}, set()),
    ],
)
def test_by_hand(boxes, ignore_iou, owner, ignored):
    match = BestAnchorMatcher(ignore_iou).match_grid(torch.tensor([boxes]), [ANCHORS], [(1, 4)])
    assert (owners(match), ignored_by(match)) == (owner, ignored)


@pytest.mark.parametrize("ignore_iou", [0.2, 0.5])
def test_equals_the_algorithm_step_by_step(ignore_iou):
    anchors, boxes = random_boxes(60, 0), random_boxes((8, 25), 100)
    match = BestAnchorMatcher(ignore_iou).match_grid(
        boxes, anchors.split([40, 20]), [(5, 8), (5, 4)]
    )
    for i in range(8):
        owner, ignored = algorithm(boxes[i], anchors, ignore_iou)
        assert (owners(match, i), ignored_by(match, i)) == (owner, ignored)
