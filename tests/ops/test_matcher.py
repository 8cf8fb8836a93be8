"""Shapes: N images, M boxes, R anchors."""

import pytest
import torch
from largest_storage import LargestStorage
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher

from retina_ray.ops import matcher as matcher_module
from retina_ray.ops.anchors import AnchorGenerator
from retina_ray.ops.boxes import box_iou
from retina_ray.ops.grid_iou import grid_axes, in_row_order
from retina_ray.ops.matcher import Matcher


def random_boxes(shape: tuple[int, ...], seed: int, side: float = 40.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 2, generator=generator) * 100
    sides = 1 + torch.rand(*shape, 2, generator=generator) * side
    return torch.cat((corners, corners + sides), -1)


def test_detectron2s_own_example():
    # Its expected values for thresholds 0.3 and 0.7: matches 1, 1, 2, 0; labels -1, 1, 0, 1.
    iou = torch.tensor([[0.15, 0.45, 0.2, 0.6], [0.3, 0.65, 0.05, 0.1], [0.05, 0.4, 0.25, 0.4]])
    match = Matcher(0.3, 0.7)(iou)
    assert match.index.tolist() == [1, 1, 2, 0]
    # Box 2 is best at anchors 1 and 3 (a tie), box 0 at 3, box 1 at 1.
    assert match.positive.tolist() == [False, True, False, True]
    assert match.ignored.tolist() == [True, False, False, False]


def test_thresholds_are_half_open():
    iou = torch.tensor([[0.39, 0.4, 0.49, 0.5, 0.51, 1.0]])
    match = Matcher(0.4, 0.5, allow_low_quality=False)(iou)
    assert match.positive.tolist() == [False, False, False, True, True, True]
    assert match.ignored.tolist() == [False, True, True, False, False, False]


def test_low_quality_marks_every_tie_and_lifts_ignored_anchors():
    iou = torch.tensor([[0.2, 0.2, 0.1, 0.0], [0.0, 0.0, 0.45, 0.1]])
    match = Matcher()(iou)
    assert match.positive.tolist() == [True, True, True, False]
    assert not match.ignored.any()
    off = Matcher(allow_low_quality=False)(iou)
    assert not off.positive.any()
    assert off.ignored.tolist() == [False, False, True, False]


def test_low_quality_keeps_the_index_of_the_larger_overlap():
    # Anchor 0 is the best of box 0 (0.3), but overlaps box 1 more (0.45).
    match = Matcher()(torch.tensor([[0.3, 0.1], [0.45, 0.6]]))
    assert match.positive.tolist() == [True, True]
    assert match.index.tolist() == [1, 1]


def test_a_box_that_overlaps_nothing_claims_no_anchor():
    match = Matcher()(torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.3, 0.0]]))
    assert match.positive.tolist() == [False, True, False]
    assert not match.ignored.any()


@pytest.mark.parametrize("low_quality", [True, False])
def test_no_overlap_is_background_whatever_the_thresholds(low_quality):
    match = Matcher(0.0, 0.0, low_quality)(torch.tensor([[0.0, 0.01]]))
    assert match.positive.tolist() == [False, True]
    match = Matcher(0.0, 0.5, low_quality)(torch.tensor([[0.0, 0.01, 0.6]]))
    assert match.positive.tolist() == [False, False, True]
    assert match.ignored.tolist() == [False, True, False]


@pytest.mark.parametrize(("m", "r"), [(0, 5), (3, 0), (0, 0)])
def test_no_boxes_or_no_anchors(m, r):
    match = Matcher()(torch.zeros(m, r))
    for tensor in match:
        assert tensor.shape == (r,)
        assert not tensor.any()
    assert match.index.dtype == torch.int64


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_equals_torchvision_where_every_box_overlaps_something(low_quality, seed):
    iou = box_iou(random_boxes((7,), seed), random_boxes((400,), seed + 100))
    assert (iou.amax(1) > 0).all()
    theirs = TorchvisionMatcher(0.5, 0.4, low_quality)(iou)
    ours = Matcher(0.4, 0.5, low_quality)(iou)
    assert torch.equal(ours.positive, theirs >= 0)
    assert torch.equal(ours.ignored, theirs == TorchvisionMatcher.BETWEEN_THRESHOLDS)
    assert torch.equal(ours.index[ours.positive], theirs[ours.positive])


def test_padding_by_mask_and_by_negative_rows_changes_nothing():
    iou = box_iou(random_boxes((3,), 0), random_boxes((50,), 1))
    expected = Matcher()(iou)
    padded = torch.cat((iou, torch.full((2, 50), 0.9)))
    by_mask = Matcher()(padded, valid=torch.tensor([True, True, True, False, False]))
    by_value = Matcher()(torch.cat((iou, torch.full((2, 50), -1.0))))
    for match in (by_mask, by_value):
        assert torch.equal(match.positive, expected.positive)
        assert torch.equal(match.ignored, expected.ignored)
        assert torch.equal(match.index[match.positive], expected.index[match.positive])
    nothing = Matcher()(padded, valid=torch.zeros(5, dtype=torch.bool))
    assert not nothing.positive.any()
    assert not nothing.ignored.any()


def test_batched_tables():
    iou = torch.stack(
        [box_iou(random_boxes((4,), s), random_boxes((60,), s + 9)) for s in range(3)]
    )
    batched = Matcher()(iou)
    for i in range(3):
        for ours, single in zip(batched, Matcher()(iou[i]), strict=True):
            assert torch.equal(ours[i], single)


