"""Shapes: N images, M boxes, R anchors."""

import pytest
import torch
from box_cases import INF, NAN, random_boxes
from largest_storage import LargestStorage

from retina_ray.ops import best_anchor as best_anchor_module
from retina_ray.ops.best_anchor import AnchorClaims, BestAnchorMatcher
from retina_ray.ops.boxes import box_iou

# Side by side, 10 x 10 each; the fourth is the third moved by 2.
ANCHORS = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10], [22, 0, 32, 10]])


def match_one(boxes, anchors=ANCHORS, ignore_iou=0.5):
    """Index, positive and ignored of one image as lists."""
    match = BestAnchorMatcher(ignore_iou).match_grid(
        torch.tensor(boxes)[None], [anchors], [(1, len(anchors))]
    )
    return [tensor[0].tolist() for tensor in vars(match).values()]


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


def test_by_hand():
    # The first box is anchor 2, and overlaps anchor 3 by 80 / 120. The second overlaps anchor 1 by
    # 30 / 170, which is its best, and no other one.
    index, positive, ignored = match_one([[20.0, 0, 30, 10], [13, 5, 20, 15]])
    assert positive == [False, True, True, False]
    assert (index[1], index[2]) == (1, 0)
    assert ignored == [False, False, False, True]
    *_, ignored = match_one([[20.0, 0, 30, 10]], ignore_iou=0.7)
    assert ignored == [False] * 4


def test_the_first_of_equals_is_taken():
    # Over anchors 0 and 1 alike.
    _, positive, ignored = match_one([[5.0, 0, 15, 10]], ignore_iou=1 / 3)
    assert positive == [True, False, False, False]
    assert ignored == [False, True, False, False]


def test_a_shared_anchor_goes_to_the_larger_overlap_and_to_the_first_of_equals():
    loose, exact = [0.0, 0, 10, 8], [0.0, 0, 10, 10]
    for boxes, winner in (([loose, exact, exact], 1), ([exact, loose, exact], 0)):
        index, positive, ignored = match_one(boxes)
        assert positive == [True, False, False, False]
        assert index[0] == winner
        assert not any(ignored)


@pytest.mark.parametrize("ignore_iou", [0.0, 0.5])
def test_no_overlap_is_background_whatever_the_threshold(ignore_iou):
    _, positive, ignored = match_one([[500.0, 0, 510, 10]], ignore_iou=ignore_iou)
    assert not any(positive)
    assert not any(ignored)
    _, positive, ignored = match_one([[1.0, 0, 9, 10]], ignore_iou=ignore_iou)
    assert positive == [True, False, False, False]
    assert not any(ignored)


@pytest.mark.parametrize("ignore_iou", [0.2, 0.5])
def test_equals_the_algorithm_step_by_step(ignore_iou):
    anchors, boxes = random_boxes(60, 0), random_boxes((8, 25), 100)
    match = BestAnchorMatcher(ignore_iou).match_grid(
        boxes, anchors.split([40, 20]), [(5, 8), (5, 4)]
    )
    for i in range(8):
        owner, ignored = algorithm(boxes[i], anchors, ignore_iou)
        rows = match.positive[i].nonzero().flatten().tolist()
        assert {row: int(match.index[i, row]) for row in rows} == owner
        assert set(match.ignored[i].nonzero().flatten().tolist()) == ignored


def test_blocks_and_padding_change_nothing(monkeypatch):
    anchors = random_boxes(60, 7)
    boxes = random_boxes((3, 9), 8)
    boxes[0, 4:] = 0  # padding
    boxes[1] = 0  # an image without boxes
    boxes[2, 8] = boxes[2, 3]  # equal boxes: the first one wins, in another block too
    matcher = BestAnchorMatcher()
    whole = matcher.match_grid(boxes, [anchors], [(6, 10)])
    for block in (1, 130, 400):
        monkeypatch.setattr(best_anchor_module, "_BLOCK_CPU", block)
        # What a GPU does: several images at once, without looking at the padding.
        together = matcher._match(boxes, anchors)
        for match in (matcher.match_grid(boxes, [anchors], [(6, 10)]), together):
            for ours, expected in zip(vars(match).values(), vars(whole).values(), strict=True):
                assert torch.equal(ours, expected)
    assert whole.positive[0].sum() == 4
    assert not whole.positive[1].any()
    assert 8 not in whole.index[2]


