"""The one-pass loss against the definition.

Shapes: N images, A anchors a cell, K classes, R anchors in all.
"""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from retina_ray.ops import focal
from retina_ray.ops.focal import pyramid_class_loss, pyramid_focal_loss
from retina_ray.ops.losses import quality_focal_loss, sigmoid_focal_loss, varifocal_loss

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


def test_the_number_of_threads_is_as_before():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        logits, labels = make_case()
        pyramid_focal_loss(logits, labels, num_classes=5).backward()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


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


def rows_of(logits, num_classes):
    """(N, A * K, H, W) a level to rows of anchors in order, (N, R, K) in float64."""
    rows = [x.double().unflatten(1, (-1, num_classes)).permute(0, 3, 4, 1, 2) for x in logits]
    return torch.cat([x.flatten(1, 3) for x in rows], 1)


def dense_quality(kind, logits, labels, quality, num_classes, alpha, gamma):
    """The definition of the losses with soft targets."""
    kept = labels >= 0
    one_hot = F.one_hot(labels[kept], num_classes + 1)[:, :-1]
    targets = one_hot * quality.double()[kept][:, None]
    rows = rows_of(logits, num_classes)[kept]
    if kind == "quality_focal":
        return quality_focal_loss(rows, targets, gamma)
    return varifocal_loss(rows, targets, alpha, gamma)


def make_quality(labels, seed=0):
    quality = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed))
    quality[:, ::5] = 0  # predicted beside the box
    return quality


