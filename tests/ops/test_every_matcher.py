"""What all matchers have in common. Shapes: N images, M boxes, R anchors."""

from functools import partial

import pytest
import torch
from box_cases import INF, NAN, random_boxes
from largest_storage import LargestStorage
from matcher_cases import make_grid

from retina_ray.ops import atss, best_anchor, matcher
from retina_ray.ops.atss import AtssMatcher
from retina_ray.ops.best_anchor import BestAnchorMatcher
from retina_ray.ops.boxes import box_iou
from retina_ray.ops.grid_iou import grid_axes, in_row_order
from retina_ray.ops.matcher import Matcher


def one_by_one(which, boxes, anchors, grids):
    return which.match_boxes(boxes, torch.cat(anchors))


def on_a_gpu(which, boxes, anchors, grids):
    """All images at once, without looking at the padding."""
    axes = [grid_axes(level, *grid) for level, grid in zip(anchors, grids, strict=True)]
    table = partial(matcher._whole_table, axes=axes)
    parts = which._reduce_in_blocks(boxes, sum(map(len, anchors)), matcher._BLOCK_CPU, table)
    return which._decide(*(in_row_order(part, axes) for part in parts))


def one_by_one_on_a_gpu(which, boxes, anchors, grids):
    anchors = torch.cat(anchors)

    def table(rows):
        return box_iou(rows.flatten(0, 1), anchors).view(*rows.shape[:2], -1)

    return which._decide(*which._reduce_in_blocks(boxes, len(anchors), matcher._BLOCK_CPU, table))


MATCHERS = {
    "threshold": Matcher().match_grid,
    "threshold, one by one": partial(one_by_one, Matcher()),
    "best": BestAnchorMatcher().match_grid,
    "atss": AtssMatcher().match_grid,
}
every_matcher = pytest.mark.parametrize("match", MATCHERS.values(), ids=MATCHERS)


def assert_equal(match, expected):
    """The index has a meaning where positive."""
    assert torch.equal(match.positive, expected.positive)
    assert torch.equal(match.ignored, expected.ignored)
    assert torch.equal(match.index[match.positive], expected.index[match.positive])


@every_matcher
@pytest.mark.parametrize(("n", "m"), [(0, 3), (2, 0), (0, 0), (2, 3)])
def test_nothing_to_match(match, n, m):
    anchors, grids = make_grid(64, 96)
    if n * m:
        anchors, grids = [torch.zeros(0, 4)], [(0, 5)]
    found = match(torch.rand(n, m, 4), anchors, grids)
    for tensor in vars(found).values():
        assert tensor.shape == (n, sum(map(len, anchors)))
        assert not tensor.any()
    assert (found.index.dtype, found.positive.dtype) == (torch.int64, torch.bool)


@every_matcher
def test_levels_without_cells_and_half_precision_change_nothing(match):
    boxes, (anchors, grids) = random_boxes((2, 3), 0).bfloat16(), make_grid(64, 96)
    expected = match(boxes.float(), anchors, grids)
    assert expected.positive.any()
    assert_equal(match(boxes, anchors, grids), expected)
    anchors.insert(1, torch.zeros(0, 4))
    grids.insert(1, (0, 5))
    assert_equal(match(boxes.float(), anchors, grids), expected)


@every_matcher
def test_bad_boxes_and_padding_match_nothing_and_disturb_nobody(match):
    anchors, grids = make_grid(64, 96)
    boxes = random_boxes((2, 3), 1)
    bad = [[NAN, 0, 5, 5], [5, 5, 5, 9], [9, 9, 5, 5], [-INF, 0, INF, 10], [0, 0, 0, 0]]
    bad = torch.tensor(bad).expand(2, -1, -1)
    outside = torch.tensor([[[500.0, 500, 540, 540]]]).expand(2, -1, -1)
    alone = match(boxes, anchors, grids)
    assert alone.positive.any(1).all()
    assert_equal(match(torch.cat((boxes, bad, outside), 1), anchors, grids), alone)
    for nothing in (bad, outside):
        found = match(nothing, anchors, grids)
        assert not (found.positive | found.ignored).any()


def best_on_a_gpu(which, boxes, anchors, grids):
    return which._match(boxes, torch.cat(anchors))


BY_THRESHOLD = (one_by_one, on_a_gpu, one_by_one_on_a_gpu)


@pytest.mark.parametrize(
    ("which", "others"),
    [
        (Matcher(), BY_THRESHOLD),
        (Matcher(allow_low_quality=False), BY_THRESHOLD),
        (BestAnchorMatcher(), (best_on_a_gpu,)),
        (AtssMatcher(), ()),
    ],
)
def test_blocks_padding_and_a_gpu_change_nothing(monkeypatch, which, others):
    anchors, grids = make_grid(64, 96, (1.0, 1.3))
    boxes = random_boxes((3, 20), 8)
    boxes[:, 3] = anchors[0][40]
    boxes[0, 10:] = boxes[0, :10]  # equal boxes: the first one wins, in another block too
    boxes[1, 4:] = 0  # padding
    boxes[2, 5] = boxes[2, 3]
    whole = which.match_grid(boxes, anchors, grids)
    assert whole.positive.any(1).all()
    assert (whole.index[0][whole.positive[0]] < 10).all()
    assert 5 not in whole.index[2][whole.positive[2]]
    for block in (1, 200, 5000):
        for module in (matcher, best_anchor, atss):
            monkeypatch.setattr(module, "_BLOCK_CPU", block)
        assert_equal(which.match_grid(boxes, anchors, grids), whole)
        for way in others:
            assert_equal(way(which, boxes, anchors, grids), whole)


@every_matcher
@pytest.mark.parametrize("m", [0, 5])
def test_nothing_depends_on_values_that_a_gpu_would_have_to_send(match, m):
    # Meta tensors have no values, so anything that looked at one would raise here.
    anchors, grids = make_grid(64, 96)
    found = match(torch.zeros(2, m, 4, device="meta"), [a.to("meta") for a in anchors], grids)
    assert all(tensor.shape == (2, sum(map(len, anchors))) for tensor in vars(found).values())
    assert found.positive.device.type == "meta"


@every_matcher
@pytest.mark.parametrize(("device", "num_images"), [("cpu", 2), ("meta", 32)])
def test_memory_is_bounded_whatever_the_number_of_boxes(match, device, num_images):
    # All IoUs of one image take 15 MiB; the corners of ATSS's candidates, 405 a box, 3.1 MiB.
    anchors, grids = make_grid(160, 160, (1, 1.2, 1.4, 1.6, 1.8), (0.5, 1.0, 2.0))
    boxes = random_boxes((num_images, 500), 1, spread=120).to(device)
    with LargestStorage() as largest:
        match(boxes, [level.to(device) for level in anchors], grids)
    # A block takes 4 MiB on a CPU, where values can be seen; else 64, as on a GPU.
    assert 0.5 < largest.mib <= (4 if device == "cpu" else 64), largest.name


def test_what_does_not_fit_is_named():
    for low, high in ((0.6, 0.5), (-0.1, 0.5), (0.4, 1.1)):
        with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
            Matcher(low, high)
    for ignore_iou in (-0.1, 1.1):
        with pytest.raises(ValueError, match="ignore_iou"):
            BestAnchorMatcher(ignore_iou)
    with pytest.raises(ValueError, match="topk"):
        AtssMatcher(0)
    for match in (AtssMatcher().match_grid, partial(on_a_gpu, Matcher())):
        with pytest.raises(ValueError, match=r"2 x 2 cells"):
            match(torch.zeros(1, 1, 4), [torch.zeros(7, 4)], [(2, 2)])
