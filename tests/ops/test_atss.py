"""Shapes: N images, M boxes, A anchors a cell, R anchors in all."""

import math
import statistics

import pytest
import torch
from largest_storage import LargestStorage

from retina_ray.ops import atss as atss_module
from retina_ray.ops.anchors import AnchorGenerator
from retina_ray.ops.atss import AtssMatcher

STRIDES = (8, 16, 32)


def make_anchors(height_px, width_px, sizes=(1.0,), ratios=(1.0,), offset=0.5):
    """Anchors (H * W * A, 4) of three levels, float64, and the grids."""
    generator = AnchorGenerator(
        [[4 * stride * size for size in sizes] for stride in STRIDES], ratios, STRIDES, offset
    )
    grids = [(-(-height_px // stride), -(-width_px // stride)) for stride in STRIDES]
    return [level.double() for level in generator(grids)], grids


def random_boxes(shape, seed, height_px=64.0, width_px=96.0):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, *shape, 2, generator=generator, dtype=torch.float64)
    scale = torch.tensor([width_px, height_px])
    return torch.cat((torch.minimum(a, b) * scale, torch.maximum(a, b) * scale), -1)


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def algorithm_1(boxes, anchors, grids, k):
    """The paper's algorithm 1, a box after the other, in plain Python: {anchor: box}."""
    owner = {}
    for g, box in enumerate(boxes):
        center = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        candidates, first = [], 0
        for level, (height, width) in zip(anchors, grids, strict=True):
            distances = [
                (math.dist(((a[0] + a[2]) / 2, (a[1] + a[3]) / 2), center), first + row)
                for row, a in enumerate(level)
            ]
            nearest = sorted(distances)[: k * (len(level) // (height * width))]
            candidates += [row for _, row in nearest]
            first += len(level)
        flat = [a for level in anchors for a in level]
        overlaps = [iou(box, flat[row]) for row in candidates]
        threshold = statistics.mean(overlaps) + statistics.stdev(overlaps)
        for row, overlap in zip(candidates, overlaps, strict=True):
            x, y = (flat[row][0] + flat[row][2]) / 2, (flat[row][1] + flat[row][3]) / 2
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlap >= threshold and inside:
                other = owner.get(row)
                if other is None or overlap > iou(boxes[other], flat[row]):
                    owner[row] = g
    return owner


def owners(match, image=0):
    positive = match.positive[image].nonzero().flatten().tolist()
    return {row: int(match.index[image, row]) for row in positive}


@pytest.mark.parametrize(
    ("sizes", "ratios", "k"),
    [((1.0,), (1.0,), 9), ((1.0, 1.3), (0.5, 2.0), 4), ((0.5,), (1.0, 2.0), 1), ((1.0,), (1,), 17)],
)
def test_equals_the_papers_algorithm_step_by_step(sizes, ratios, k):
    offset = 0.5 * (k % 2)
    anchors, grids = make_anchors(64, 96, sizes, ratios, offset)
    rows = [level.tolist() for level in anchors]
    boxes = random_boxes((3, 7), 3)
    # Side by side within one cell, so that they compete for anchors.
    boxes[0, 3:] = boxes[0, 2] + torch.rand(4, 1, dtype=torch.float64)
    match = AtssMatcher(k).match_grid(boxes, anchors, grids)
    found = 0
    for i in range(3):
        expected = algorithm_1(boxes[i].tolist(), rows, grids, k)
        assert owners(match, i) == expected
        found += len(expected)
    assert found > 4
    assert not match.ignored.any()


def test_by_hand():
    # One row of four cells of 8 px with anchors of 16 x 16, and a box of just that size. IoUs of
    # the cells at a distance of 0, 8, 16: 1, 128 / 384 = 1/3, 0.
    box, moved = [-4.0, -4, 12, 12], [8.0, -4, 24, 12]
    # k = 3: 1, 1/3, 0 have the mean 4/9 and the standard deviation 0.51; only the first is above.
    assert in_row_of_four(3, [box]) == {0: 0}
    # Moved by a cell and a half, two cells are at a distance of 4, with 192 / 320 = 0.6, the other
    # two at 12, with 64 / 448 = 1/7. Of all four: mean 0.371, deviation 0.264, 0.6 below 0.635.
    assert in_row_of_four(4, [moved]) == {}
    # Of the nearest three: mean 0.448, deviation 0.264, above 0.6 again.
    assert in_row_of_four(3, [moved]) == {}
    # Of two alone, the deviation is 0 and both are positive.
    assert in_row_of_four(2, [moved]) == {1: 0, 2: 0}


def in_row_of_four(k, boxes):
    """Owners of four anchors of 16 px at x = 4, 12, 20, 28 and y = 4."""
    anchors = AnchorGenerator([[16.0]], [1.0], [8])([(1, 4)])
    return owners(AtssMatcher(k).match_grid(torch.tensor([boxes]), anchors, [(1, 4)]))


def test_an_anchor_outside_the_box_is_not_positive_however_well_it_overlaps():
    # The box begins 0.02 and 0.005 px before the centre at 12, and beyond it.
    assert in_row_of_four(1, [[11.98, 0, 14, 8]]) == {1: 0}
    assert (
        in_row_of_four(1, [[11.995, 0, 12.5, 8]]) == in_row_of_four(1, [[12.02, 0, 12.5, 8]]) == {}
    )


def test_a_shared_anchor_goes_to_the_larger_overlap_and_to_the_first_of_equals():
    wide, exact = [2.0, -4, 22, 12], [4.0, -4, 20, 12]
    assert in_row_of_four(1, [wide, exact, exact]) == {1: 1}
    assert in_row_of_four(1, [exact, wide, exact]) == {1: 0}


def test_cells_at_the_same_distance_are_taken_in_their_order():
    # The box lies between four cells of a 4 x 4 grid; k = 1 takes the upper left one.
    generator = AnchorGenerator([[16.0]], [1.0], [8])
    box = torch.tensor([[[8.0, 8, 24, 24]]])
    match = AtssMatcher(1).match_grid(box, generator([(4, 4)]), [(4, 4)])
    assert owners(match) == {5: 0}
    # k = 6: those four, and of the eight next ones the two of the first row.
    candidates, _ = AtssMatcher(6)._candidates(
        box, atss_module._levels(generator([(4, 4)]), [(4, 4)])[0]
    )
    assert sorted(candidates.flatten().tolist()) == [1, 2, 5, 6, 9, 10]


@pytest.mark.parametrize("grid", [(1, 40), (40, 1), (3, 13), (2, 2)])
def test_the_window_holds_all_candidates(grid):
    generator = AnchorGenerator([[16.0]], [1.0], [8])
    level = atss_module._levels(generator([grid]), [grid])[0]
    # Inside, in the corners, and far outside the grid.
    boxes = random_boxes((1, 60), 5, grid[0] * 8.0, grid[1] * 8.0)
    boxes[:, 30:] = (boxes[:, 30:] - 20) * 3
    centers = (boxes[0, :, :2] + boxes[0, :, 2:]) / 2
    cells = generator([grid])[0].double()
    distance = torch.cdist(centers, (cells[:, :2] + cells[:, 2:]) / 2)
    for k in (1, 5, 9, 30):
        candidates, _ = AtssMatcher(k)._candidates(boxes, level)
        expected = distance.sort(-1).indices[:, :k]
        assert torch.equal(candidates[0].sort(-1).values, expected.sort(-1).values), k


def test_blocks_of_boxes_change_nothing(monkeypatch):
    anchors, grids = make_anchors(64, 96, (1.0, 1.3))
    boxes = random_boxes((3, 20), 8)
    boxes[0, 10:] = boxes[0, :10]  # equal boxes: the first one wins, in another block too
    boxes[1, 4:] = 0
    whole = AtssMatcher().match_grid(boxes, anchors, grids)
    for block in (1, 200, 5000):
        monkeypatch.setattr(atss_module, "_BLOCK_CPU", block)
        match = AtssMatcher().match_grid(boxes, anchors, grids)
        for ours, expected in zip(vars(match).values(), vars(whole).values(), strict=True):
            assert torch.equal(ours, expected)
    assert whole.positive.any(1).all()
    assert (whole.index[0][whole.positive[0]] < 10).all()


def test_boxes_without_extent_or_with_a_nan_match_nothing_and_disturb_nobody():
    anchors, grids = make_anchors(64, 96)
    boxes = random_boxes((2, 3), 1).float()
    nan, inf = math.nan, math.inf
    bad = [[0, 0, 0, 0], [20, 20, 20, 50], [50, 50, 20, 20], [nan, 3, 9, 9], [-inf, 0, inf, 40]]
    bad = torch.tensor(bad).expand(2, -1, -1)
    alone = AtssMatcher().match_grid(boxes, anchors, grids)
    mixed = AtssMatcher().match_grid(torch.cat((boxes, bad), 1), anchors, grids)
    assert alone.positive.any()
    for a, b in zip(vars(alone).values(), vars(mixed).values(), strict=True):
        assert torch.equal(a, b)
    assert not AtssMatcher().match_grid(bad, anchors, grids).positive.any()
    outside = torch.tensor([[[500.0, 500, 540, 540]]])
    assert not AtssMatcher().match_grid(outside, anchors, grids).positive.any()


def test_a_flipped_image_has_flipped_positives():
    anchors, grids = make_anchors(64, 96)
    boxes = random_boxes((1, 5), 4)
    flipped = boxes[..., [2, 1, 0, 3]] * torch.tensor([-1.0, 1, -1, 1])
    flipped[..., [0, 2]] += 96
    there = AtssMatcher(8).match_grid(boxes, anchors, grids).positive[0]
    back = AtssMatcher(8).match_grid(flipped, anchors, grids).positive[0]
    sizes = [h * w for h, w in grids]
    for a, b, (height, width) in zip(there.split(sizes), back.split(sizes), grids, strict=True):
        assert torch.equal(a.view(height, width), b.view(height, width).flip(1))
    assert there.any()


@pytest.mark.parametrize(("n", "m"), [(0, 3), (2, 0), (0, 0)])
def test_no_images_or_no_boxes(n, m):
    anchors, grids = make_anchors(64, 96)
    num_anchors = sum(len(level) for level in anchors)
    match = AtssMatcher().match_grid(torch.zeros(n, m, 4), anchors, grids)
    for tensor in vars(match).values():
        assert tensor.shape == (n, num_anchors)
        assert not tensor.any()
    assert (match.index.dtype, match.positive.dtype) == (torch.int64, torch.bool)


def test_no_cells_and_half_precision():
    boxes = random_boxes((1, 3), 0)
    empty = AtssMatcher().match_grid(boxes, [torch.zeros(0, 4)], [(0, 5)])
    assert empty.index.shape == (1, 0)
    anchors, grids = make_anchors(64, 96)
    with_gap = [torch.zeros(0, 4).double(), *anchors]
    match = AtssMatcher().match_grid(boxes, with_gap, [(0, 0), *grids])
    assert torch.equal(match.positive, AtssMatcher().match_grid(boxes, anchors, grids).positive)
    half = AtssMatcher().match_grid(boxes.bfloat16(), anchors, grids)
    wide = AtssMatcher().match_grid(boxes.bfloat16().float(), anchors, grids)
    assert torch.equal(half.positive, wide.positive)


@pytest.mark.parametrize("m", [0, 5])
def test_nothing_depends_on_values_that_a_gpu_would_have_to_send(m):
    # Meta tensors have no values, so anything that looked at one would raise here.
    grids = [(6, 7), (3, 4)]
    anchors = [torch.zeros(h * w * 3, 4, device="meta") for h, w in grids]
    match = AtssMatcher().match_grid(torch.zeros(2, m, 4, device="meta"), anchors, grids)
    assert all(tensor.shape == (2, 162) for tensor in vars(match).values())
    assert match.positive.device.type == "meta"


@pytest.mark.parametrize(("device", "num_images"), [("cpu", 2), ("meta", 16)])
def test_memory_is_bounded_whatever_the_number_of_boxes(device, num_images):
    # 3 levels, 9 cells, 15 anchors: 405 candidates a box. Their corners take 6.2 MiB an image.
    anchors, grids = make_anchors(160, 160, (1, 1.2, 1.4, 1.6, 1.8), (0.5, 1.0, 2.0))
    anchors = [level.float().to(device) for level in anchors]
    boxes = random_boxes((num_images, 1000), 1, 160, 160).float().to(device)
    with LargestStorage() as largest:
        AtssMatcher().match_grid(boxes, anchors, grids)
    # A block of 2**18 candidates, of 4 float32 each, on a CPU; else of 2**22, as on a GPU.
    assert 0.5 < largest.mib <= (4 if device == "cpu" else 64), largest.name


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="topk"):
        AtssMatcher(0)
    with pytest.raises(ValueError, match=r"level 0: .* 2 x 2 cells"):
        AtssMatcher().match_grid(torch.zeros(1, 1, 4), [torch.zeros(7, 4)], [(2, 2)])
