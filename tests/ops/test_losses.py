"""The definitions, against the papers' equations in Python and against torchvision's.

Shapes: P pairs.
"""

import math
from functools import partial

import pytest
import torch
import torchvision
from box_cases import random_boxes

from retina_ray.ops.losses import (
    ciou_loss,
    diou_loss,
    giou_loss,
    quality_focal_loss,
    sigmoid_focal_loss,
    smooth_l1_loss,
    varifocal_loss,
)

EXTREMES = [-1e30, -1e4, -200.0, -100.0, -88.0, -50, -1, 0, 1, 50, 88, 100, 200, 1e4, 1e30]
GAMMAS = (0, 0.5, 1, 2, 5)


def random_case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets (30, 5): a third of the targets 0, some 1, the others between."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(30, 5, generator=generator, dtype=torch.float64) * 3
    targets = torch.rand(30, 5, generator=generator, dtype=torch.float64)
    targets[:10] = 0
    targets[10:13] = 1
    return logits.requires_grad_(), targets


def assert_same(ours, theirs, leaf, **tolerance):
    """Value and gradient."""
    torch.testing.assert_close(ours, theirs, **tolerance)
    (gradient,), (expected,) = (torch.autograd.grad(x, leaf) for x in (ours, theirs))
    torch.testing.assert_close(gradient, expected, **tolerance)


