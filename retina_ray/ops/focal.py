"""The focal loss of a whole pyramid in one pass: no one-hot target, no mask over classes.

Nearly all of the N * R * K logits are background. A dense loss builds a target of their size and a
dozen temporaries, and keeps several for the backward pass. Here the background term and its
gradient are computed together, block by block, straight from the head's maps; within a block the
one logit of each positive anchor that is not background is put right, and ignored anchors get the
weight 0. What remains of the size N * R * K is the gradient.

Shapes: N images, A anchors a cell, K classes, R anchors in all, H and W cells of a level. A level
is seen as maps (B, K, S): (N * A, K, H * W) as convolutions leave it by default,
(N * H * W * A, K, 1) in channels-last format.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from retina_ray.ops.boxes import at_least_float32

__all__ = ["pyramid_focal_loss"]

# Logits a block: on a CPU a handful of temporaries that stay in its cache, on a GPU (16 MiB each)
# enough to fill it.
_BLOCK_CPU = 2**17
_BLOCK_GPU = 2**22


def pyramid_focal_loss(
    logits: Sequence[Tensor],
    labels: Tensor,
    *,
    num_classes: int,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Sum of the focal loss (arXiv:1708.02002, equation 5) over all anchors and classes.

    The same value as `retina_ray.ops.losses.sigmoid_focal_loss` with one-hot targets on the anchors
    that are not ignored. Computes in float32 whatever the type of the logits (float64 for float64).

    Args:
        logits: per level (N, A * K, H, W), channel a * K + k, in any memory format.
        labels: (N, R) int64, rows (y * W + x) * A + a, level after level: 0 to K-1 for positive
            anchors, K for background, -1 for ignored ones.
        num_classes: K.
        alpha: weight of the positives in [0, 1], or negative for no weighting.
        gamma: focusing exponent, >= 0.

    Returns:
        A float32 scalar; differentiable once with respect to the logits.

    Raises:
        ValueError: if the channels are not a multiple of K, or the labels do not fit the logits.
    """
    _check(logits, labels, num_classes)
    with_gradient = torch.is_grad_enabled() and any(level.requires_grad for level in logits)
    return _PyramidFocalLoss.apply(
        labels, num_classes, float(alpha), float(gamma), with_gradient, *logits
    )


class _PyramidFocalLoss(torch.autograd.Function):
    """Computes the gradient along with the value, and hands it out in the backward pass."""

    @staticmethod
    def forward(ctx, labels, num_classes, alpha, gamma, with_gradient, *logits):
        ctx.parameters = num_classes, alpha, gamma
        if with_gradient:
            ctx.save_for_backward(labels, *logits)
        value, ctx.gradients = _value_and_gradients(
            logits, labels, num_classes, alpha, gamma, with_gradient
        )
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):
        labels, *logits = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # a second pass through a retained graph
            num_classes, alpha, gamma = ctx.parameters
            _, gradients = _value_and_gradients(logits, labels, num_classes, alpha, gamma, True)
        # In place: the gradient is the one tensor of this size, and nobody else holds it.
        scaled = [
            gradient.mul_(grad_outputs[0]).to(level.dtype)
            for gradient, level in zip(gradients, logits, strict=True)
        ]
        return None, None, None, None, None, *scaled


