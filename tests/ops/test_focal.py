"""The one-pass loss against the definition.

Shapes: N images, A anchors a cell, K classes, R anchors in all.
"""

import pytest
import torch
import torch.nn.functional as F

from retina_ray.ops import focal
from retina_ray.ops.focal import pyramid_focal_loss
from retina_ray.ops.losses import sigmoid_focal_loss

NUM_ANCHORS = 3
GRIDS = ((5, 7), (3, 4), (1, 1))


def make_case(num_images=2, num_classes=5, seed=0, dtype=torch.float32, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = [
        (torch.randn(num_images, NUM_ANCHORS * num_classes, h, w, generator=generator) * spread)
        .to(dtype)
        .requires_grad_()
        for h, w in GRIDS
    ]
    num_rows = sum(NUM_ANCHORS * h * w for h, w in GRIDS)
    kind = torch.rand(num_images, num_rows, generator=generator)
    positive = torch.randint(num_classes, (num_images, num_rows), generator=generator)
    labels = torch.full((num_images, num_rows), num_classes)
    labels = torch.where(kind < 0.2, positive, labels)
    labels[kind > 0.8] = -1
    return logits, labels


def dense(logits, labels, num_classes, alpha, gamma):
    """The definition: rows of anchors in order, one-hot targets, ignored rows left out."""
    rows = []
    for level in logits:
        n, _, h, w = level.shape
        by_anchor = level.double().reshape(n, -1, num_classes, h, w).permute(0, 3, 4, 1, 2)
        rows.append(by_anchor.reshape(n, -1, num_classes))
    rows = torch.cat(rows, 1)
    kept = labels >= 0
    one_hot = F.one_hot(labels[kept], num_classes + 1)[:, :-1]
    return sigmoid_focal_loss(rows[kept], one_hot, alpha, gamma)


def gradients(loss, logits):
    return torch.autograd.grad(loss, logits)


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 5])
@pytest.mark.parametrize("alpha", [-1, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("num_classes", [1, 5])
def test_equals_the_definition(alpha, gamma, num_classes):
    logits, labels = make_case(num_classes=num_classes)
    expected = dense(logits, labels, num_classes, alpha, gamma)
    loss = pyramid_focal_loss(logits, labels, num_classes=num_classes, alpha=alpha, gamma=gamma)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(gradients(loss, logits), gradients(expected, logits), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("block", [1, 7, 40, 200, 10**6])
@pytest.mark.parametrize("channels_last", [False, True])
def test_blocks_and_memory_formats_give_the_same(monkeypatch, block, channels_last):
    logits, labels = make_case()
    expected = dense(logits, labels, 5, 0.25, 2.0)
    expected_gradients = gradients(expected, logits)
    monkeypatch.setattr(focal, "_BLOCK_CPU", block)
    if channels_last:
        logits = [
            x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
            for x in logits
        ]
        assert not logits[0].is_contiguous()
    loss = pyramid_focal_loss(logits, labels, num_classes=5)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(gradients(loss, logits), expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-6)


def test_logits_in_no_standard_format():
    logits, labels = make_case()
    wide = [torch.cat((x, x), -1)[..., : x.shape[-1]] for x in logits]
    assert not wide[0].is_contiguous()
    loss = pyramid_focal_loss(wide, labels, num_classes=5)
    expected = dense(logits, labels, 5, 0.25, 2.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(gradients(loss, logits), gradients(expected, logits), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradcheck(gamma):
    logits, labels = make_case(num_images=1, num_classes=2, dtype=torch.float64, spread=2.0)

    def loss(*levels):
        return pyramid_focal_loss(levels, labels, num_classes=2, alpha=0.3, gamma=gamma)

    assert loss(*logits).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, logits)


def test_a_graph_can_be_walked_twice():
    logits, labels = make_case()
    loss = pyramid_focal_loss(logits, labels, num_classes=5)
    first = [g.clone() for g in torch.autograd.grad(3 * loss, logits, retain_graph=True)]
    second = torch.autograd.grad(3 * loss, logits)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("gamma", [0, 0.5, 2, 5])
def test_extreme_logits(gamma):
    values = torch.tensor([-1e30, -1e4, -200.0, -50, 50, 200, 1e4, 1e30])
    logits = [values.view(1, 1, 1, 8).repeat(1, 1, 2, 1).requires_grad_()]
    labels = torch.tensor([[1] * 8 + [0] * 8])  # K = 1: background, then positive
    loss = pyramid_focal_loss(logits, labels, num_classes=1, gamma=gamma)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits[0].grad).all()


def test_a_confident_positive_costs_nothing():
    # As background it would cost 1e4, which must not leave rounding errors behind.
    logits = torch.full((1, 2, 1, 1), -30.0)
    logits[0, 0] = 1e4
    loss = pyramid_focal_loss([logits], torch.tensor([[0]]), num_classes=2)
    assert 0 <= loss.item() < 1e-12


def test_ignored_anchors_cost_nothing_but_do_not_hide_a_nan():
    logits, labels = make_case()
    loss = pyramid_focal_loss(logits, torch.full_like(labels, -1), num_classes=5)
    assert loss.item() == 0
    for gradient in gradients(loss, logits):
        assert not gradient.any()
    broken = [x.detach().clone() for x in logits]
    labels[0, 0] = -1
    broken[0][0, 0, 0, 0] = float("nan")
    assert pyramid_focal_loss(broken, labels, num_classes=5).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype):
    logits, labels = make_case(dtype=dtype, spread=1.0)
    wide = [x.detach().float().requires_grad_() for x in logits]
    scale = 1e-3  # like the division by the normaliser
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = pyramid_focal_loss(logits, labels, num_classes=5) * scale
    expected = pyramid_focal_loss(wide, labels, num_classes=5) * scale
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    for ours, theirs in zip(gradients(loss, logits), gradients(expected, wide), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), theirs, rtol=2e-2, atol=1e-6)


def test_float16_keeps_the_small_gradients_that_loss_scaling_saves():
    logits = torch.full((1, 1, 1, 1), -9.0, dtype=torch.float16, requires_grad=True)
    loss = pyramid_focal_loss([logits], torch.tensor([[1]]), num_classes=1)
    wide = torch.full((1, 1, 1, 1), -9.0, requires_grad=True)
    expected = pyramid_focal_loss([wide], torch.tensor([[1]]), num_classes=1)
    (ours,) = torch.autograd.grad(loss * 2.0**24, logits)
    (theirs,) = torch.autograd.grad(expected * 2.0**24, wide)
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-3, atol=0)


