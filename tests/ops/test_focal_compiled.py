"""The one-pass loss through the compiler: the same digits, and how often it compiles.

What is compiled is compared with the definition in all its settings in test_focal.py, without the
compiler; here are a few of them with it.
"""

import pytest
import torch
from loss_cases import GAMMAS, KINDS, by_definition, channels_last, check, make_case
from torch._dynamo.testing import CompileCounterWithBackend

from retina_ray.ops import focal, focal_compiled
from retina_ray.ops.focal import pyramid_class_loss, pyramid_focal_loss

SIZES = ((2, 9), (3, 11), (1, 18), (4, 9))  # images, height
VALUES = (  # alpha, gamma; a sweep changes them
    (-1, 0),
    (0.25, 0.5),
    (torch.tensor(0.5), 1.0),
    (0.75, torch.tensor(2.0, dtype=torch.float64)),
    (torch.nn.Parameter(torch.tensor([0.25])), torch.tensor([5])),
)
assert tuple(float(gamma) for _, gamma in VALUES) == GAMMAS
LIMIT = next(name for name in focal_compiled._LIMIT_NAMES if hasattr(torch._dynamo.config, name))
FOCAL = {"num_classes": 5, "alpha": 0.25, "gamma": 2.0}


@pytest.fixture
def counted(monkeypatch):
    """Makes the loss of small levels compile by a backend, from nothing, and counts."""
    monkeypatch.setattr(focal, "SMALLEST_COMPILED", 1000)
    torch.compiler.reset()
    focal_compiled._warn_of_fallback.cache_clear()

    def compile_by(backend):
        counter = CompileCounterWithBackend(backend)
        whole_level = torch.compile(
            focal_compiled._whole_level, dynamic=True, fullgraph=True, backend=counter
        )
        monkeypatch.setattr(focal_compiled, "_compile", lambda: whole_level)
        return counter

    yield compile_by
    torch.compiler.reset()
    focal_compiled._warn_of_fallback.cache_clear()


def case_of(kind, num_images=2, height=9, dtype=torch.float32):
    """A level of the size from which it is compiled, and a small one that is not."""
    grids = ((height, 6), (2, 2))
    logits, labels, quality = make_case(
        num_images, seed=height, dtype=dtype, grids=grids, quality_apart=True
    )
    assert logits[0].numel() >= focal.SMALLEST_COMPILED > 2 * logits[1].numel()
    return logits, labels, quality if kind != "focal" else None


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.name == focal_compiled.__name__]


@pytest.mark.parametrize(("kind", "last"), list(zip(KINDS, (False, True, False), strict=True)))
def test_equals_the_definition_and_is_compiled_once(compiler, counted, kind, last):
    counter = counted("inductor")
    for num_images, height in SIZES:
        logits, labels, quality = case_of(kind, num_images, height)
        given = channels_last(logits) if last else logits
        for alpha, gamma in VALUES:
            options = {"num_classes": 5, "kind": kind}
            numbers = [torch.as_tensor(value).item() for value in (alpha, gamma)]
            expected = by_definition(
                logits, labels, quality, alpha=numbers[0], gamma=numbers[1], **options
            )
            options |= {"alpha": alpha, "gamma": gamma, "compiled": True}
            loss = pyramid_class_loss(given, labels, quality, **options)
            check(loss, given, expected, case=f"{num_images} x {height}, {options}")
    assert counter.frame_count == 1  # one for all values of alpha and gamma, and all sizes


def test_bfloat16_under_autocast(compiler, counted):
    counter = counted("inductor")
    logits, labels, quality = case_of("varifocal", dtype=torch.bfloat16)
    options = FOCAL | {"kind": "varifocal"}

    def loss_of(logits):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return pyramid_class_loss(logits, labels, quality, compiled=True, **options)

    loss = loss_of(logits)
    assert loss.dtype == torch.float32
    check(loss, logits, by_definition(logits, labels, quality, **options), rtol=2**-8 + 1e-6)
    broken = [x.detach().clone().requires_grad_() for x in logits]
    broken[0].data[0, 0, 0, 0] = float("nan")
    labels[0, 0] = -1
    loss = loss_of(broken)
    assert loss.isnan()  # an ignored anchor does not hide it
    first, _ = torch.autograd.grad(loss, broken)
    assert first.isnan().nonzero().tolist() == [[0, 0, 0, 0]]
    assert counter.frame_count == 1


def test_variants_beyond_the_compilers_limit_stay_compiled(counted, caplog):
    counter = counted("eager")
    with torch._dynamo.config.patch({LIMIT: 1}):
        logits, labels, _ = case_of("focal")
        pyramid_focal_loss(logits, labels, num_classes=5, compiled=True)
        with torch.no_grad():
            pyramid_focal_loss(logits, labels, num_classes=5, compiled=True)
        assert getattr(torch._dynamo.config, LIMIT) == 1  # other compiled functions keep theirs
    assert counter.frame_count == 2
    assert not warnings_of(caplog)


def test_beyond_the_most_variants_it_says_so_and_computes(counted, monkeypatch, caplog):
    counter = counted("eager")
    monkeypatch.setattr(focal_compiled, "_MOST_VARIANTS", 1)
    with torch._dynamo.config.patch({LIMIT: 1}):
        for dtype in (torch.float32, torch.float64, torch.float32):
            logits, labels, _ = case_of("focal", dtype=dtype)
            loss = pyramid_focal_loss(logits, labels, num_classes=5, compiled=True)
            check(loss, logits, by_definition(logits, labels, **FOCAL))
    assert counter.frame_count == 1
    (warning,) = warnings_of(caplog)
    assert "limit of variants" in warning
    assert "C++" not in warning


def test_without_a_compiler_it_warns_once_and_computes(counted, monkeypatch, caplog):
    class BackendCompilerFailedError(Exception):
        __module__ = "torch._dynamo.exc"

    def fail(*args):
        raise BackendCompilerFailedError("no g++")

    monkeypatch.setattr(focal_compiled, "_compile", lambda: fail)
    logits, labels, _ = case_of("focal")
    for _ in range(2):
        loss = pyramid_focal_loss(logits, labels, num_classes=5, compiled=True)
        assert torch.equal(loss, pyramid_focal_loss(logits, labels, num_classes=5))
    (warning,) = warnings_of(caplog)
    assert "no g++" in warning
    assert "C++" in warning
