"""The one-pass loss against the definition.

Shapes: N images, A anchors a cell, K classes, R anchors in all.
"""

from itertools import product

import pytest
import torch
from loss_cases import ALPHAS, GAMMAS, KINDS, by_definition, channels_last, check, make_case
from torch.utils._python_dispatch import TorchDispatchMode

from retina_ray.ops import focal, focal_blocks, focal_compiled
from retina_ray.ops.focal import pyramid_class_loss, pyramid_focal_loss

FOCAL = {"num_classes": 5, "alpha": 0.25, "gamma": 2.0}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(params=[False, True], ids=["blocks", "compiled form"])
def compiled(request, monkeypatch):
    """Also what is compiled, of levels of any size, but without the compiler."""
    if request.param:
        monkeypatch.setattr(focal, "SMALLEST_COMPILED", 0)
        monkeypatch.setattr(focal_compiled, "_compile", lambda: focal_compiled._whole_level)
    return request.param


def gradients(loss, logits):
    return torch.autograd.grad(loss, logits)


@every_kind
def test_equals_the_definition(kind, compiled):
    for num_classes, alpha, gamma in product((5, 1), ALPHAS, GAMMAS):
        steep = kind == "quality_focal" and 0 < gamma < 1
        logits, labels, quality = make_case(num_classes=num_classes, quality_apart=steep)
        options = {"num_classes": num_classes, "kind": kind, "alpha": alpha, "gamma": gamma}
        expected = by_definition(logits, labels, quality, **options)
        given = channels_last(logits) if num_classes > 1 else logits
        for levels, autocast in ((logits, False), (given, True)):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss = pyramid_class_loss(levels, labels, quality, compiled=compiled, **options)
            assert loss.dtype == torch.float32
            check(loss, levels, expected, case=f"{options}, {autocast=}")


@every_kind
def test_bfloat16_logits_lose_only_the_rounding_of_their_gradient(kind, compiled):
    logits, labels, quality = make_case(dtype=torch.bfloat16, quality_apart=True)
    for gamma in GAMMAS:
        options = {"num_classes": 5, "kind": kind, "alpha": 0.75, "gamma": gamma}
        loss = pyramid_class_loss(logits, labels, quality, compiled=compiled, **options)
        assert loss.dtype == torch.float32
        # bfloat16 has 8 binary digits, so that rounding changes a number by up to 2**-8 of it.
        expected = by_definition(logits, labels, quality, **options)
        check(loss, logits, expected, rtol=2**-8 + 1e-6, case=options)


@every_kind
def test_gradcheck(kind, compiled):
    grids = ((1, 3), (1, 1))
    logits, labels, quality = make_case(1, 2, dtype=torch.float64, spread=2.0, grids=grids)
    labels[0, :6] = torch.tensor([0, 2, -1, 1, 0, 2])
    for alpha, gamma in product((-1, 0.25), (0, 0.5, 2)):
        options = {"num_classes": 2, "kind": kind, "alpha": alpha, "gamma": gamma}

        def loss(*levels, options=options):
            return pyramid_class_loss(levels, labels, quality, compiled=compiled, **options)

        assert loss(*logits).dtype == torch.float64
        assert torch.autograd.gradcheck(loss, logits), options


def test_blocks_and_memory_formats_give_the_same(monkeypatch):
    logits, labels, _ = make_case()
    expected = by_definition(logits, labels, **FOCAL)
    last = channels_last(logits)
    wide = [torch.cat((x, x), -1)[..., : x.shape[-1]] for x in logits]
    assert not any(levels[0].is_contiguous() for levels in (last, wide))
    for block in (1, 7, 40, 200, 10**6):
        monkeypatch.setattr(focal_blocks, "_BLOCK_CPU", block)
        for given, of in ((logits, logits), (last, last), (wide, logits)):
            check(pyramid_focal_loss(given, labels, num_classes=5), of, expected, case=block)


