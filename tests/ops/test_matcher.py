"""Shapes: N images, M boxes, R anchors."""

import pytest
import torch
from box_cases import NAN, random_boxes
from largest_storage import LargestStorage
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher

from retina_ray.ops import matcher as matcher_module
from retina_ray.ops.anchors import AnchorGenerator
from retina_ray.ops.boxes import box_iou
from retina_ray.ops.grid_iou import grid_axes, in_row_order
from retina_ray.ops.matcher import Matcher

low_quality_or_not = pytest.mark.parametrize("low_quality", [True, False])


def assert_equal(match, expected):
    for ours, theirs in zip(vars(match).values(), vars(expected).values(), strict=True):
        assert torch.equal(ours, theirs)


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


def test_low_quality_keeps_the_index_of_the_larger_overlap():
    # Anchor 0 is the best of box 0 (0.3), but overlaps box 1 more (0.45).
    match = Matcher()(torch.tensor([[0.3, 0.1], [0.45, 0.6]]))
    assert match.positive.tolist() == [True, True]
    assert match.index.tolist() == [1, 1]


@pytest.mark.parametrize(("m", "r"), [(0, 5), (3, 0), (0, 0)])
def test_no_boxes_or_no_anchors(m, r):
    match = Matcher()(torch.zeros(m, r))
    for tensor in vars(match).values():
        assert tensor.shape == (r,)
        assert not tensor.any()
    assert match.index.dtype == torch.int64


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
    iou = torch.stack([box_iou(random_boxes(4, s), random_boxes(60, s + 9)) for s in range(3)])
    batched = Matcher()(torch.cat((iou, torch.full((3, 2, 60), -1.0)), 1))
    for i in range(3):
        single = Matcher()(iou[i])
        assert torch.equal(batched.positive[i], single.positive)
        assert torch.equal(batched.ignored[i], single.ignored)
        assert torch.equal(batched.index[i][single.positive], single.index[single.positive])


@low_quality_or_not
def test_blocks_of_boxes_give_what_one_table_gives(monkeypatch, low_quality):
    anchors, boxes = random_boxes(100, 7), random_boxes((3, 9), 8)
    boxes[0, 4:] = 0  # padding
    boxes[1] = 0  # an image without boxes
    boxes[2, 0] = boxes[2, 3]  # equal boxes: the first one wins
    matcher = Matcher(allow_low_quality=low_quality)
    for block in (1, 100, 250, 10**6):
        monkeypatch.setattr(matcher_module, "_BLOCK_CPU", block)
        match = matcher.match_boxes(boxes, anchors)
        assert_same_as_table(match, matcher, boxes, anchors)
        assert match.positive[2].any()
        assert not match.positive[1].any()
        # What a GPU does: several images at once, without looking at the padding.
        together = matcher._decide(
            *matcher._reduce_in_blocks(
                boxes,
                len(anchors),
                block,
                lambda rows: box_iou(rows.flatten(0, 1), anchors).view(*rows.shape[:2], -1),
            )
        )
        assert_equal(together, match)


def test_match_boxes_without_images_boxes_or_anchors():
    matcher = Matcher()
    assert matcher.match_boxes(torch.zeros(0, 2, 4), torch.zeros(5, 4)).index.shape == (0, 5)
    empty = matcher.match_boxes(torch.zeros(2, 0, 4), torch.rand(5, 4))
    assert empty.index.shape == (2, 5)
    assert not empty.positive.any()
    assert matcher.match_boxes(torch.rand(2, 3, 4), torch.zeros(0, 4)).index.shape == (2, 0)


def make_grid(offset: float = 0.5) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
    grids = [(12, 15), (6, 8), (3, 4), (1, 2)]
    sizes = [(16, 20), (32, 40), (64, 80), (128, 160)]
    generator = AnchorGenerator(sizes, (0.5, 1, 2), (8, 16, 32, 64), offset)
    return generator(grids), grids


@low_quality_or_not
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_a_grid_gives_what_the_whole_table_gives(offset, low_quality):
    anchors, grids = make_grid(offset)
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


def test_a_grid_on_a_gpu_is_matched_as_on_a_cpu():
    anchors, grids = make_grid()
    boxes = random_boxes((3, 9), 5, side=60.0)
    boxes[1, 2:] = 0
    matcher = Matcher()
    expected = matcher.match_grid(boxes, anchors, grids)
    axes = [grid_axes(level, *grid) for level, grid in zip(anchors, grids, strict=True)]
    for block in (1, 1000, 10**7):
        parts = matcher._reduce_in_blocks(
            boxes,
            sum(map(len, anchors)),
            block,
            lambda rows: matcher_module._whole_table(rows, axes),
        )
        assert_equal(matcher._decide(*(in_row_order(part, axes) for part in parts)), expected)


def test_a_grid_without_images_boxes_or_cells():
    anchors, grids = make_grid()
    assert Matcher().match_grid(torch.zeros(0, 3, 4), anchors, grids).index.shape[0] == 0
    empty = Matcher().match_grid(torch.zeros(2, 0, 4), anchors, grids)
    assert empty.index.shape == (2, sum(map(len, anchors)))
    assert not empty.positive.any()
    boxes = random_boxes((1, 3), 1)
    without = Matcher().match_grid(boxes, [anchors[0], torch.zeros(0, 4)], [grids[0], (0, 5)])
    assert_equal(without, Matcher().match_grid(boxes, anchors[:1], grids[:1]))
    with pytest.raises(ValueError, match="7 x 3"):
        grid_axes(anchors[0], 7, 3)


def test_anchors_that_are_no_grid_are_matched_one_by_one():
    anchors, boxes = random_boxes(60, 1), random_boxes((2, 5), 2)
    ours = Matcher().match_grid(boxes, [anchors[:48], anchors[48:]], [(6, 8), (3, 4)])
    assert_equal(ours, Matcher().match_boxes(boxes, anchors))


def test_nothing_depends_on_values_that_a_gpu_would_have_to_send():
    # Meta tensors have no values, so anything that looked at one would raise here.
    boxes = torch.zeros(3, 5, 4, device="meta")
    anchors = torch.zeros(70, 4, device="meta")
    assert Matcher().match_boxes(boxes, anchors).index.shape == (3, 70)
    levels, grids = make_grid()
    levels = [level.to("meta") for level in levels]
    assert Matcher().match_grid(boxes, levels, grids).index.shape == (3, sum(map(len, levels)))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("by_grid", [True, False])
def test_memory_is_bounded_whatever_the_number_of_boxes(device, by_grid):
    # All IoUs of one image would take 34 MiB: 400 boxes, 50 x 50 cells, 9 anchors a cell.
    sizes = [[32 * 2 ** (i / 3) for i in range(3)]]
    (anchors,) = AnchorGenerator(sizes, (0.5, 1, 2), (8,))([(50, 50)])
    boxes = random_boxes((1 if device == "cpu" else 4, 400), 1).to(device)
    with LargestStorage() as largest:
        if by_grid:
            Matcher().match_grid(boxes, [anchors.to(device)], [(50, 50)])
        else:
            Matcher().match_boxes(boxes, anchors.to(device))
    # A block of 2**20 float32 on a CPU, where values can be seen; else of 2**24, as on a GPU.
    assert 0.5 < largest.mib <= (4 if device == "cpu" else 64), largest.name


@pytest.mark.parametrize(("low", "high"), [(0.6, 0.5), (-0.1, 0.5), (0.4, 1.1)])
def test_thresholds_are_checked(low, high):
    with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
        Matcher(low, high)
