"""Shapes: N images, M boxes, R anchors."""

import pytest
import torch
from box_cases import NAN, random_boxes
from matcher_cases import make_grid
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher

from retina_ray.ops.boxes import box_iou
from retina_ray.ops.matcher import Matcher

low_quality_or_not = pytest.mark.parametrize("low_quality", [True, False])


def assert_same_as_table(match, matcher, boxes, anchors):
    """Each image as by the whole table of its overlaps; the index only where it has a meaning."""
    for i in range(len(boxes)):
        table = matcher(box_iou(boxes[i], anchors))
        assert torch.equal(match.positive[i], table.positive)
        assert torch.equal(match.ignored[i], table.ignored)
        assert torch.equal(match.index[i][table.positive], table.index[table.positive])


def test_detectron2s_own_example():
    # Its expected values for thresholds 0.3 and 0.7: matches 1, 1, 2, 0; labels -1, 1, 0, 1.
    iou = torch.tensor([[0.15, 0.45, 0.2, 0.6], [0.3, 0.65, 0.05, 0.1], [0.05, 0.4, 0.25, 0.4]])
    match = Matcher(0.3, 0.7)(iou)
    assert match.index.tolist() == [1, 1, 2, 0]
    # Box 2 is best at anchors 1 and 3 (a tie), box 0 at 3, box 1 at 1.
    assert match.positive.tolist() == [False, True, False, True]
    assert match.ignored.tolist() == [True, False, False, False]


T, F = True, False


@pytest.mark.parametrize(
    ("matcher", "iou", "positive", "ignored"),
    [
        # Thresholds are half open.
        (Matcher(0.4, 0.5, False), [[0.39, 0.4, 0.49, 0.5, 1]], [F, F, F, T, T], [F, T, T, F, F]),
        # Every tie of a box's best is marked, and ignored anchors are lifted.
        (Matcher(), [[0.2, 0.2, 0.1, 0], [0, 0, 0.45, 0.1]], [T, T, T, F], [F] * 4),
        (Matcher(0.4, 0.5, False), [[0.2, 0.2, 0.1, 0], [0, 0, 0.45, 0]], [F] * 4, [F, F, T, F]),
        # A box that overlaps nothing claims no anchor.
        (Matcher(), [[0, 0, 0], [0.1, 0.3, 0]], [F, T, F], [F] * 3),
        # No overlap is background, whatever the thresholds.
        (Matcher(0, 0), [[0, 0.01]], [F, T], [F, F]),
        (Matcher(0, 0, False), [[0, 0.01]], [F, T], [F, F]),
        (Matcher(0, 0.5), [[0, 0.01, 0.6]], [F, F, T], [F, T, F]),
        (Matcher(0, 0.5, False), [[0, 0.01, 0.6]], [F, F, T], [F, T, F]),
    ],
)
def test_by_hand(matcher, iou, positive, ignored):
    match = matcher(torch.tensor(iou, dtype=torch.float32))
    assert (match.positive.tolist(), match.ignored.tolist()) == (positive, ignored)


@low_quality_or_not
def test_equals_torchvision_where_every_box_overlaps_something(low_quality):
    for seed in range(3):
        iou = box_iou(random_boxes(7, seed), random_boxes(400, seed + 100))
        assert (iou.amax(1) > 0).all()
        theirs = TorchvisionMatcher(0.5, 0.4, low_quality)(iou)
        ours = Matcher(0.4, 0.5, low_quality)(iou)
        assert torch.equal(ours.positive, theirs >= 0)
        assert torch.equal(ours.ignored, theirs == TorchvisionMatcher.BETWEEN_THRESHOLDS)
        assert torch.equal(ours.index[ours.positive], theirs[ours.positive])


def test_batched_tables_and_padding_by_negative_rows():
    boxes, anchors = random_boxes((3, 4), 0), random_boxes(60, 9)
    tables = torch.stack([box_iou(image, anchors) for image in boxes])
    batched = Matcher()(torch.cat((tables, torch.full((3, 2, 60), -1.0)), 1))
    assert_same_as_table(batched, Matcher(), boxes, anchors)


@low_quality_or_not
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_a_grid_gives_what_the_whole_table_gives(offset, low_quality):
    anchors, grids = make_grid(96, 120, (0.5, 0.7), (0.5, 1, 2), offset)
    for seed in range(4):
        boxes = random_boxes((4, 20), seed, side=90.0) - 10
        boxes[0, 7:] = 0  # padding
        boxes[1] = 0
        boxes[2, 3] = boxes[2, 5]  # equal boxes: the first one wins
        boxes[2, 6] = anchors[0][40]  # an IoU of 1
        boxes[2, 7] = torch.tensor([500.0, 500, 510, 520])  # overlaps no anchor
        boxes[3, 0] = torch.tensor([-50.0, -50, 400, 400])  # overlaps all of them
        boxes[3, 1] = torch.tensor([NAN, 0, 10, 10])
        boxes[3, 2] = torch.tensor([30.0, 30, 30, 40])  # no area
        matcher = Matcher(allow_low_quality=low_quality)
        match = matcher.match_grid(boxes, anchors, grids)
        assert_same_as_table(match, matcher, boxes, torch.cat(anchors))
        assert match.positive.any(1).tolist() == [True, False, True, True]


def test_anchors_that_are_no_grid_are_matched_one_by_one():
    anchors, boxes = random_boxes(60, 1), random_boxes((2, 5), 2)
    ours = Matcher().match_grid(boxes, [anchors[:48], anchors[48:]], [(6, 8), (3, 4)])
    assert_same_as_table(ours, Matcher(), boxes, anchors)
