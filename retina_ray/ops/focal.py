"""The classification loss of a whole pyramid in one pass: no one-hot target, no mask over classes.

Nearly all of the N * R * K logits are background. The background term and its gradient are computed
together, block by block, straight from the head's maps; within a block the one logit of each
positive anchor that is not background is put right, and ignored anchors get the weight 0. What
remains of the size N * R * K is the gradient. The formulas are in `retina_ray.ops.class_terms`.

Compiled, all of it is one loop over the logits (one kernel on CUDA), written in terms that compare
class numbers instead of gathering.

Shapes: N images, A anchors a cell, K classes, R anchors in all, H and W cells of a level. A level
is seen as maps (B, K, S): (N * A, K, H * W) as convolutions leave it by default,
(N * H * W * A, K, 1) in channels-last format.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from retina_ray.config import LossConfig
from retina_ray.ops.class_terms import ClassLoss, Number
from retina_ray.ops.focal_blocks import Terms, level_loss
from retina_ray.ops.focal_compiled import (
    SMALLEST_COMPILED,
    compiled_level_loss,
    room_for_variants,
)

_DEFAULT = LossConfig()


def pyramid_focal_loss(
    logits: Sequence[Tensor],
    labels: Tensor,
    *,
    num_classes: int,
    alpha: Number = _DEFAULT.focal_alpha,
    gamma: Number = _DEFAULT.focal_gamma,
    compiled: bool = False,
) -> Tensor:
    """Sum of the focal loss (arXiv:1708.02002, equation 5): `pyramid_class_loss` of that kind.

    The same value as `retina_ray.ops.losses.sigmoid_focal_loss` with one-hot targets on the anchors
    that are not ignored.
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
    alpha: Number = _DEFAULT.focal_alpha,
    gamma: Number = _DEFAULT.focal_gamma,
    compiled: bool = False,
) -> Tensor:
    """Sum of the focal, quality focal or varifocal loss over all anchors and classes.

    Equal to `sigmoid_focal_loss`, `quality_focal_loss` (gamma is its beta; no alpha) and
    `varifocal_loss` of `retina_ray.ops.losses`, whose targets hold the quality in place of the 1.
    Computes in float32 whatever the type of the logits (float64 for float64).

    Args:
        logits: per level (N, A * K, H, W), channel a * K + k, in any memory format.
        labels: (N, R) int64, rows (y * W + x) * A + a, level after level: 0 to K-1 for positive
            anchors, K for background, -1 for ignored ones.
        quality: (N, R) in [0, 1], what a positive anchor's own class is to score, the IoU of its
            predicted box; of no meaning for other anchors. Not looked at by "focal".
        num_classes: K.
        kind: of loss.
        alpha: weight of the positives in [0, 1] (of the background in "varifocal"), or negative for
            no weighting; a number, or a tensor of one number, which is taken as a constant. One on
            another device than the logits is copied there, which waits for a GPU that holds it.
        gamma: focusing exponent, >= 0; likewise.
        compiled: let torch.compile make one loop of it; without a working compiler, a warning says
            so once and the loss is computed as it is otherwise. No value of alpha or gamma and no
            number or size of images asks for another compilation.

    Returns:
        A float32 scalar; differentiable once with respect to the logits (not to the quality).

    Raises:
        ValueError: channels, labels or quality do not fit, or alpha or gamma is a tensor of more or
            less than one number.
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
    terms = Terms(num_classes, kind, alpha, gamma, compiled)
    with_gradient = torch.is_grad_enabled() and any(level.requires_grad for level in logits)
    return _PyramidLoss.apply(labels, quality, terms, with_gradient, *logits)


class _PyramidLoss(torch.autograd.Function):
    """Computes the gradient along with the value, and hands it out in the backward pass."""

    @staticmethod
    def forward(ctx, labels, quality, terms, with_gradient, *logits):
        ctx.terms = terms
        if with_gradient:
            ctx.save_for_backward(labels, quality, *logits)
        with room_for_variants(terms):
            value, ctx.gradients = _value_and_gradients(
                logits, labels, quality, terms, with_gradient
            )
        return value

    @staticmethod
    def backward(ctx, *grad_outputs):
        return _scaled_gradients(ctx, *grad_outputs)


@once_differentiable
def _scaled_gradients(ctx, *grad_outputs):
    labels, quality, *logits = ctx.saved_tensors
    gradients, ctx.gradients = ctx.gradients, None
    if gradients is None:  # a second pass through a retained graph
        with room_for_variants(ctx.terms):
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
    terms: Terms,
    with_gradient: bool,
) -> tuple[Tensor, list[Tensor]]:
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
        large = level.numel() >= SMALLEST_COMPILED
        compute = compiled_level_loss if terms.compiled and large else level_loss
        total, gradient = compute(maps, map_labels, map_quality, terms, with_gradient)
        sums.append(total)
        if gradient is not None:
            gradients.append(_like_level(gradient, level))
    if not sums:
        return torch.zeros((), device=labels.device), gradients
    return torch.stack(sums).sum(), gradients


def _constant(name: str, value: Number, logits: Sequence[Tensor]) -> Number:
    """A number as it is; a tensor as a detached scalar, made without a wait for the device."""
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


def _check(logits: Sequence[Tensor], labels: Tensor, num_classes: int) -> None:
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
