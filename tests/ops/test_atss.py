"""Shapes: N images, M boxes, A anchors a cell, R anchors in all."""

import math
import statistics

import pytest
import torch
import torchvision
from matcher_cases import make_grid, owners

from retina_ray.ops import atss as atss_module
from retina_ray.ops.anchors import AnchorGenerator
from retina_ray.ops.atss import AtssMatcher


def random_boxes(shape, seed, height_px=64.0, width_px=96.0):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, *shape, 2, generator=generator, dtype=torch.float64)
    scale = torch.tensor([width_px, height_px])
    return torch.cat((torch.minimum(a, b) * scale, torch.maximum(a, b) * scale), -1)


def algorithm_1(boxes, anchors, grids, k):
    """The paper's algorithm 1, a box after the other, in plain Python: {anchor: box}."""
    table = torchvision.ops.box_iou(boxes, torch.cat(anchors)).tolist()
    centers = [((level[:, :2] + level[:, 2:]) / 2).tolist() for level in anchors]
    owner, flat = {}, [center for level in centers for center in level]
    for g, box in enumerate(boxes.tolist()):
        center = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        candidates, first = [], 0
        for level, (height, width) in zip(centers, grids, strict=True):
            distances = [(math.dist(c, center), first + row) for row, c in enumerate(level)]
            nearest = sorted(distances)[: k * (len(level) // (height * width))]
            candidates += [row for _, row in nearest]
            first += len(level)
        overlaps = [table[g][row] for row in candidates]
        threshold = statistics.mean(overlaps) + statistics.stdev(overlaps)
        for row, overlap in zip(candidates, overlaps, strict=True):
            x, y = flat[row]
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlap >= threshold and inside:
                if row not in owner or overlap > table[owner[row]][row]:
                    owner[row] = g
    return owner


@pytest.mark.parametrize(
    ("sizes", "ratios", "k"),
    [((1.0,), (1.0,), 9), ((1.0, 1.3), (0.5, 2.0), 4), ((0.5,), (1.0, 2.0), 1), ((1.0,), (1,), 17)],
)
def test_equals_the_papers_algorithm_step_by_step(sizes, ratios, k):
    offset = 0.5 * (k % 2)
    anchors, grids = make_grid(64, 96, sizes, ratios, offset)
    anchors, boxes = [x.double() for x in anchors], random_boxes((3, 7), 3)
    # Side by side within one cell, so that they compete for anchors.
    boxes[0, 3:] = boxes[0, 2] + torch.rand(4, 1, dtype=torch.float64)
    match = AtssMatcher(k).match_grid(boxes, anchors, grids)
    found = 0
    for i in range(3):
        expected = algorithm_1(boxes[i], anchors, grids, k)
        assert owners(match, i) == expected
        found += len(expected)
    assert found > 4
    assert not match.ignored.any()


# One row of four cells of 8 px with anchors of 16 x 16, and a box of just that size. IoUs of the
# cells at a distance of 0, 8, 16: 1, 128 / 384 = 1/3, 0.
BOX, MOVED = [-4.0, -4, 12, 12], [8.0, -4, 24, 12]
WIDE, EXACT = [2.0, -4, 22, 12], [4.0, -4, 20, 12]


@pytest.mark.parametrize(
    ("k", "boxes", "expected"),
    [
        # 1, 1/3, 0 have the mean 4/9 and the standard deviation 0.51; only the first is above.
        (3, [BOX], {0: 0}),
        # Moved by a cell and a half, two cells are at a distance of 4, with 192 / 320 = 0.6, the
        # other two at 12, with 64 / 448 = 1/7. Mean 0.371, deviation 0.264, 0.6 below 0.635.
        (4, [MOVED], {}),
        # Of the nearest three: mean 0.448, deviation 0.264, above 0.6 again.
        (3, [MOVED], {}),
        # Of two alone, the deviation is 0 and both are positive.
        (2, [MOVED], {1: 0, 2: 0}),
        # The box begins 0.02 and 0.005 px before the centre at 12, and beyond it: an anchor outside
        # the box is not positive, however well it overlaps.
        (1, [[11.98, 0, 14, 8]], {1: 0}),
        (1, [[11.995, 0, 12.5, 8]], {}),
        (1, [[12.02, 0, 12.5, 8]], {}),
        # A shared anchor goes to the larger overlap, and to the first of equals.
        (1, [WIDE, EXACT, EXACT], {1: 1}),
        (1, [EXACT, WIDE, EXACT], {1: 0}),
    ],
)
def test_by_hand(k, boxes, expected):
    anchors = AnchorGenerator([[16.0]], [1.0], [8])([(1, 4)])
    match = AtssMatcher(k).match_grid(torch.tensor([boxes]), anchors, [(1, 4)])
    assert owners(match) == expected


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
