"""Shapes: N images, A anchors a cell, K classes."""

import math
from dataclasses import replace

import pytest
import torch
from head_outputs import random_outputs
from torchvision.ops import nms

from retina_ray.ops.anchors import AnchorGenerator
from retina_ray.ops.box_coder import BoxCoder
from retina_ray.ops.postprocess import select_detections
from retina_ray.ops.rotated.coder import RotatedBoxCoder
from retina_ray.structures import HeadOutputs

NAN = float("nan")
NUM_ANCHORS, NUM_CLASSES = 6, 4
GRIDS = [(6, 8), (3, 4), (2, 2)]
ANCHORS = AnchorGenerator([(12, 18), (24, 36), (48, 60)], (0.5, 1, 2), (8, 16, 32))
SIZES = torch.tensor([[48, 64], [40, 50]])


def make_outputs(shift=-2.0, **options) -> HeadOutputs:
    made = random_outputs(ANCHORS, GRIDS, NUM_CLASSES, spreads=(1.5, 0.3), **options)
    logits, deltas = ([x.detach() for x in levels] for levels in (made.logits, made.deltas))
    return HeadOutputs([level + shift for level in logits], deltas, made.anchors)


def channels_last(outputs: HeadOutputs) -> HeadOutputs:
    logits, deltas = (
        [level.contiguous(memory_format=torch.channels_last) for level in levels]
        for levels in (outputs.logits, outputs.deltas)
    )
    return HeadOutputs(logits, deltas, outputs.anchors)


def select(outputs, sizes=SIZES, **options):
    return select_detections(outputs, sizes, coder=BoxCoder(), **options)


def rows(level: torch.Tensor, per_anchor: int) -> torch.Tensor:
    """(A * C, H, W) of one image to rows of anchors (H * W * A, C)."""
    _, h, w = level.shape
    return level.view(-1, per_anchor, h, w).permute(2, 3, 0, 1).reshape(-1, per_anchor)


def reference(outputs, i, size, threshold=0.05, topk=1000, nms_threshold=0.5, limit=100):
    """The same in the plainest way: all sigmoids, rows of anchors, one class at a time."""
    found = []
    for logits, deltas, anchors in zip(
        outputs.logits, outputs.deltas, outputs.anchors, strict=True
    ):
        num_classes = logits.shape[1] // NUM_ANCHORS
        scores = rows(logits[i], num_classes).sigmoid()
        boxes = BoxCoder().decode(rows(deltas[i], 4), anchors)
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, float(size[1]))
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, float(size[0]))
        pairs = [
            (scores[r, k].item(), boxes[r], k)
            for r in range(len(scores))
            for k in range(num_classes)
            if scores[r, k] > threshold
        ]
        found += sorted(pairs, key=lambda pair: -pair[0])[:topk]
    found = [p for p in found if p[1][2] > p[1][0] and p[1][3] > p[1][1]]
    kept = []
    for label in range(NUM_CLASSES):
        of_class = [p for p in found if p[2] == label]
        if of_class:
            best = nms(
                torch.stack([p[1] for p in of_class]),
                torch.tensor([p[0] for p in of_class]),
                nms_threshold,
            )
            kept += [of_class[j] for j in best]
    return sorted(kept, key=lambda pair: -pair[0])[:limit]


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"threshold": 0.4}, {"topk": 25}, {"limit": 7}, {"nms_threshold": 0.2}),
        {"threshold": 0.0, "nms_threshold": 1.0, "limit": 5000},
    ],
)
def test_equals_the_plain_way(options):
    outputs = make_outputs()
    names = {"threshold": "score_threshold", "topk": "topk_per_level", "limit": "max_detections"}
    keywords = {names.get(name, name): value for name, value in options.items()}
    results = select(outputs, **keywords)
    assert len(results) == 2
    for i, result in enumerate(results):
        expected = reference(outputs, i, SIZES[i], **options)
        assert len(result) == len(expected) > 0
        torch.testing.assert_close(result.scores, torch.tensor([p[0] for p in expected]))
        assert result.labels.tolist() == [p[2] for p in expected]
        torch.testing.assert_close(result.boxes, torch.stack([p[1] for p in expected]))