def _value_and_gradients(
    logits: Sequence[Tensor],
    labels: Tensor,
    num_classes: int,
    alpha: float,
    gamma: float,
    with_gradient: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradient for each level (none without `with_gradient`)."""
    sums, gradients, start = [], [], 0
    for level in logits:
        num_anchors = level.shape[1:].numel() // num_classes
        level_labels = labels[:, start : start + num_anchors]
        start += num_anchors
        if not _is_dense(level):
            level = level.contiguous()
        gradient = torch.empty_like(level, dtype=_gradient_dtype(level)) if with_gradient else None
        if gradient is not None:
            gradients.append(gradient)
        maps = _as_maps(level, num_classes)
        gradient_maps = None if gradient is None else _as_maps(gradient, num_classes)
        map_labels = _labels_as_maps(level_labels, level, num_classes)
        sums += _blocks(maps, map_labels, gradient_maps, alpha, gamma)
    if not sums:
        return torch.zeros((), device=labels.device, dtype=_value_dtype(logits)), gradients
    return torch.stack(sums).sum(), gradients


def _blocks(
    logits: Tensor, labels: Tensor, gradients: Tensor | None, alpha: float, gamma: float
) -> list[Tensor]:
    """Go through the maps (B, K, S) of a level in blocks; returns the sum of each block."""
    num_maps, num_classes, num_cells = logits.shape
    if logits.numel() == 0:
        return []
    limit = _BLOCK_CPU if logits.device.type == "cpu" else _BLOCK_GPU
    maps_at_once = max(1, limit // (num_classes * num_cells))
    cells_at_once = num_cells if maps_at_once > 1 else max(1, limit // num_classes)
    sums = []
    for b in range(0, num_maps, maps_at_once):
        for s in range(0, num_cells, cells_at_once):
            part = (slice(b, b + maps_at_once), slice(None), slice(s, s + cells_at_once))
            total, gradient = _block(
                at_least_float32(logits[part]), labels[part], alpha, gamma, gradients is not None
            )
            sums.append(total)
            if gradients is not None and gradient is not None:
                gradients[part].copy_(gradient)
    return sums


def _block(
    x: Tensor, labels: Tensor, alpha: float, gamma: float, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss and gradient of one block: logits (b, K, s), labels (b, 1, s)."""
    num_classes = x.shape[1]
    positive_weight, negative_weight = (1.0, 1.0) if alpha < 0 else (alpha, 1.0 - alpha)
    weight = (labels >= 0).to(x.dtype).mul_(negative_weight)
    loss, gradient = _background(x, weight, gamma, with_gradient)

    # A positive anchor's own class is the mirror image: the loss of -x, and minus its gradient.
    positive = (labels >= 0) & (labels != num_classes)
    own_class = labels.where(positive, 0)
    own_weight = positive.to(x.dtype).mul_(positive_weight)
    own_loss, own_gradient = _background(
        x.gather(1, own_class).neg_(), own_weight, gamma, with_gradient
    )
    loss.scatter_(1, own_class, own_loss.where(positive, loss.gather(1, own_class)))
    if gradient is not None and own_gradient is not None:
        others = gradient.gather(1, own_class)
        gradient.scatter_(1, own_class, own_gradient.neg_().where(positive, others))
    return loss.sum(), gradient


def _background(
    x: Tensor, weight: Tensor, gamma: float, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """`weight * p**gamma * softplus(x)` with p = sigmoid(x), and its derivative.

    With softplus' = p and p' = p * (1 - p), the derivative is
    `weight * p**gamma * (gamma * (1 - p) * softplus(x) + p)`.
    """
    p = torch.sigmoid(x)
    softplus = F.softplus(x)
    modulated = p.square() if gamma == 2 else p.pow(gamma)
    modulated.mul_(weight)
    loss = modulated * softplus
    if not with_gradient:
        return loss, None
    gradient = modulated.mul_(p)
    if gamma != 0:
        # 1 - p as exp(-softplus): exact where p rounds to 1 and softplus is large.
        gradient.addcmul_(loss, softplus.neg_().exp_(), value=gamma)
    return loss, gradient


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


def _labels_as_maps(labels: Tensor, level: Tensor, num_classes: int) -> Tensor:
    """Order the labels (N, H * W * A) of a level as `_as_maps` orders its logits: (B, 1, S)."""
    if not level.is_contiguous():
        return labels.reshape(-1, 1, 1)
    num_images, channels, height, width = level.shape
    num_anchors, num_cells = channels // num_classes, height * width
    by_anchor = labels.view(num_images, num_cells, num_anchors).transpose(1, 2)
    return by_anchor.reshape(num_images * num_anchors, 1, num_cells)


def _gradient_dtype(level: Tensor) -> torch.dtype:
    """That of the logits, except for float16, whose range the unscaled gradient would leave."""
    return torch.float32 if level.dtype == torch.float16 else level.dtype


def _value_dtype(logits: Sequence[Tensor]) -> torch.dtype:
    """float64 for float64 logits, else float32."""
    return torch.float64 if logits and logits[0].dtype == torch.float64 else torch.float32


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