def assert_wide_and_of_nothing_0(loss, pred, target):
    """Computed in float32 under autocast; without rows 0, with a gradient."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(pred, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(pred.float(), target))
    empty = torch.zeros_like(target[:0]).requires_grad_()
    value = loss(empty, target[:0])
    value.backward()
    assert value.item() == 0
    assert empty.grad.shape == empty.shape


def by_parameter(function, parameters):
    return [
        pytest.param(lambda x, y, p=p: function(x, y, *p), id=f"{function.__name__}-{p}")
        for p in parameters
    ]


every_class_loss = pytest.mark.parametrize(
    "loss",
    [
        *by_parameter(sigmoid_focal_loss, [(-1, 0), (0.25, 0.5), (0.25, 5.0)]),
        *by_parameter(quality_focal_loss, [(0,), (0.01,), (0.5,), (1.0,), (2.0,)]),
        *by_parameter(varifocal_loss, [(-1, 0), (0.75, 0.5), (0.75, 2.0)]),
    ],
)


@every_class_loss
def test_extreme_logits_are_finite(loss, request):
    is_focal = "sigmoid" in request.node.callspec.id
    for target in (0.0, 1.0) if is_focal else (0.0, 1e-40, 1e-6, 0.3, 1.0 - 6e-8, 1.0):
        logits = torch.tensor(EXTREMES, requires_grad=True)
        value = loss(logits, torch.full_like(logits, target))
        value.backward()
        assert 0 <= value < math.inf, target
        assert torch.isfinite(logits.grad).all(), target


@every_class_loss
def test_half_precision_is_widened_and_nothing_costs_nothing(loss):
    logits, targets = torch.randn(100, 3).bfloat16(), torch.rand(100, 3).round()
    assert_wide_and_of_nothing_0(loss, logits, targets)


class TestFocal:
    @pytest.mark.parametrize("gamma", GAMMAS)
    @pytest.mark.parametrize("alpha", [-1, 0.0, 0.25, 1.0])
    def test_equals_torchvision(self, alpha, gamma):
        logits, targets = random_case()
        targets = targets.round()
        ours = sigmoid_focal_loss(logits, targets, alpha, gamma)
        theirs = torchvision.ops.sigmoid_focal_loss(logits, targets, alpha, gamma, "sum")
        assert_same(ours, theirs, logits)

    def test_tensors_as_parameters(self):
        logits, targets = torch.randn(6, 3), (torch.rand(6, 3) < 0.5).float()
        alphas, gammas = (0.25, -1.0, 0.9), (2.0, 0.0, 0.5)
        expected = sum(
            sigmoid_focal_loss(logits[:, k], targets[:, k], alphas[k], gammas[k]) for k in range(3)
        )
        loss = sigmoid_focal_loss(logits, targets, torch.tensor(alphas), torch.tensor(gammas))
        torch.testing.assert_close(loss, expected)


def quality_focal_by_equation(x: float, y: float, beta: float) -> float:
    p = 1 / (1 + math.exp(-x))
    return -(abs(y - p) ** beta) * ((1 - y) * math.log(1 - p) + y * math.log(p))


def varifocal_by_equation(x: float, q: float, alpha: float, gamma: float) -> float:
    p = 1 / (1 + math.exp(-x))
    if q > 0:
        return -q * (q * math.log(p) + (1 - q) * math.log(1 - p))
    return -(1 if alpha < 0 else alpha) * p**gamma * math.log(1 - p)


@pytest.mark.parametrize(
    ("function", "equation", "parameters"),
    [
        *((quality_focal_loss, quality_focal_by_equation, (b,)) for b in (0, 0.5, 1, 1.5, 2, 5)),
        *(
            (varifocal_loss, varifocal_by_equation, (alpha, gamma))
            for alpha in (-1, 0.0, 0.25, 1.0)
            for gamma in (0, 0.5, 2)
        ),
    ],
)
def test_quality_losses_equal_their_equations(function, equation, parameters):
    logits, targets = random_case()
    pairs = zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True)
    expected = sum(equation(x, y, *parameters) for x, y in pairs)
    assert function(logits, targets, *parameters).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(lambda x: function(x, targets, *parameters), logits)
    targets.requires_grad_()
    function(logits, targets, *parameters).backward()
    assert targets.grad is None


@pytest.mark.parametrize("beta", [0.01, 0.5, 1, 1.5, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quality_focal_of_a_score_that_is_right_has_no_loss_and_no_gradient(beta, dtype):
    logits = torch.tensor([0.0, -1.3, 2.0, -200.0, 200.0], dtype=dtype, requires_grad=True)
    loss = quality_focal_loss(logits, logits.detach().sigmoid(), beta)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.tolist() == [0] * 5


class TestSmoothL1:
    def test_beta_of_zero_is_l1_and_has_a_gradient_at_zero(self):
        pred = torch.tensor([0.0, 3.0, -2.0], requires_grad=True)
        loss = smooth_l1_loss(pred, torch.zeros(3), beta=0.0)
        loss.backward()
        assert loss.item() == 5
        assert pred.grad.tolist() == [0, 1, -1]

    def test_half_precision(self):
        wide = smooth_l1_loss(torch.full((3,), 300.0).bfloat16(), torch.full((3,), 1.0), 0.1)
        assert wide.item() == pytest.approx(3 * 298.95)


BOX_LOSSES = {
    giou_loss: torchvision.ops.generalized_box_iou_loss,
    diou_loss: torchvision.ops.distance_box_iou_loss,
    ciou_loss: torchvision.ops.complete_box_iou_loss,
}
boxes_of = partial(random_boxes, spread=60, side=50)


@pytest.mark.parametrize("loss", BOX_LOSSES, ids=lambda f: f.__name__)
class TestBoxLosses:
    def test_equals_torchvision(self, loss):
        pred, target = boxes_of(80, 0).double().requires_grad_(), boxes_of(80, 1).double()
        theirs = BOX_LOSSES[loss](pred, target, "sum")
        assert_same(loss(pred, target), theirs, pred, rtol=1e-5, atol=1e-9)
        assert loss(target, target).item() == pytest.approx(0, abs=1e-5)

    def test_boxes_without_area_are_finite(self, loss):
        bad = [[5.0, 5, 5, 5], [5, 5, 9, 5], [5, 5, 5, 9], [9, 9, 5, 5], [5, 5, 5 + 1e-6, 5 + 1e-6]]
        good = [[4.0, 4, 8, 8]] * len(bad)
        for pred, target in ((bad, good), (bad, bad), (good, bad)):
            for shift in (0.0, 1.0, 1e4):
                leaf = torch.tensor(pred, requires_grad=True)
                value = loss(leaf, torch.tensor(target) + shift)
                value.backward()
                assert torch.isfinite(value)
                assert torch.isfinite(leaf.grad).all()

    def test_half_precision_and_empty(self, loss):
        pred, target = (boxes_of(9, 4) * 10).bfloat16(), boxes_of(9, 5) * 10
        assert_wide_and_of_nothing_0(loss, pred, target)
