import pytest
import torch
import torchvision
from box_cases import INF, NAN

from retina_ray.ops.rotated import batched_rotated_nms, rotated_from_aligned, rotated_iou
from retina_ray.ops.rotated import nms as rotated_nms


def crowded(count, seed, *, num_classes=3, spread=60.0):
    """Boxes that overlap a lot, with scores that often tie."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(count, 2, generator=generator) * spread
    sides = 5 + torch.rand(count, 2, generator=generator) * 40
    angles = torch.rand(count, 1, generator=generator) * 720 - 360
    boxes = torch.cat((centers, sides, angles), 1)
    boxes[::3] = boxes[0] + torch.randn(boxes[::3].shape, generator=generator)
    scores = torch.randint(1, 20, (count,), generator=generator) / 20
    labels = torch.randint(0, num_classes, (count,), generator=generator)
    return boxes, scores, labels


def greedy(boxes, scores, labels, threshold):
    """The definition, box by box."""
    iou = rotated_iou(boxes, boxes)
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i].item()):
        if all(labels[i] != labels[j] or iou[i, j] <= threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("num_classes", [1, 4])
def test_equals_the_greedy_definition(num_classes):
    boxes, scores, labels = crowded(150, 0, num_classes=num_classes)
    for threshold in (0.0, 0.1, 0.5, 0.8, 1.0):
        kept = batched_rotated_nms(boxes, scores, labels, threshold)
        assert kept.dtype == torch.int64
        assert kept.tolist() == greedy(boxes, scores, labels, threshold), threshold


def test_blocks_do_not_show(monkeypatch):
    boxes, scores, labels = crowded(40, 1, num_classes=3)
    expected = batched_rotated_nms(boxes, scores, labels, 0.3)
    for rows, pairs in ((1, 3), (7, 10), (64, 5)):
        monkeypatch.setattr(rotated_nms, "_ROWS_CPU", rows)
        monkeypatch.setattr(rotated_nms, "_PAIRS_CPU", pairs)
        assert torch.equal(batched_rotated_nms(boxes, scores, labels, 0.3), expected)


def test_equals_torchvision_on_aligned_boxes():
    boxes, scores, labels = crowded(300, 2)
    scores = scores + torch.linspace(0, 1e-3, 300)  # torchvision's order of ties is its own
    corners = torch.cat((boxes[:, :2] - boxes[:, 2:4] / 2, boxes[:, :2] + boxes[:, 2:4] / 2), 1)
    expected = torchvision.ops.batched_nms(corners, scores, labels, 0.5)
    rotated = rotated_from_aligned(corners)
    assert torch.equal(batched_rotated_nms(rotated, scores, labels, 0.5), expected)


def test_by_hand():
    cross = [[50.0, 50, 40, 10, 0], [50, 50, 40, 10, 90], [50, 50, 10, 40, 0]]
    scores, one = torch.tensor([0.7, 0.9, 0.8]), torch.zeros(3, dtype=torch.int64)
    # The second and the third are one rectangle; the arms of the cross share 100 of 700 pixels.
    assert batched_rotated_nms(torch.tensor(cross), scores, one, 0.5).tolist() == [1, 0]
    assert batched_rotated_nms(torch.tensor(cross), scores, one, 0.1).tolist() == [1]
    labels = torch.tensor([3, 3, 0])
    assert batched_rotated_nms(torch.tensor(cross), scores, labels, 0.1).tolist() == [1, 2]


def test_bad_boxes_suppress_nothing():
    good = [5.0, 5, 10, 10, 0]
    bad = [
        [NAN] * 5,
        [5, 5, 10, 10, NAN],
        [5, 5, INF, INF, 0],
        [5, 5, -10, -10, 0],
        [5, 5, 0, 9, 0],
    ]
    boxes = torch.tensor([*bad, good, good])
    labels = torch.zeros(7, dtype=torch.int64)
    kept = batched_rotated_nms(boxes, torch.linspace(1, 0.4, 7), labels, 0.0)
    assert kept.tolist() == [0, 1, 2, 3, 4, 5]


def test_thin_boxes_far_from_the_origin():
    thin = [[3000.0, 3000, 1e-3, 1e-3, 10], [3000, 3000, 1e-3, 1e-3, 10]]
    labels = torch.zeros(2, dtype=torch.int64)
    assert batched_rotated_nms(torch.tensor(thin), torch.ones(2), labels, 0.9).tolist() == [0]


def test_few_boxes_and_half_precision():
    boxes, scores, labels = crowded(60, 4)
    for count in (0, 1):
        kept = batched_rotated_nms(boxes[:count], scores[:count], labels[:count], 0.5)
        assert kept.tolist() == list(range(count))
    half = batched_rotated_nms(boxes.half(), scores, labels, 0.5)
    assert torch.equal(half, batched_rotated_nms(boxes.half().float(), scores, labels, 0.5))