@pytest.mark.parametrize("topk", [1, 5, 25, 100])
def test_the_best_of_many_equal_scores(topk):
    outputs = make_outputs(seed=4, shift=1.0)
    for level in outputs.logits:
        level[level > 3] += 20  # scores of exactly 1, from logits that differ
        level.mul_(2).round_().div_(2)
        level[:, 0, 0, 0], level[:, 5, 0, 1], level[:, 9, 1] = NAN, math.inf, -math.inf
    expected = reference(outputs, 0, SIZES[0], topk=topk, nms_threshold=1, limit=5000)
    expected = [(score, label, box.tolist()) for score, box, label in expected]
    for given in (outputs, channels_last(outputs)):
        found = select(given, topk_per_level=topk, nms_threshold=1, max_detections=5000)[0]
        pairs = zip(found.scores.tolist(), found.labels.tolist(), found.boxes.tolist(), strict=True)
        ours, theirs = (
            sorted((round(s, 5), k, [round(x, 2) for x in box]) for s, k, box in rows)
            for rows in (pairs, expected)
        )
        assert ours == theirs != []


def one_anchor(logits, deltas=(0.0, 0.0, 0.0, 0.0), box=(10.0, 10, 30, 20)) -> HeadOutputs:
    """One image, one cell, one anchor."""
    return HeadOutputs(
        [torch.tensor(logits, dtype=torch.float32).view(1, -1, 1, 1)],
        [torch.tensor(deltas, dtype=torch.float32).view(1, 4, 1, 1)],
        [torch.tensor([box])],
    )


def one_row(logits, anchors) -> HeadOutputs:
    """One image, a row of cells of one anchor each; logits (cells,) or (classes, cells)."""
    num_cells, numbers = anchors.shape
    deltas = torch.zeros(1, numbers, 1, num_cells)
    return HeadOutputs([logits.view(1, -1, 1, num_cells)], [deltas], [anchors])


def select_one(outputs, size=(100, 200), **options):
    (result,) = select(outputs, torch.tensor([size]), **options)
    return result


def test_one_detection_by_hand():
    outputs = one_anchor([math.log(3), -9.0], (0.5, -0.5, math.log(2), 0.0))
    outputs.logits[0].requires_grad_()
    result = select_one(outputs)
    assert not result.scores.requires_grad
    torch.testing.assert_close(result.boxes, torch.tensor([[10.0, 5, 50, 15]]))
    assert result.scores.tolist() == pytest.approx([0.75])
    assert result.labels.tolist() == [0]
    assert result.boxes.dtype == result.scores.dtype == torch.float32
    assert result.labels.dtype == torch.int64


def test_the_threshold_is_exclusive():
    assert len(select_one(one_anchor([0.0]), score_threshold=0.5)) == 0
    assert len(select_one(one_anchor([1e-6]), score_threshold=0.5)) == 1
    assert len(select_one(one_anchor([40.0]), score_threshold=1.0)) == 0
    assert len(select_one(one_anchor([-80.0]), score_threshold=0.0)) == 1


def test_the_threshold_is_that_of_the_float32_score():
    for share in (0.05, 0.3, 0.5, 0.9, 0.999):
        near = math.log(share / (1 - share)) + torch.linspace(-3e-4, 3e-4, 301)
        expected = (near.sigmoid() > share).sum().item()
        result = select_one(one_anchor(near.tolist()), score_threshold=share, max_detections=1000)
        assert len(result) == expected, share
        assert 0 < expected < len(near)


def test_clipping_uses_height_for_y_and_drops_what_is_outside():
    inside = select_one(one_anchor([2.0], box=(-5.0, -5, 500, 500)), size=(30, 60))
    assert inside.boxes.tolist() == [[0, 0, 60, 30]]
    for outside in ((70.0, 5, 90, 20), (5.0, 40, 20, 50), (-9.0, -9, -1, -1), (60.0, 0, 61, 9)):
        assert len(select_one(one_anchor([2.0], box=outside), size=(30, 60))) == 0


def test_nan_never_becomes_a_detection():
    result = select_one(one_anchor([NAN, 1.0, NAN]), score_threshold=0.0)
    assert result.labels.tolist() == [1]
    assert len(select_one(one_anchor([2.0], (NAN, 0, 0, 0)))) == 0
    assert len(select_one(one_anchor([2.0], (0, 0, NAN, 0)))) == 0
    # Nor does it hide the other classes of its anchor.
    assert select_one(one_anchor([NAN, 2.0, -9.0])).labels.tolist() == [1]
    everything = make_outputs()
    for level in everything.logits:
        level.fill_(NAN)
    assert [len(result) for result in select(everything)] == [0, 0]