def test_a_nan_or_a_box_without_extent_matches_nothing():
    bad = [[NAN, 0, 5, 5], [5, 5, 5, 9], [9, 9, 5, 5], [-INF, 0, INF, 10], [0, 0, 0, 0]]
    _, positive, ignored = match_one(bad)
    assert not any(positive)
    assert not any(ignored)
    _, positive, _ = match_one([bad[0], [0.0, 0, 10, 10]])
    assert positive == [True, False, False, False]


@pytest.mark.parametrize(("n", "m", "r"), [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)])
def test_nothing_to_match(n, m, r):
    match = BestAnchorMatcher().match_grid(torch.rand(n, m, 4), [torch.rand(r, 4)], [(1, r)])
    for tensor in vars(match).values():
        assert tensor.shape == (n, r)
        assert not tensor.any()
    assert (match.index.dtype, match.positive.dtype) == (torch.int64, torch.bool)


@pytest.mark.parametrize("m", [0, 5])
def test_nothing_depends_on_values_that_a_gpu_would_have_to_send(m):
    # Meta tensors have no values, so anything that looked at one would raise here.
    boxes = torch.zeros(3, m, 4, device="meta")
    anchors = [torch.zeros(r, 4, device="meta") for r in (48, 12)]
    match = BestAnchorMatcher().match_grid(boxes, anchors, [(4, 4), (2, 2)])
    assert all(tensor.shape == (3, 60) for tensor in vars(match).values())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_memory_is_bounded_whatever_the_number_of_boxes(device):
    # All IoUs of one image would take 23 MiB.
    anchors, boxes = random_boxes(20_000, 1).to(device), random_boxes((3, 300), 2).to(device)
    with LargestStorage() as largest:
        BestAnchorMatcher().match_grid(boxes, [anchors], [(100, 200)])
    # A block of 2**20 float32 on a CPU, where values can be seen; else of 2**24, as on a GPU.
    assert 0.5 < largest.mib <= (4 if device == "cpu" else 64), largest.name


def test_claims_in_parts_are_settled_as_at_once():
    generator = torch.Generator().manual_seed(0)
    anchors = torch.randint(20, (2, 60), generator=generator)
    boxes = torch.arange(15).repeat_interleave(4).expand(2, -1)
    iou = torch.randint(4, (2, 60), generator=generator) / 4  # many equal, some 0

    def settle(*sizes):
        claims = AnchorClaims(2, 20, dtype=iou.dtype, device=iou.device)
        for part in zip(*(x.split(sizes, 1) for x in (anchors, boxes, iou)), strict=True):
            claims.add(*part)
        return claims.result()

    index, claimed = settle(60)
    assert claimed.any()
    assert not claimed.all()
    for other in (settle(20, 40), settle(*[4] * 15)):
        assert torch.equal(other[0], index)
        assert torch.equal(other[1], claimed)
    for i in range(2):
        for row in range(20):
            of_row = [
                (-float(v), int(b))
                for a, b, v in zip(anchors[i], boxes[i], iou[i], strict=True)
                if a == row and v
            ]
            assert bool(claimed[i, row]) == bool(of_row)
            assert int(index[i, row]) == (min(of_row)[1] if of_row else 0)


@pytest.mark.parametrize("ignore_iou", [-0.1, 1.1])
def test_the_threshold_is_checked(ignore_iou):
    with pytest.raises(ValueError, match="ignore_iou"):
        BestAnchorMatcher(ignore_iou)
