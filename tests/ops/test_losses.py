"""Shapes: P pairs."""

import math

import pytest
import torch
import torchvision

from retina_ray.ops.losses import (
    ciou_loss,
    diou_loss,
    giou_loss,
    sigmoid_focal_loss,
    smooth_l1_loss,
)

BOX_LOSSES = {
    giou_loss: torchvision.ops.generalized_box_iou_loss,
    diou_loss: torchvision.ops.distance_box_iou_loss,
    ciou_loss: torchvision.ops.complete_box_iou_loss,
}
by_box_loss = pytest.mark.parametrize("loss", BOX_LOSSES, ids=lambda f: f.__name__)


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 60
    return torch.cat((corners, corners + 1 + torch.rand(count, 2, generator=generator) * 50), 1)


class TestFocal:
    def test_by_hand(self):
        # p = 0.5 everywhere: 0.25 * 0.25 * log 2 for the positive, 0.75 * 0.25 * log 2 else.
        loss = sigmoid_focal_loss(torch.zeros(2), torch.tensor([1.0, 0.0]), 0.25, 2.0)
        assert loss.item() == pytest.approx(0.25 * math.log(2))
        # A score of 0.9 for a positive, gamma 1, no alpha: 0.1 * -log 0.9.
        logit = torch.tensor([math.log(9.0)])
        loss = sigmoid_focal_loss(logit, torch.ones(1), -1, 1.0)
        assert loss.item() == pytest.approx(-0.1 * math.log(0.9), rel=1e-6)

    @pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 5])
    @pytest.mark.parametrize("alpha", [-1, 0.0, 0.25, 0.5, 0.75, 1.0])
    def test_equals_torchvision(self, alpha, gamma):
        torch.manual_seed(0)
        logits = (torch.randn(40, 7, dtype=torch.float64) * 3).requires_grad_()
        targets = (torch.rand(40, 7) < 0.2).double()
        ours = sigmoid_focal_loss(logits, targets, alpha, gamma)
        theirs = torchvision.ops.sigmoid_focal_loss(logits, targets, alpha, gamma, "sum")
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(
            torch.autograd.grad(ours, logits)[0], torch.autograd.grad(theirs, logits)[0]
        )

    def test_tensors_as_parameters(self):
        logits, targets = torch.randn(6, 3), (torch.rand(6, 3) < 0.5).float()
        expected = sum(
            sigmoid_focal_loss(logits[:, k], targets[:, k], alpha, gamma)
            for k, (alpha, gamma) in enumerate([(0.25, 2.0), (-1.0, 0.0), (0.9, 0.5)])
        )
        loss = sigmoid_focal_loss(
            logits, targets, torch.tensor([0.25, -1.0, 0.9]), torch.tensor([2.0, 0.0, 0.5])
        )
        torch.testing.assert_close(loss, expected)

    @pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 5])
    @pytest.mark.parametrize("alpha", [-1, 0.25])
    def test_extreme_logits_are_finite(self, alpha, gamma):
        extremes = torch.tensor([-1e30, -1e4, -200.0, -50, 0, 50, 200, 1e4, 1e30])
        logits = extremes.repeat(2).requires_grad_()
        targets = torch.cat((torch.zeros(9), torch.ones(9)))
        loss = sigmoid_focal_loss(logits, targets, alpha, gamma)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()

    def test_half_precision_is_widened(self):
        logits, targets = torch.randn(100).bfloat16(), torch.zeros(100)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = sigmoid_focal_loss(logits, targets)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, sigmoid_focal_loss(logits.float(), targets))

    def test_empty(self):
        logits = torch.zeros(0, 3, requires_grad=True)
        loss = sigmoid_focal_loss(logits, torch.zeros(0, 3))
        loss.backward()
        assert loss.item() == 0
        assert logits.grad.shape == (0, 3)