def test_no_boxes_gives_a_loss_and_a_gradient():
    logits, labels = make_case()
    loss = pyramid_focal_loss(logits, torch.full_like(labels, 5), num_classes=5)
    assert loss.item() > 0
    assert all(g.abs().min() > 0 for g in gradients(loss, logits))


def test_no_images_and_no_cells():
    logits = [torch.zeros(0, 6, 2, 2, requires_grad=True), torch.zeros(0, 6, 0, 2)]
    loss = pyramid_focal_loss(logits, torch.zeros(0, 12, dtype=torch.int64), num_classes=2)
    loss.backward()
    assert loss.item() == 0
    assert logits[0].grad.shape == (0, 6, 2, 2)


def test_no_gradient_is_kept_when_none_is_wanted():
    logits, labels = make_case()
    with torch.no_grad():
        without = pyramid_focal_loss(logits, labels, num_classes=5)
    assert not without.requires_grad
    assert torch.equal(without, pyramid_focal_loss(logits, labels, num_classes=5))


def test_nothing_depends_on_values_that_a_gpu_would_have_to_send():
    logits = [torch.zeros(2, 15, 4, 4, device="meta", requires_grad=True)]
    labels = torch.zeros(2, 48, dtype=torch.int64, device="meta")
    pyramid_focal_loss(logits, labels, num_classes=5).backward()
    assert logits[0].grad.shape == (2, 15, 4, 4)


def test_no_temporary_of_the_size_of_the_logits(monkeypatch):
    """Largest tensor made, in elements: the gradient once; without a gradient, a block."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Sizes(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.large = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.numel() >= 15 * 64 * 64:
                given = [a.data_ptr() for a in args if isinstance(a, torch.Tensor)]
                self.large += out.data_ptr() not in given  # neither a view nor in place
            return out

    monkeypatch.setattr(focal, "_BLOCK_CPU", 4096)
    logits = [torch.randn(2, 15, 64, 64, requires_grad=True)]
    labels = torch.full((2, 3 * 64 * 64), 5)
    labels[0, :7] = 1
    labels[1, 7:9] = -1
    with Sizes() as sizes:
        loss = pyramid_focal_loss(logits, labels, num_classes=5)
        torch.autograd.grad(loss, logits)
    assert sizes.large == 1
    with torch.no_grad(), Sizes() as sizes:
        pyramid_focal_loss(logits, labels, num_classes=5)
    assert sizes.large == 0


def test_shapes_are_checked():
    logits, labels = make_case()
    with pytest.raises(ValueError, match=r"level 0.*K = 4"):
        pyramid_focal_loss(logits, labels, num_classes=4)
    with pytest.raises(ValueError, match=r"expected \(N, 144\)"):
        pyramid_focal_loss(logits, labels[:, 1:], num_classes=5)
    with pytest.raises(ValueError, match="2 images, the labels 1"):
        pyramid_focal_loss(logits, labels[:1], num_classes=5)


@pytest.mark.parametrize("gamma", [0.5, 2, 5])
def test_gradients_of_confident_mistakes_are_exact(gamma):
    # Where p rounds to 1, 1 - p must not come from a subtraction: softplus multiplies its error.
    logits = torch.linspace(-15, 15, 301).view(1, 1, 1, 301).requires_grad_()
    wide = logits.detach().double().requires_grad_()
    labels = torch.ones(1, 301, dtype=torch.int64)
    (ours,) = gradients(pyramid_focal_loss([logits], labels, num_classes=1, gamma=gamma), [logits])
    (theirs,) = gradients(dense([wide], labels, 1, 0.25, gamma), [wide])
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-30)
