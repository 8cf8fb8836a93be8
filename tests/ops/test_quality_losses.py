"""Quality focal loss and varifocal loss, against the equations written out and by hand."""

import math

import pytest
import torch

from retina_ray.ops.losses import quality_focal_loss, sigmoid_focal_loss, varifocal_loss

EXTREMES = [-1e30, -1e4, -200.0, -100.0, -88.0, -50, -1, 0, 1, 50, 88, 100, 200, 1e4, 1e30]


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def quality_focal_by_equation(x: float, y: float, beta: float) -> float:
    p = 1 / (1 + math.exp(-x))
    return -(abs(y - p) ** beta) * ((1 - y) * math.log(1 - p) + y * math.log(p))


def varifocal_by_equation(x: float, q: float, alpha: float, gamma: float) -> float:
    p = 1 / (1 + math.exp(-x))
    if q > 0:
        return -q * (q * math.log(p) + (1 - q) * math.log(1 - p))
    return -alpha * p**gamma * math.log(1 - p)


def random_case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets (30, 5): a third of the targets 0, some 1, the others between."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(30, 5, generator=generator, dtype=torch.float64) * 3
    targets = torch.rand(30, 5, generator=generator, dtype=torch.float64)
    targets[:10] = 0
    targets[10:13] = 1
    return logits, targets


class TestQualityFocal:
    def test_by_hand(self):
        # sigma 0.9, y 0.5: 0.4^2 * -(0.5 log 0.1 + 0.5 log 0.9).
        loss = quality_focal_loss(torch.tensor([logit(0.9)]), torch.tensor([0.5]), 2.0)
        expected = 0.16 * -0.5 * (math.log(0.1) + math.log(0.9))
        assert loss.item() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("beta", [0, 0.5, 1, 1.5, 2, 5])
    def test_equals_the_equation(self, beta):
        logits, targets = random_case()
        pairs = zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True)
        expected = sum(quality_focal_by_equation(x, y, beta) for x, y in pairs)
        assert quality_focal_loss(logits, targets, beta).item() == pytest.approx(expected)

    def test_beta_of_zero_is_cross_entropy_also_where_the_score_is_right(self):
        loss = quality_focal_loss(torch.zeros(1), torch.tensor([0.5]), 0.0)
        assert loss.item() == pytest.approx(math.log(2))

    @pytest.mark.parametrize("beta", [0, 0.5, 1, 2])
    def test_is_the_focal_loss_for_hard_targets(self, beta):
        logits, _ = random_case()
        logits.requires_grad_()
        targets = (torch.rand(30, 5) < 0.3).double()
        ours = quality_focal_loss(logits, targets, beta)
        focal = sigmoid_focal_loss(logits, targets, -1, beta)
        torch.testing.assert_close(ours, focal)
        (gradient,), (expected,) = (torch.autograd.grad(loss, logits) for loss in (ours, focal))
        torch.testing.assert_close(gradient, expected)

    @pytest.mark.parametrize("beta", [0, 0.5, 1, 2, 2.5])
    def test_gradient(self, beta):
        logits, targets = random_case(1)
        assert torch.autograd.gradcheck(
            lambda x: quality_focal_loss(x, targets, beta), logits.requires_grad_()
        )

    @pytest.mark.parametrize("beta", [0.01, 0.5, 1, 1.5, 2])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_score_that_is_right_has_no_loss_and_no_gradient(self, beta, dtype):
        logits = torch.tensor([0.0, -1.3, 2.0, -200.0, 200.0], dtype=dtype, requires_grad=True)
        loss = quality_focal_loss(logits, logits.detach().sigmoid(), beta)
        loss.backward()
        assert loss.item() == 0
        assert logits.grad.tolist() == [0] * 5


class TestVarifocal:
    def test_by_hand(self):
        # p 0.9: q 0.5 gives 0.5 * -(0.5 log 0.9 + 0.5 log 0.1); q 0 gives 0.75 * 0.81 * -log 0.1.
        logits = torch.tensor([logit(0.9), logit(0.9)])
        loss = varifocal_loss(logits, torch.tensor([0.5, 0.0]), 0.75, 2.0)
        expected = -0.25 * (math.log(0.9) + math.log(0.1)) - 0.75 * 0.81 * math.log(0.1)
        assert loss.item() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("gamma", [0, 0.5, 1, 2])
    @pytest.mark.parametrize("alpha", [0.0, 0.25, 0.75, 1.0])
    def test_equals_the_equation(self, alpha, gamma):
        logits, targets = random_case()
        pairs = zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True)
        expected = sum(varifocal_by_equation(x, q, alpha, gamma) for x, q in pairs)
        assert varifocal_loss(logits, targets, alpha, gamma).item() == pytest.approx(expected)

    def test_without_weighting_negatives_weigh_one(self):
        logits, targets = random_case()
        unweighted = varifocal_loss(logits, targets, -1, 2.0)
        torch.testing.assert_close(unweighted, varifocal_loss(logits, targets, 1.0, 2.0))
        # Without positives that is the focal loss of the background.
        zeros = torch.zeros_like(logits)
        torch.testing.assert_close(
            varifocal_loss(logits, zeros, -1, 1.5), sigmoid_focal_loss(logits, zeros, -1, 1.5)
        )

    @pytest.mark.parametrize("gamma", [0, 0.5, 1, 2])
    @pytest.mark.parametrize("alpha", [-1, 0.75])
    def test_gradient(self, alpha, gamma):
        logits, targets = random_case(1)
        assert torch.autograd.gradcheck(
            lambda x: varifocal_loss(x, targets, alpha, gamma), logits.requires_grad_()
        )

    def test_positives_are_not_focused(self):
        # Its gradient is q * (p - q), whatever gamma.
        logits = torch.tensor([logit(0.8)], requires_grad=True)
        varifocal_loss(logits, torch.tensor([0.6]), 0.75, 5.0).backward()
        assert logits.grad.item() == pytest.approx(0.6 * (0.8 - 0.6), rel=1e-5)


def by_parameter(function, parameters):
    return [
        pytest.param(lambda x, y, f=function, p=p: f(x, y, *p), id=f"{function.__name__}-{p}")
        for p in parameters
    ]


both = pytest.mark.parametrize(
    "loss",
    by_parameter(quality_focal_loss, [(0,), (0.01,), (0.5,), (1.0,), (2.0,)])
    + by_parameter(varifocal_loss, [(-1, 0), (0.75, 0.5), (0.75, 2.0)]),
)


@both
@pytest.mark.parametrize("target", [0.0, 1e-40, 1e-6, 0.3, 1.0 - 6e-8, 1.0])
def test_extreme_logits_are_finite(loss, target):
    logits = torch.tensor(EXTREMES, requires_grad=True)
    value = loss(logits, torch.full_like(logits, target))
    value.backward()
    assert torch.isfinite(value)
    assert value >= 0
    assert torch.isfinite(logits.grad).all()


@both
def test_targets_take_no_gradient(loss):
    logits, targets = random_case()
    logits.requires_grad_()
    targets.requires_grad_()
    value = loss(logits, targets)
    value.backward()
    assert targets.grad is None
    assert logits.grad is not None


@both
def test_half_precision_is_widened(loss):
    logits, targets = torch.randn(100).bfloat16(), torch.rand(100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, targets)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits.float(), targets))


@both
def test_empty(loss):
    logits = torch.zeros(0, 3, requires_grad=True)
    value = loss(logits, torch.zeros(0, 3))
    value.backward()
    assert value.item() == 0
    assert logits.grad.shape == (0, 3)
