"""The classification loss of one level in a loop that torch.compile makes, see `focal`.

Shapes: K classes; a level is seen as maps (B, K, S), whatever its format in memory.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from retina_ray.ops.boxes import at_least_float32
from retina_ray.ops.class_terms import ClassLoss, Number, every_term
from retina_ray.ops.focal_blocks import Terms, gradient_dtype, level_loss, value_dtype

logger = logging.getLogger(__name__)

SMALLEST_COMPILED = 2**15
"""Logits of a level below which a compiled loop saves nothing and would only be compiled for
itself."""

# Loops that the compiler may keep for the loss, and what its setting is and was called.
_MOST_VARIANTS = 64
_LIMIT_NAMES = ("recompile_limit", "cache_size_limit")


def compiled_level_loss(
    logits: Tensor,
    labels: Tensor,
    quality: Tensor | None,
    terms: Terms,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """As `level_loss`, in one loop that the compiler makes; `level_loss` itself if it cannot."""
    scalars = [_scalar(value, logits) for value in (terms.alpha, terms.gamma)]
    # `data` is no view: the compiler would look at the strides of what it is a view of.
    inputs = (logits, labels.to(torch.int32), quality)
    tensors = [None if tensor is None else tensor.data for tensor in inputs]
    try:
        sums, gradient = _compile()(*tensors, *scalars, terms.kind, with_gradient)
        return sums.sum().to(value_dtype(logits)), gradient
    except Exception as error:
        if not is_compiler_fault(error):
            raise
        _warn_of_fallback(_reason(error))
        return level_loss(logits, labels, quality, terms, with_gradient)


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
    return sums, (gradient * kept).to(gradient_dtype(logits))


def _scalar(value: Number, like: Tensor) -> Tensor:
    """A scalar tensor in the precision of the computation, made without a wait for the device."""
    dtype = value_dtype(like)
    if isinstance(value, Tensor):
        return value.to(dtype)
    return torch.full((), value, dtype=dtype, device=like.device)


def room_for_variants(terms: Terms) -> contextlib.AbstractContextManager[object]:
    """Lets the compiler, if used, keep a loop for each variant: by default it gives up at the 9th.

    Kinds of loss, types, memory formats, devices, autocast, with a gradient and without, and sizes
    of 1 are variants; a sweep in one process can meet a dozen.
    """
    if not terms.compiled:
        return contextlib.nullcontext()
    config = importlib.import_module("torch._dynamo.config")  # heavy: not before it is needed
    name = next(name for name in _LIMIT_NAMES if hasattr(config, name))
    return config.patch({name: max(_MOST_VARIANTS, getattr(config, name))})


def is_compiler_fault(error: Exception) -> bool:
    """Whether torch.compile failed, and not the computation."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def _reason(error: Exception) -> str:
    what = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    if type(error).__name__ in ("FailOnRecompileLimitHit", "RecompileLimitExceeded"):
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
