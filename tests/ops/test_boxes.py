"""Shapes: M, R numbers of boxes, P pairs."""

import pytest
import torch
import torchvision
from box_cases import INF, NAN, random_boxes

from retina_ray.ops.boxes import (
    box_area,
    box_iou,
    clip_boxes,
    is_proper,
    paired_iou,
    paired_overlap,
)


def test_area_has_no_plus_one_and_is_zero_without_extent():
    boxes = torch.tensor([[0, 0, 1, 1], [2, 3, 6, 8], [5, 5, 5, 9], [6, 6, 4, 8], [4, 4, 2, 2]])
    assert box_area(boxes).tolist() == [1.0, 20.0, 0.0, 0.0, 0.0]


def test_iou_by_hand_and_as_torchvision():
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1]])
    b = torch.tensor([[1.0, 0, 3, 2], [0, 0, 2, 2], [2, 0, 4, 2], [5, 5, 6, 6], [0, 0, 1, 2]])
    expected = torch.tensor([[2 / 6, 1, 0, 0, 0.5], [0, 0.25, 0, 0, 0.5]])
    torch.testing.assert_close(box_iou(a, b), expected)
    a, b = random_boxes(20, 0), random_boxes(300, 1)
    kept = a.clone(), b.clone()
    assert torch.equal(box_iou(a, b), torchvision.ops.box_iou(a, b))
    assert torch.equal(a, kept[0])
    assert torch.equal(b, kept[1])


def test_iou_of_bad_boxes_is_zero():
    good = [0.0, 0, 10, 10]
    for bad in (
        [3.0, 3, 3, 3],
        [3, 3, 3, 8],
        [8, 8, 3, 3],
        [NAN, 0, 9, 9],
        [NAN] * 4,
        [0, 0, INF, INF],
        [-INF, -INF, INF, INF],
        [-3e38, -3e38, 3e38, 3e38],
    ):
        pair = torch.tensor([bad, good])
        assert box_iou(pair, pair).tolist() == [[0, 0], [0, 1]], bad


@pytest.mark.parametrize(("m", "r"), [(0, 3), (3, 0), (0, 0)])
def test_iou_of_nothing(m, r):
    assert box_iou(torch.zeros(m, 4), torch.zeros(r, 4)).shape == (m, r)


def test_iou_is_float32_for_half_precision_and_under_autocast():
    a, b = random_boxes(5, 0, spread=600).half(), random_boxes(6, 1, spread=600).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        iou = box_iou(a, b)
    assert iou.dtype == torch.float32
    assert torch.equal(iou, box_iou(a.float(), b.float()))
    assert box_iou(a.double(), b.double()).dtype == torch.float64


def test_paired_iou_is_the_diagonal_with_a_gradient():
    a, b = random_boxes(30, 4), random_boxes(30, 5)
    torch.testing.assert_close(paired_iou(a, b), box_iou(a, b).diagonal())
    a, b = a[:4].double().requires_grad_(), b[:4].double().requires_grad_()
    assert torch.autograd.gradcheck(paired_iou, (a, b))
    areas = paired_overlap(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 4, 3]]))
    assert [area.item() for area in areas] == [1, 9]


def test_paired_iou_of_boxes_without_area_has_finite_gradients():
    a = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [2, 2, 1, 1]], requires_grad=True)
    b = torch.tensor([[1.0, 1, 1, 1], [0, 0, 2, 2], [0, 0, 2, 2]], requires_grad=True)
    iou = paired_iou(a, b)
    assert iou.tolist() == [0, 0, 0]
    iou.sum().backward()
    assert torch.isfinite(a.grad).all()
    assert torch.isfinite(b.grad).all()


def test_proper_boxes():
    boxes = torch.tensor(
        [[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 1, 0], [2, 0, 1, 1], [NAN, 0, 1, 1], [0, 0, INF, 1]]
    )
    assert is_proper(boxes).tolist() == [True] + [False] * 5


@pytest.mark.parametrize("size", [(10, 20), torch.tensor([10, 20])])
def test_clip_takes_height_then_width(size):
    boxes = torch.tensor([[-5.0, -5, 25, 25], [1, 2, 3, 4], [30, 30, 40, 40], [NAN, 0, INF, 5]])
    clipped = clip_boxes(boxes, size)
    assert clipped[:3].tolist() == [[0, 0, 20, 10], [1, 2, 3, 4], [20, 10, 20, 10]]
    assert clipped[3, 0].isnan()
    assert clipped[3, 1:].tolist() == [0, 20, 5]