class TestSmoothL1:
    def test_by_hand(self):
        pred = torch.tensor([0.05, 0.1, 0.3, -2.0])
        # 0.5 * d^2 / 0.1 below 0.1, d - 0.05 from there on.
        loss = smooth_l1_loss(pred, torch.zeros(4), beta=0.1)
        assert loss.item() == pytest.approx(0.0125 + 0.05 + 0.25 + 1.95)

    def test_beta_of_zero_is_l1_and_has_a_gradient_at_zero(self):
        pred = torch.tensor([0.0, 3.0, -2.0], requires_grad=True)
        loss = smooth_l1_loss(pred, torch.zeros(3), beta=0.0)
        loss.backward()
        assert loss.item() == 5
        assert pred.grad.tolist() == [0, 1, -1]

    def test_empty_and_half_precision(self):
        pred = torch.zeros(0, 4, requires_grad=True)
        loss = smooth_l1_loss(pred, torch.zeros(0, 4), 0.1)
        loss.backward()
        assert loss.item() == 0
        wide = smooth_l1_loss(torch.full((3,), 300.0).bfloat16(), torch.full((3,), 1.0), 0.1)
        assert wide.item() == pytest.approx(3 * 298.95)


class TestBoxLosses:
    def test_by_hand(self):
        pred, target = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 4, 3]])
        # Intersection 1, union 9, enclosing 4 x 3; centres (1, 1) and (2.5, 2), diagonal 5.
        giou = 1 - 1 / 9 + (12 - 9) / 12
        diou = 1 - 1 / 9 + (1.5**2 + 1) / 25
        v = 4 / math.pi**2 * (math.atan(3 / 2) - math.atan(1)) ** 2
        ciou = diou + v * v / (1 - 1 / 9 + v)
        assert giou_loss(pred, target).item() == pytest.approx(giou)
        assert diou_loss(pred, target).item() == pytest.approx(diou)
        assert ciou_loss(pred, target).item() == pytest.approx(ciou)

    @by_box_loss
    def test_equals_torchvision(self, loss):
        pred = random_boxes(80, 0).double().requires_grad_()
        target = random_boxes(80, 1).double()
        ours, theirs = loss(pred, target), BOX_LOSSES[loss](pred, target, "sum")
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
        (gradient,), (expected,) = (torch.autograd.grad(x, pred) for x in (ours, theirs))
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-9)

    @by_box_loss
    def test_perfect_is_zero_and_the_sum_adds_up(self, loss):
        boxes = random_boxes(10, 2)
        assert loss(boxes, boxes).item() == pytest.approx(0, abs=1e-5)
        other = random_boxes(10, 3)
        one_by_one = sum(loss(boxes[i : i + 1], other[i : i + 1]) for i in range(10))
        torch.testing.assert_close(loss(boxes, other), one_by_one)

    @by_box_loss
    @pytest.mark.parametrize("shift", [0.0, 1.0, 1e4])
    def test_boxes_without_area_are_finite(self, loss, shift):
        bad = [[5.0, 5, 5, 5], [5, 5, 9, 5], [5, 5, 5, 9], [9, 9, 5, 5], [5, 5, 5 + 1e-6, 5 + 1e-6]]
        good = [[4.0, 4, 8, 8]] * len(bad)
        for pred, target in ((bad, good), (bad, bad), (good, bad)):
            pred = torch.tensor(pred, requires_grad=True)
            value = loss(pred, torch.tensor(target) + shift)
            value.backward()
            assert torch.isfinite(value)
            assert torch.isfinite(pred.grad).all()

    @by_box_loss
    def test_boxes_apart_still_pull(self, loss):
        pred = torch.tensor([[0.0, 0, 1, 1]], requires_grad=True)
        loss(pred, torch.tensor([[10.0, 0, 11, 1]])).backward()
        assert pred.grad[0, [0, 2]].sum() < 0  # moving to the right lowers the loss

    @by_box_loss
    def test_half_precision_and_empty(self, loss):
        pred, target = (random_boxes(9, 4) * 10).bfloat16(), random_boxes(9, 5) * 10
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(pred, target)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(pred.float(), target))
        empty = torch.zeros(0, 4, requires_grad=True)
        value = loss(empty, torch.zeros(0, 4))
        value.backward()
        assert value.item() == 0
        assert empty.grad.shape == (0, 4)
