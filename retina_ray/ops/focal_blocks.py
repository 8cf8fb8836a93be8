"""The classification loss of one level in blocks, see `retina_ray.ops.focal`.

Shapes: K classes; a level is seen as maps (B, K, S), whatever its format in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from retina_ray.ops.boxes import at_least_float32
from retina_ray.ops.class_terms import (
    ClassLoss,
    Number,
    background_factors,
    background_weight,
    own_term,
)

# Logits a block: on a CPU a handful of temporaries that stay in its cache, on a GPU (16 MiB each)
# enough to fill it.
_BLOCK_CPU = 2**17
_BLOCK_GPU = 2**22


@dataclass(frozen=True)
class Terms:
    """What is to be computed for each logit, see `pyramid_class_loss`."""

    num_classes: int
    kind: ClassLoss
    alpha: Number
    gamma: Number
    compiled: bool


def level_loss(
    logits: Tensor,
    labels: Tensor,
    quality: Tensor | None,
    terms: Terms,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Sum and gradient over the maps (B, K, S) of a level, in blocks."""
    num_maps, num_classes, num_cells = logits.shape
    gradient = torch.empty_like(logits, dtype=gradient_dtype(logits)) if with_gradient else None
    limit = _BLOCK_CPU if logits.device.type == "cpu" else _BLOCK_GPU
    maps_at_once = max(1, limit // max(1, num_classes * num_cells))
    cells_at_once = num_cells if maps_at_once > 1 else max(1, limit // num_classes)
    sums = [torch.zeros((), dtype=value_dtype(logits), device=logits.device)]
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
    x: Tensor, labels: Tensor, quality: Tensor | None, terms: Terms, gradient: Tensor | None
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


def gradient_dtype(logits: Tensor) -> torch.dtype:
    """That of the logits, except for float16, whose range the unscaled gradient would leave."""
    return torch.float32 if logits.dtype == torch.float16 else logits.dtype


def value_dtype(logits: Tensor) -> torch.dtype:
    """float64 for float64 logits, else float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
