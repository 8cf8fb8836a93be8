"""The classification loss of a whole pyramid in one pass: no one-hot target, no mask over classes.

Nearly all of the N * R * K logits are background. A dense loss builds a target of their size and a
dozen temporaries, and keeps several for the backward pass. Here the background term and its
gradient are computed together, block by block, straight from the head's maps; within a block the
one logit of each positive anchor that is not background is put right, and ignored anchors get the
weight 0. What remains of the size N * R * K is the gradient. The formulas are in
`retina_ray.ops.class_terms`.

Compiled, all of it is one loop over the logits (one kernel on CUDA), written in terms that compare
class numbers instead of gathering.

Shapes: N images, A anchors a cell, K classes, R anchors in all, H and W cells of a level. A level
is seen as maps (B, K, S): (N * A, K, H * W) as convolutions leave it by default,
(N * H * W * A, K, 1) in channels-last format.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from retina_ray.ops.boxes import at_least_float32
from retina_ray.ops.class_terms import (
    ClassLoss,
    Number,
    background_factors,
    background_weight,
    every_term,
    own_term,
)

__all__ = ["pyramid_class_loss", "pyramid_focal_loss"]

logger = logging.getLogger(__name__)

# Logits a block: on a CPU a handful of temporaries that stay in its cache, on a GPU (16 MiB each)
# enough to fill it.
_BLOCK_CPU = 2**17
_BLOCK_GPU = 2**22
# Logits of a level below which a compiled loop saves nothing and would only be compiled for itself.
_SMALLEST_COMPILED = 2**15
# Loops that the compiler may keep for the loss, and what its setting is and was called.
_MOST_VARIANTS = 64
_LIMIT_NAMES = ("recompile_limit", "cache_size_limit")


def pyramid_focal_loss(
    logits: Sequence[Tensor],
    labels: Tensor,
    *,
    num_classes: int,
    alpha: Number = 0.25,
    gamma: Number = 2.0,
    compiled: bool = False,
) -> Tensor:
    """Sum of the focal loss (arXiv:1708.02002, equation 5) over all anchors and classes.

    The same value as `retina_ray.ops.losses.sigmoid_focal_loss` with one-hot targets on the anchors
    that are not ignored. Computes in float32 whatever the type of the logits (float64 for float64).

    Args:
        logits: per level (N, A * K, H, W), channel a * K + k, in any memory format.
        labels: (N, R) int64, rows (y * W + x) * A + a, level after level: 0 to K-1 for positive
            anchors, K for background, -1 for ignored ones.
        num_classes: K.
        alpha: weight of the positives in [0, 1], or negative for no weighting; a number, or a
            tensor of one number, which is taken as a constant. One on another device than the
            logits is copied there, which waits for a GPU that holds it.
        gamma: focusing exponent, >= 0; likewise.
        compiled: let torch.compile make one loop of it; without a working compiler, a warning says
            so once and the loss is computed as it is otherwise. No value of alpha or gamma and no
            number or size of images asks for another compilation.

    Returns:
        A float32 scalar; differentiable once with respect to the logits.

    Raises:
        ValueError: if the channels are not a multiple of K, the labels do not fit the logits, or
            alpha or gamma is a tensor of more or less than one number.
    """
    return pyramid_class_loss(
        logits, labels, num_classes=num_classes, alpha=alpha, gamma=gamma, compiled=compiled
    )


def pyramid_class_loss(
    logits: Sequence[Tensor],
    labels: Tensor,
    quality: Tensor | None = None,
    *,
    num_classes: int,
    kind: ClassLoss = "focal",
    alpha: Number = 0.25,
    gamma: Number = 2.0,
    compiled: bool = False,
) -> Tensor:
    """Sum of the focal, quality focal or varifocal loss over all anchors and classes.

    Equal to `sigmoid_focal_loss`, `quality_focal_loss` (gamma is its beta; no alpha) and
    `varifocal_loss` of `retina_ray.ops.losses`, whose targets hold the quality in place of the 1.

    Args:
        logits: as in `pyramid_focal_loss`.
        labels: likewise.
        quality: (N, R) in [0, 1], what a positive anchor's own class is to score, the IoU of its
            predicted box; of no meaning for other anchors. Not looked at by "focal".
        num_classes: K.
        kind: of loss.
        alpha: as in `pyramid_focal_loss`; the weight of background in "varifocal".
        gamma: as in `pyramid_focal_loss`.
        compiled: likewise.

    Returns:
        A float32 scalar; differentiable once with respect to the logits (not to the quality).

    Raises:
        ValueError: as in `pyramid_focal_loss`; or if the quality is missing or does not fit.
    """
    _check(logits, labels, num_classes)
    if kind == "focal":
        quality = None
    elif quality is None or quality.shape != labels.shape:
        shape = None if quality is None else tuple(quality.shape)
        raise ValueError(f"quality: {kind} needs one for each label, {labels.shape}; got {shape}")
    else:
        quality = quality.detach()
    alpha, gamma = _constant("alpha", alpha, logits), _constant("gamma", gamma, logits)
    terms = _Terms(num_classes, kind, alpha, gamma, compiled)
    with_gradient = torch.is_grad_enabled() and any(level.requires_grad for level in logits)
    return _PyramidLoss.apply(labels, quality, terms, with_gradient, *logits)


@dataclass(frozen=True)
class _Terms:
    """What is to be computed for each logit, see `pyramid_class_loss`."""

    num_classes: int
    kind: ClassLoss
    alpha: Number
    gamma: Number
    compiled: bool


class _PyramidLoss(torch.autograd.Function):
    """Computes the gradient along with the value, and hands it out in the backward pass."""

    @staticmethod
    def forward(ctx, labels, quality, terms, with_gradient, *logits):
        ctx.terms = terms
        if with_gradient:
            ctx.save_for_backward(labels, quality, *logits)
        with _room_for_variants(terms):
            value, ctx.gradients = _value_and_gradients(
                logits, labels, quality, terms, with_gradient
            )
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):
        labels, quality, *logits = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # a second pass through a retained graph
            with _room_for_variants(ctx.terms):
                _, gradients = _value_and_gradients(logits, labels, quality, ctx.terms, True)
        # In place: the gradient is the one tensor of this size, and nobody else holds it.
        scaled = [
            gradient.mul_(grad_outputs[0]).to(level.dtype)
            for gradient, level in zip(gradients, logits, strict=True)
        ]
        return None, None, None, None, *scaled


def _value_and_gradients(
    logits: Sequence[Tensor],
    labels: Tensor,
    quality: Tensor | None,
    terms: _Terms,
    with_gradient: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradient for each level (none without `with_gradient`)."""
    sums, gradients, start = [], [], 0
    for level in logits:
        num_anchors = level.shape[1:].numel() // terms.num_classes
        rows = slice(start, start + num_anchors)
        start += num_anchors
        if not _is_dense(level):
            level = level.contiguous()
        maps = _as_maps(level, terms.num_classes)
        map_labels = _rows_as_maps(labels[:, rows], level, terms.num_classes)
        map_quality = None
        if quality is not None:
            map_quality = _rows_as_maps(quality[:, rows], level, terms.num_classes)
        large = level.numel() >= _SMALLEST_COMPILED
        compute = _compiled_level if terms.compiled and large else _level
        total, gradient = compute(maps, map_labels, map_quality, terms, with_gradient)
        sums.append(total)
        if gradient is not None:
            gradients.append(_like_level(gradient, level))
    if not sums:
        return torch.zeros((), device=labels.device), gradients
    return torch.stack(sums).sum(), gradients