@pytest.mark.parametrize("block", [1, 100, 250, 10**6])
@pytest.mark.parametrize("low_quality", [True, False])
def test_blocks_of_boxes_give_what_one_table_gives(monkeypatch, block, low_quality):
    monkeypatch.setattr(matcher_module, "_BLOCK_CPU", block)
    anchors = random_boxes((100,), 7)
    boxes = random_boxes((3, 9), 8)
    boxes[0, 4:] = 0  # padding
    boxes[1] = 0  # an image without boxes
    boxes[2, 0] = boxes[2, 3]  # equal boxes: the first one wins
    matcher = Matcher(allow_low_quality=low_quality)
    match = matcher.match_boxes(boxes, anchors)
    for i in range(3):
        single = matcher(box_iou(boxes[i], anchors))
        assert torch.equal(match.positive[i], single.positive)
        assert torch.equal(match.ignored[i], single.ignored)
        assert torch.equal(match.index[i][single.positive], single.index[single.positive])
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
    for a, b in zip(together, match, strict=True):
        assert torch.equal(a, b)


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


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_a_grid_gives_what_the_whole_table_gives(seed, offset, low_quality):
    anchors, grids = make_grid(offset)
    boxes = random_boxes((4, 20), seed, side=90.0) - 10
    boxes[0, 7:] = 0  # padding
    boxes[1] = 0
    boxes[2, 3] = boxes[2, 5]  # equal boxes: the first one wins
    boxes[2, 6] = anchors[0][40]  # an IoU of 1
    boxes[2, 7] = torch.tensor([500.0, 500, 510, 520])  # overlaps no anchor
    boxes[3, 0] = torch.tensor([-50.0, -50, 400, 400])  # overlaps all of them
    boxes[3, 1] = torch.tensor([float("nan"), 0, 10, 10])
    boxes[3, 2] = torch.tensor([30.0, 30, 30, 40])  # no area
    matcher = Matcher(allow_low_quality=low_quality)
    match = matcher.match_grid(boxes, anchors, grids)
    flat = torch.cat(anchors)
    for i in range(4):
        table = matcher(box_iou(boxes[i], flat))
        assert torch.equal(match.positive[i], table.positive)
        assert torch.equal(match.ignored[i], table.ignored)
        assert torch.equal(match.index[i][table.positive], table.index[table.positive])
    assert match.positive.any(1).tolist() == [True, False, True, True]


@pytest.mark.parametrize("block", [1, 1000, 10**7])
def test_a_grid_on_a_gpu_is_matched_as_on_a_cpu(block):
    anchors, grids = make_grid()
    boxes = random_boxes((3, 9), 5, side=60.0)
    boxes[1, 2:] = 0
    matcher = Matcher()
    axes = [grid_axes(level, *grid) for level, grid in zip(anchors, grids, strict=True)]
    parts = matcher._reduce_in_blocks(
        boxes, sum(map(len, anchors)), block, lambda rows: matcher_module._whole_table(rows, axes)
    )
    dense = matcher._decide(*(in_row_order(part, axes) for part in parts))
    ours = matcher.match_grid(boxes, anchors, grids)
    for a, b in zip(dense, ours, strict=True):
        assert torch.equal(a, b)


def test_a_grid_without_images_boxes_or_cells():
    anchors, grids = make_grid()
    num_anchors = sum(map(len, anchors))
    assert Matcher().match_grid(torch.zeros(0, 3, 4), anchors, grids).index.shape[0] == 0
    empty = Matcher().match_grid(torch.zeros(2, 0, 4), anchors, grids)
    assert empty.index.shape == (2, num_anchors)
    assert not empty.positive.any()
    boxes = random_boxes((1, 3), 1)
    without = Matcher().match_grid(boxes, [anchors[0], torch.zeros(0, 4)], [grids[0], (0, 5)])
    alone = Matcher().match_grid(boxes, anchors[:1], grids[:1])
    assert torch.equal(without.positive, alone.positive)
    with pytest.raises(ValueError, match="do not fill a grid of 7 x 3"):
        grid_axes(anchors[0], 7, 3)


def test_anchors_that_are_no_grid_are_matched_one_by_one():
    anchors, boxes = random_boxes((60,), 1), random_boxes((2, 5), 2)
    ours = Matcher().match_grid(boxes, [anchors[:48], anchors[48:]], [(6, 8), (3, 4)])
    for a, b in zip(ours, Matcher().match_boxes(boxes, anchors), strict=True):
        assert torch.equal(a, b)


def test_a_thousand_boxes_an_image():
    anchors, grids = make_grid()
    boxes = random_boxes((2, 1000), 3)
    match = Matcher().match_grid(boxes, anchors, grids)
    table = Matcher()(box_iou(boxes[1], torch.cat(anchors)))
    assert torch.equal(match.positive[1], table.positive)
    assert torch.equal(match.index[1][table.positive], table.index[table.positive])


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
    # All IoUs of one image would take 86 MiB: 1000 boxes, 50 x 50 cells, 9 anchors a cell.
    sizes = [[32 * 2 ** (i / 3) for i in range(3)]]
    anchors = AnchorGenerator(sizes, (0.5, 1, 2), (8,))([(50, 50)])
    boxes = random_boxes((1 if device == "cpu" and by_grid else 4, 1000), 1).to(device)
    with LargestStorage() as largest:
        if by_grid:
            Matcher().match_grid(boxes, [anchors[0].to(device)], [(50, 50)])
        else:
            Matcher().match_boxes(boxes, anchors[0].to(device))
    # A block of 2**20 float32 on a CPU, where values can be seen; else of 2**24, as on a GPU.
    assert 0.5 < largest.mib <= (4 if device == "cpu" else 64), largest.name


@pytest.mark.parametrize(("low", "high"), [(0.6, 0.5), (-0.1, 0.5), (0.4, 1.1)])
def test_thresholds_are_checked(low, high):
    with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
        Matcher(low, high)