KINDS = ["quality_focal", "varifocal"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [0, 0.5, 1, 1.3, 2, 5])
@pytest.mark.parametrize("alpha", [-1, 0.75])
@pytest.mark.parametrize("channels_last", [False, True])
def test_losses_with_quality_equal_their_definition(kind, alpha, gamma, channels_last):
    logits, labels = make_case()
    quality = make_quality(labels)
    expected = dense_quality(kind, logits, labels, quality, 5, alpha, gamma)
    expected_gradients = gradients(expected, logits)
    if channels_last:
        logits = [
            x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
            for x in logits
        ]
    loss = pyramid_class_loss(
        logits, labels, quality, num_classes=5, kind=kind, alpha=alpha, gamma=gamma
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(gradients(loss, logits), expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_gradcheck_with_quality(kind, gamma):
    logits, labels = make_case(num_images=1, num_classes=2, dtype=torch.float64, spread=2.0)
    quality = make_quality(labels)

    def loss(*levels):
        return pyramid_class_loss(
            levels, labels, quality, num_classes=2, kind=kind, alpha=0.7, gamma=gamma
        )

    assert torch.autograd.gradcheck(loss, logits)


def test_the_quality_gets_no_gradient():
    logits, labels = make_case()
    quality = make_quality(labels).requires_grad_()
    pyramid_class_loss(logits, labels, quality, num_classes=5, kind="varifocal").backward()
    assert quality.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_or_unfit_quality_is_refused(kind):
    logits, labels = make_case()
    for quality in (None, torch.rand(2, 5)):
        with pytest.raises(ValueError, match=f"quality: {kind} needs one for each label"):
            pyramid_class_loss(logits, labels, quality, num_classes=5, kind=kind)


@pytest.mark.parametrize("kind", ["focal", *KINDS])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (-1.0, 1.3), (0.6, 0.0)])
def test_numbers_and_tensors_give_the_same(kind, alpha, gamma):
    logits, labels = make_case()
    quality = make_quality(labels)
    options = {"num_classes": 5, "kind": kind}
    by_number = pyramid_class_loss(logits, labels, quality, alpha=alpha, gamma=gamma, **options)
    by_tensor = pyramid_class_loss(
        logits,
        labels,
        quality,
        alpha=torch.tensor(alpha),
        gamma=torch.tensor(gamma),
        **options,
    )
    torch.testing.assert_close(by_tensor, by_number, rtol=1e-6, atol=0)
    for a, b in zip(gradients(by_tensor, logits), gradients(by_number, logits), strict=True):
        torch.testing.assert_close(a, b, rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_under_autocast_it_computes_as_outside(dtype):
    logits, labels = make_case(dtype=dtype)
    outside = pyramid_focal_loss(logits, labels, num_classes=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = pyramid_focal_loss(logits, labels, num_classes=5)
    assert inside.dtype == outside.dtype
    assert torch.equal(inside, outside)
    expected = dense(logits, labels, 5, 0.25, 2.0)
    assert inside.item() == pytest.approx(expected.item(), rel=1e-6)
    for a, b in zip(gradients(inside, logits), gradients(outside, logits), strict=True):
        assert torch.equal(a, b)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """Skips where torch.compile does not work at all, on a machine without a C++ compiler."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.rand(8))
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {type(error).__name__}")


def large_case(kind, height, channels_last=False):
    """A level beyond the size from which it is compiled, and a small one that is not."""
    generator = torch.Generator().manual_seed(height)
    shapes = [(2, NUM_ANCHORS * 5, height, 60), (2, NUM_ANCHORS * 5, 2, 2)]
    assert shapes[0][0] * shapes[0][1] * height * 60 >= focal._SMALLEST_COMPILED
    logits = [torch.randn(shape, generator=generator) * 3 - 1 for shape in shapes]
    if channels_last:
        logits = [x.contiguous(memory_format=torch.channels_last) for x in logits]
    num_rows = sum(NUM_ANCHORS * h * w for _, _, h, w in shapes)
    labels = torch.randint(-1, 6, (2, num_rows), generator=generator)
    quality = None if kind == "focal" else make_quality(labels)
    return [x.requires_grad_() for x in logits], labels, quality


@pytest.mark.parametrize("kind", ["focal", *KINDS])
@pytest.mark.parametrize("channels_last", [False, True])
def test_compiled_equals_uncompiled_for_all_values_and_sizes(compiler, kind, channels_last):
    torch.compiler.reset()
    counted = CompileCounterWithBackend("inductor")
    # Below 1, the slope of quality focal loss is as steep as one likes where a score comes close
    # to the quality, and with it the effect of rounding.
    exponents = (2.0, 1.3, 5.0) if kind == "quality_focal" else (2.0, 0.5, 5.0)
    whole_level = torch.compile(focal._whole_level, dynamic=True, fullgraph=True, backend=counted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(focal, "_compile", lambda: whole_level)
        for height in (40, 44, 53):
            logits, labels, quality = large_case(kind, height, channels_last)
            for alpha, gamma in zip((0.25, -1.0, 0.75), exponents, strict=True):
                options = {"num_classes": 5, "kind": kind, "alpha": alpha, "gamma": gamma}
                plain = pyramid_class_loss(logits, labels, quality, **options)
                loss = pyramid_class_loss(logits, labels, quality, compiled=True, **options)
                assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
                for a, b in zip(gradients(loss, logits), gradients(plain, logits), strict=True):
                    # Where a score comes close to the quality, a small gamma's slope is steep.
                    torch.testing.assert_close(a, b, rtol=1e-5, atol=5e-6)
    assert counted.frame_count == 1  # one for all values of alpha and gamma, and all sizes


def test_without_a_compiler_it_warns_once_and_computes(monkeypatch, caplog):
    class BackendCompilerFailedError(Exception):
        __module__ = "torch._dynamo.exc"

    def fail(*args):
        raise BackendCompilerFailedError("no g++")

    focal._warn_of_no_compiler.cache_clear()
    monkeypatch.setattr(focal, "_compile", lambda: fail)
    logits, labels, _ = large_case("focal", 40)
    for _ in range(2):
        loss = pyramid_focal_loss(logits, labels, num_classes=5, compiled=True)
        assert torch.equal(loss, pyramid_focal_loss(logits, labels, num_classes=5))
    assert len(caplog.records) == 1
    assert "no g++" in caplog.text