def _level(
    logits: Tensor,
    labels: Tensor,
    quality: Tensor | None,
    terms: _Terms,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Sum and gradient over the maps (B, K, S) of a level, in blocks."""
    num_maps, num_classes, num_cells = logits.shape
    gradient = torch.empty_like(logits, dtype=_gradient_dtype(logits)) if with_gradient else None
    limit = _BLOCK_CPU if logits.device.type == "cpu" else _BLOCK_GPU
    maps_at_once = max(1, limit // max(1, num_classes * num_cells))
    cells_at_once = num_cells if maps_at_once > 1 else max(1, limit // num_classes)
    sums = [torch.zeros((), dtype=_value_dtype(logits), device=logits.device)]
    with _one_thread(logits.device):
        for b in range(0, num_maps, maps_at_once):
            for s in range(0, num_cells, cells_at_once):
                part = (slice(b, b + maps_at_once), slice(None), slice(s, s + cells_at_once))
                sums.append(
                    _block(
                        at_least_float32(logits[part]),
                        labels[part],
                        None if quality is None else quality[part],
                        terms,
                        None if gradient is None else gradient[part],
                    )
                )
    return torch.stack(sums).sum(), gradient


@contextlib.contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Compute blocks on a CPU in the calling thread.

    An operation on a block takes microseconds. Threads that shared it would wait for each other,
    which costs CPU seconds always, and ten times the computation where other processes want the
    same cores. The compiled loop shares a level out instead.
    """
    num_threads = torch.get_num_threads()
    if device.type != "cpu" or num_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _block(
    x: Tensor, labels: Tensor, quality: Tensor | None, terms: _Terms, gradient: Tensor | None
) -> Tensor:
    """Sum of one block, logits (b, K, s) and labels (b, 1, s); fills in its gradient."""
    weight = background_weight(terms.kind, terms.alpha)
    modulation, softplus, slope = background_factors(x, terms.gamma)
    ignored = labels < 0
    positive = (labels < terms.num_classes) & ~ignored
    on_cpu = x.device.type == "cpu"  # looking costs no wait there, and saves work in most blocks
    if not on_cpu or bool(ignored.any()):
        modulation.mul_(~ignored)
    has_positive = not on_cpu or bool(positive.any())
    own_class = labels.where(positive, 0) if has_positive else labels
    if has_positive:  # an anchor's own class is no background
        others = modulation.gather(1, own_class).masked_fill_(positive, 0)
        modulation.scatter_(1, own_class, others)
    if gradient is not None:
        slope.mul_(modulation)
        if gradient.dtype == slope.dtype:
            torch.mul(slope, weight, out=gradient)
        else:
            gradient.copy_(slope * weight)
    total = modulation.mul_(softplus).sum() * weight
    if not has_positive:
        return total
    own_loss, own_gradient = own_term(
        x.gather(1, own_class), quality, kind=terms.kind, alpha=terms.alpha, gamma=terms.gamma
    )
    if gradient is not None:
        own_gradient = own_gradient.to(gradient.dtype)
        others = gradient.gather(1, own_class)
        gradient.scatter_(1, own_class, torch.where(positive, own_gradient, others))
    return total + own_loss.where(positive, 0).sum()


def _compiled_level(
    logits: Tensor,
    labels: Tensor,
    quality: Tensor | None,
    terms: _Terms,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """As `_level`, in one loop that the compiler makes; `_level` itself if it cannot."""
    scalars = [_scalar(value, logits) for value in (terms.alpha, terms.gamma)]
    # `data` is no view: the compiler would look at the strides of what it is a view of.
    labels = labels.to(torch.int32)
    tensors = [None if tensor is None else tensor.data for tensor in (logits, labels, quality)]
    try:
        sums, gradient = _compile()(*tensors, *scalars, terms.kind, with_gradient)
        return sums.sum().to(_value_dtype(logits)), gradient
    except Exception as error:
        if not _is_compiler_fault(error):
            raise
        _warn_of_fallback(_reason(error))
        return _level(logits, labels, quality, terms, with_gradient)


@functools.cache
def _compile() -> Callable[..., tuple[Tensor, Tensor | None]]:
    return torch.compile(_whole_level, dynamic=True, fullgraph=True)


def _whole_level(
    logits: Tensor,
    labels: Tensor,
    quality: Tensor | None,
    alpha: Tensor,
    gamma: Tensor,
    kind: ClassLoss,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """What is compiled; alpha and gamma are tensors, so that no value of theirs is built in.

    Returns float64 sums over the numbers that lie side by side in memory: a compiled loop adds one
    number after the other, and a float32 would lose digits.
    """
    x = at_least_float32(logits)
    classes = torch.arange(x.shape[1], dtype=torch.int32, device=x.device)[:, None]
    loss, gradient = every_term(x, labels == classes, quality, kind=kind, alpha=alpha, gamma=gamma)
    kept = (labels >= 0).to(x.dtype)  # a factor, as a mask would hide a NaN at an ignored anchor
    sums = (loss * kept).sum(2 if x.shape[2] > 1 else 1, dtype=torch.float64)
    if not with_gradient:
        return sums, None
    return sums, (gradient * kept).to(_gradient_dtype(logits))


def _constant(name: str, value: Number, logits: Sequence[Tensor]) -> Number:
    """A number as it is; a tensor as a scalar in the precision of the computation, detached.

    Made without a wait for the device.
    """
    if not isinstance(value, Tensor):
        return value
    if value.numel() != 1:
        raise ValueError(
            f"{name}: expected a number or a tensor of one, got one of shape {tuple(value.shape)}"
        )
    value = value.detach().reshape(())
    if not logits:
        return value
    wide = any(level.dtype == torch.float64 for level in logits)
    dtype = torch.float64 if wide else torch.float32
    return value.to(device=logits[0].device, dtype=dtype, non_blocking=True)


def _scalar(value: Number, like: Tensor) -> Tensor:
    """A scalar tensor in the precision of the computation, made without a wait for the device."""
    dtype = _value_dtype(like)
    if isinstance(value, Tensor):
        return value.to(dtype)
    return torch.full((), value, dtype=dtype, device=like.device)


def _room_for_variants(terms: _Terms) -> contextlib.AbstractContextManager[object]:
    """Lets the compiler, if used, keep a loop for each variant: by default it gives up at the 9th.

    Kinds of loss, types, memory formats, devices, autocast, with a gradient and without, and sizes
    of 1 are variants; a sweep in one process can meet a dozen.
    """
    if not terms.compiled:
        return contextlib.nullcontext()
    config = importlib.import_module("torch._dynamo.config")  # heavy: not before it is needed
    name = next(name for name in _LIMIT_NAMES if hasattr(config, name))
    return config.patch({name: max(_MOST_VARIANTS, getattr(config, name))})


def _is_compiler_fault(error: Exception) -> bool:
    """Whether torch.compile failed, and not the computation."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def _reason(error: Exception) -> str:
    """Why the loss is not compiled, and what to do."""
    what = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    if type(error).__name__ in ("FailOnRecompileLimitHit", "FailOnCacheLimitHit"):
        return (
            f"torch.compile's limit of variants of a function is reached, {_MOST_VARIANTS} or more "
            f"({what}). Earlier ones go on compiled. TORCH_LOGS=recompiles tells how they differ"
        )
    return f"{what}. On a CPU, torch.compile needs a C++ compiler"


@functools.cache
def _warn_of_fallback(reason: str) -> None:
    logger.warning(
        "the classification loss could not be compiled and is computed uncompiled: %s.", reason
    )


def _is_dense(level: Tensor) -> bool:
    """Whether `_as_maps` can view the logits without a copy."""
    return level.is_contiguous() or level.is_contiguous(memory_format=torch.channels_last)


def _as_maps(level: Tensor, num_classes: int) -> Tensor:
    """View (N, A * K, H, W) as (B, K, S)."""
    num_images, channels, height, width = level.shape
    if level.is_contiguous():
        maps = num_images * (channels // num_classes)
        return level.view(maps, num_classes, height * width)
    return level.permute(0, 2, 3, 1).view(-1, num_classes, 1)


def _like_level(maps: Tensor, level: Tensor) -> Tensor:
    """View (B, K, S) as the level (N, A * K, H, W) that it was made of; undoes `_as_maps`."""
    num_images, channels, height, width = level.shape
    if level.is_contiguous():
        return maps.view(level.shape)
    return maps.view(num_images, height, width, channels).permute(0, 3, 1, 2)


def _rows_as_maps(rows: Tensor, level: Tensor, num_classes: int) -> Tensor:
    """Order the rows (N, H * W * A) of a level as `_as_maps` orders its logits: (B, 1, S)."""
    if not level.is_contiguous():
        return rows.reshape(-1, 1, 1)
    num_images, channels, height, width = level.shape
    num_anchors, num_cells = channels // num_classes, height * width
    by_anchor = rows.view(num_images, num_cells, num_anchors).transpose(1, 2)
    # Always a copy: of one image a view would do, whose strides would be compiled for themselves.
    in_order = by_anchor.clone(memory_format=torch.contiguous_format)
    return in_order.view(num_images * num_anchors, 1, num_cells)


def _gradient_dtype(logits: Tensor) -> torch.dtype:
    """That of the logits, except for float16, whose range the unscaled gradient would leave."""
    return torch.float32 if logits.dtype == torch.float16 else logits.dtype


def _value_dtype(logits: Tensor) -> torch.dtype:
    """float64 for float64 logits, else float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _check(logits: Sequence[Tensor], labels: Tensor, num_classes: int) -> None:
    """Raise a ValueError unless channels, classes and labels fit each other."""
    num_anchors = 0
    for i, level in enumerate(logits):
        if level.dim() != 4 or level.shape[1] % num_classes:
            raise ValueError(
                f"logits of level {i}: expected (N, A * K, H, W) with K = {num_classes}, "
                f"got {tuple(level.shape)}"
            )
        if level.shape[0] != labels.shape[0]:
            raise ValueError(
                f"logits of level {i} hold {level.shape[0]} images, the labels {labels.shape[0]}"
            )
        num_anchors += level.shape[1] // num_classes * level.shape[2] * level.shape[3]
    if labels.shape != (labels.shape[0], num_anchors):
        raise ValueError(
            f"labels: expected (N, {num_anchors}), one for each anchor of the logits, "
            f"got {tuple(labels.shape)}"
        )