def test_infinite_values():
    huge = select_one(one_anchor([math.inf], (0, 0, 1e30, 1e30)), size=(30, 60))
    assert huge.scores.tolist() == [1]
    assert torch.isfinite(huge.boxes).all()
    assert len(select_one(one_anchor([-math.inf]), score_threshold=0.0)) == 0


def test_no_detections_and_no_images():
    outputs = make_outputs(shift=-60.0)
    for result in select(outputs):
        assert result.boxes.shape == (0, 4)
        assert result.scores.shape == result.labels.shape == (0,)
    none = make_outputs(num_images=0)
    assert select(none, torch.zeros(0, 2)) == []


def test_equal_scores_are_cut_in_a_fixed_order():
    outputs = make_outputs()
    equal = replace(outputs, logits=[torch.zeros_like(x) for x in outputs.logits])
    first, again, other_format = (
        select(given, topk_per_level=10, max_detections=20)
        for given in (equal, equal, channels_last(equal))
    )
    assert len(first[0]) > 0
    for other in (again, other_format):
        for a, b in zip(first, other, strict=True):
            assert torch.equal(a.boxes, b.boxes)
            assert torch.equal(a.labels, b.labels)
    # Ten pairs a level are the four classes of its first anchors, from the first level on.
    assert first[0].labels[:4].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_many_pairs_as_there_are_up_to_the_limit(dtype):
    # One class, one level, far more anchors above the threshold than are kept: rounding must not
    # put the least of the best below its own bound.
    num_cells, generator = 2491, torch.Generator().manual_seed(0)
    grid = torch.arange(num_cells, dtype=torch.float32)[:, None]
    anchors = grid * torch.tensor([20.0, 0, 20, 0]) + torch.tensor([0.0, 0, 10, 10])
    for _ in range(30):
        logits = (torch.randn(num_cells, generator=generator) * 1.5 - 2).to(dtype)
        size = (10, 20 * num_cells)
        found = select_one(one_row(logits, anchors), size, max_detections=5000)
        assert len(found) == min(1000, int((logits.double().sigmoid() > 0.05).sum()))


def test_equal_logits_have_equal_scores_and_keep_their_order():
    # 45 pairs: more than a vector register holds, and no multiple of it.
    anchors = torch.arange(9.0)[:, None] * torch.tensor([20.0, 0, 20, 0])
    anchors = anchors + torch.tensor([0.0, 0, 10, 10])
    for logit in torch.randn(60, generator=torch.Generator().manual_seed(1)).tolist():
        outputs = one_row(torch.full((5, 9), logit), anchors)
        found = select_one(outputs, (10, 200), score_threshold=0.0)
        assert found.labels.tolist() == [0, 1, 2, 3, 4] * 9
        assert len(set(found.scores.tolist())) == 1


def test_suppression_goes_on_until_enough_remain():
    # 41 boxes upon each other of high scores, then 9 apart: the first look, at 4 * 10, finds one.
    same = torch.tensor([[10.0, 10, 50, 50]]).repeat(41, 1)
    apart = torch.tensor([[100.0 * i, 0, 100.0 * i + 20, 20] for i in range(1, 10)])
    boxes = torch.cat((same, apart))
    outputs = one_row(torch.linspace(4, 1, 50), boxes)
    result = select_one(outputs, size=(1000, 1000), max_detections=10)
    torch.testing.assert_close(result.boxes, torch.cat((same[:1], apart)))
    assert len(select_one(outputs, size=(1000, 1000), max_detections=3)) == 3


def test_rotated_boxes_are_neither_clipped_nor_suppressed_as_if_aligned():
    # Two bars through one centre, at right angles: their enclosing boxes overlap, they hardly do.
    anchors = torch.tensor([[0.0, 20, 60, 6, 45], [0.0, 20, 60, 6, -45], [0.0, 20, 60, 7, 45]])
    outputs, coder = one_row(torch.tensor([3.0, 2, 1]), anchors), RotatedBoxCoder(symmetry_deg=90)
    (result,) = select_detections(outputs, torch.tensor([[40, 40]]), coder=coder)
    torch.testing.assert_close(result.boxes, anchors[:2])
    assert result.labels.tolist() == [0, 0]


def test_arguments_are_checked_all_at_once():
    limits = {"topk_per_level": 0, "max_detections": 0}
    with pytest.raises(ValueError, match="score_threshold") as error:
        select(make_outputs(), SIZES[:1], score_threshold=1.5, nms_threshold=-1, **limits)
    for name in ("nms_threshold", "topk_per_level", "max_detections", "2 images"):
        assert name in str(error.value)