def test_the_number_of_threads_is_as_before():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        logits, labels, _ = make_case()
        pyramid_focal_loss(logits, labels, num_classes=5).backward()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_graph_can_be_walked_twice():
    logits, labels, _ = make_case()
    loss = pyramid_focal_loss(logits, labels, num_classes=5)
    first = [g.clone() for g in torch.autograd.grad(3 * loss, logits, retain_graph=True)]
    for a, b in zip(first, gradients(3 * loss, logits), strict=True):
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


@every_kind
def test_ignored_anchors_cost_nothing_but_do_not_hide_a_nan(kind, compiled):
    logits, labels, quality = make_case()
    options = {"num_classes": 5, "kind": kind, "compiled": compiled}
    loss = pyramid_class_loss(logits, torch.full_like(labels, -1), quality, **options)
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in gradients(loss, logits))
    labels[0, 0] = -1
    for bad in (float("nan"), float("inf")):
        broken = [x.detach().clone().requires_grad_() for x in logits]
        broken[0].data[0, 0, 0, 0] = bad
        loss = pyramid_class_loss(broken, labels, quality, **options)
        assert loss.isnan()
        first, *others = gradients(loss, broken)
        assert first.isnan().nonzero().tolist() == [[0, 0, 0, 0]]
        assert not any(other.isnan().any() for other in others)


def test_float16_keeps_the_small_gradients_that_loss_scaling_saves():
    logits = torch.full((1, 1, 1, 1), -9.0, dtype=torch.float16, requires_grad=True)
    wide = logits.detach().float().requires_grad_()
    (ours,), (theirs,) = (
        gradients(2.0**24 * pyramid_focal_loss([x], torch.tensor([[1]]), num_classes=1), x)
        for x in (logits, wide)
    )
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-3, atol=0)


def test_no_images_and_no_cells():
    logits = [torch.zeros(0, 6, 2, 2, requires_grad=True), torch.zeros(0, 6, 0, 2)]
    loss = pyramid_focal_loss(logits, torch.zeros(0, 12, dtype=torch.int64), num_classes=2)
    loss.backward()
    assert loss.item() == 0
    assert logits[0].grad.shape == (0, 6, 2, 2)


def test_no_gradient_is_kept_when_none_is_wanted():
    logits, labels, _ = make_case()
    with torch.no_grad():
        without = pyramid_focal_loss(logits, labels, num_classes=5)
    assert not without.requires_grad
    assert torch.equal(without, pyramid_focal_loss(logits, labels, num_classes=5))


@every_kind
def test_nothing_depends_on_values_that_a_gpu_would_have_to_send(kind, compiled):
    # Meta tensors have no values, so anything that looked at one would raise here.
    logits = [torch.zeros(2, 15, 4, 4, device="meta", requires_grad=True)]
    labels = torch.zeros(2, 48, dtype=torch.int64, device="meta")
    quality = torch.zeros(2, 48, device="meta")
    scalars = torch.empty((), device="meta"), torch.empty(1, device="meta")
    for alpha, gamma in ((0.25, 2.0), scalars):
        options = {"kind": kind, "alpha": alpha, "gamma": gamma, "compiled": compiled}
        pyramid_class_loss(logits, labels, quality, num_classes=5, **options).backward()
        assert logits[0].grad.shape == (2, 15, 4, 4)


class LargeTensors(TorchDispatchMode):
    """Counts the results of 15 * 64 * 64 elements and more that are neither views nor in place."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() >= 15 * 64 * 64:
            given = [a.data_ptr() for a in args if isinstance(a, torch.Tensor)]
            self.number += out.data_ptr() not in given
        return out


def test_no_temporary_of_the_size_of_the_logits(monkeypatch):
    """The gradient alone; without a gradient, nothing."""
    monkeypatch.setattr(focal_blocks, "_BLOCK_CPU", 4096)
    logits = [torch.randn(2, 15, 64, 64, requires_grad=True)]
    labels = torch.full((2, 3 * 64 * 64), 5)
    labels[0, :7] = 1
    labels[1, 7:9] = -1
    with LargeTensors() as large:
        gradients(pyramid_focal_loss(logits, labels, num_classes=5), logits)
    assert large.number == 1
    with torch.no_grad(), LargeTensors() as large:
        pyramid_focal_loss(logits, labels, num_classes=5)
    assert large.number == 0


@pytest.mark.parametrize("gamma", [0.5, 2, 5])
@pytest.mark.parametrize("label", [0, 1])
def test_gradients_of_large_logits_are_exact(label, gamma, compiled):
    # Where p rounds to 1, 1 - p must not come from a subtraction, as softplus multiplies its error;
    # nor log(p), as gamma does.
    logits = [torch.linspace(-15, 15, 301).view(1, 1, 1, 301).requires_grad_()]
    labels = torch.full((1, 301), label)
    options = {"num_classes": 1, "alpha": 0.25, "gamma": gamma}
    (ours,) = gradients(pyramid_focal_loss(logits, labels, compiled=compiled, **options), logits)
    _, (theirs,) = by_definition(logits, labels, **options)
    # Compiled, p**gamma is an exponential, whose relative error grows as it vanishes.
    atol = 1e-9 if compiled else 1e-30
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=atol)


def test_the_quality_slope_of_large_logits_is_exact(compiled):
    # For a quality of 0 nothing cancels: p to the power of gamma times softplus.
    logits = [torch.linspace(8, 20, 301).view(1, 1, 1, 301).requires_grad_()]
    labels, quality = torch.zeros(1, 301, dtype=torch.int64), torch.zeros(1, 301)
    options = {"num_classes": 1, "kind": "quality_focal", "alpha": -1, "gamma": 5.0}
    loss = pyramid_class_loss(logits, labels, quality, compiled=compiled, **options)
    check(loss, logits, by_definition(logits, labels, quality, **options), rtol=3e-7)


def test_the_quality_gets_no_gradient():
    logits, labels, quality = make_case()
    quality.requires_grad_()
    pyramid_class_loss(logits, labels, quality, num_classes=5, kind="varifocal").backward()
    assert quality.grad is None


@every_kind
def test_a_tensor_of_one_number_is_that_number(kind, compiled):
    logits, labels, quality = make_case()
    options = {"num_classes": 5, "kind": kind, "compiled": compiled}
    wide = [x.detach().double().requires_grad_() for x in logits]
    kinds = [
        lambda value: torch.tensor(value, dtype=torch.float64),
        lambda value: torch.tensor([[value]], dtype=torch.bfloat16),
        lambda value: torch.nn.Parameter(torch.tensor([value])),
        lambda value: torch.tensor(int(value)),
    ]
    cases = [(kind_of, 1.0, 2.0) for kind_of in kinds]
    cases += [(torch.tensor, a, g) for a, g in ((0.25, 2.0), (-1.0, 1.3), (0.6, 0.0))]
    for (tensor, alpha, gamma), levels in product(cases, (logits, wide)):
        a, g = tensor(alpha), tensor(gamma)
        loss = pyramid_class_loss(levels, labels, quality, alpha=a, gamma=g, **options)
        number = pyramid_class_loss(levels, labels, quality, alpha=alpha, gamma=gamma, **options)
        assert (loss.dtype, loss.shape) == (levels[0].dtype, ())
        torch.testing.assert_close(loss, number, rtol=1e-6, atol=0)
        for x, y in zip(gradients(loss, levels), gradients(number, levels), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)
        assert a.grad is None


def test_what_does_not_fit_is_refused():
    logits, labels, _ = make_case()
    for found, classes, fault in (
        (labels, 4, r"level 0.*K = 4"),
        (labels[:, 1:], 5, r"labels: expected \(N, 144\)"),
        (labels[:1], 5, "2 images, the labels 1"),
    ):
        with pytest.raises(ValueError, match=fault):
            pyramid_focal_loss(logits, found, num_classes=classes)
    for kind, quality in product(KINDS[1:], (None, torch.rand(2, 5))):
        with pytest.raises(ValueError, match=f"quality: {kind}"):
            pyramid_class_loss(logits, labels, quality, num_classes=5, kind=kind)
    for name, shape in product(("alpha", "gamma"), ((2,), (0,), (1, 3))):
        with pytest.raises(ValueError, match=rf"{name}: .* shape \({shape[0]},"):
            pyramid_focal_loss(logits, labels, num_classes=5, **{name: torch.ones(shape)})
