"""The losses in their textbook form: one value for a pair of tensors, always the **sum**.

Whoever calls them divides by a normalizer of its own choice. All of them compute in float32
(float64 for float64 input), give 0 with a gradient for empty input, and stay finite, gradient
included, for extreme logits and for boxes without area.

Training takes the losses of classes from `retina_ray.ops.focal`, which gives the same without a
target of the size of the logits; here they stand for reading and for tests.

Shapes: P pairs of boxes; boxes are (P, 4) XYXY.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from retina_ray.config import LossConfig
from retina_ray.ops.boxes import at_least_float32, paired_overlap

# Smallest divisor, in square pixels (IoU losses) or pixels (aspect ratio). Only pairs without any
# extent are below it, so all others get the exact formula.
_EPS = 1e-7

_DEFAULT = LossConfig()


def sigmoid_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float | Tensor = _DEFAULT.focal_alpha,
    gamma: float | Tensor = _DEFAULT.focal_gamma,
) -> Tensor:
    """Focal loss (arXiv:1708.02002, equation 5): `-alpha_t * (1 - p_t)**gamma * log(p_t)`.

    p_t is sigmoid(logit) where the target is 1 and 1 - sigmoid(logit) where it is 0; alpha_t is
    alpha and 1 - alpha likewise, or 1 for a negative alpha. Logits and targets have the same shape,
    to which alpha and gamma (>= 0) broadcast if they are tensors.
    """
    logits = at_least_float32(logits)
    targets = targets.to(logits.dtype)
    # With z = +logit for positives and -logit for negatives, p_t = sigmoid(z). Both factors are
    # written with softplus so that neither a power nor a logarithm of 0 appears:
    # -log(p_t) = softplus(-z) and (1 - p_t)**gamma = exp(-gamma * softplus(z)).
    z = logits * (2 * targets - 1)
    loss = torch.exp(-gamma * F.softplus(z)) * F.softplus(-z)
    if isinstance(alpha, Tensor):
        weight = alpha * targets + (1 - alpha) * (1 - targets)
        loss = loss * torch.where(alpha < 0, torch.ones_like(weight), weight)
    elif alpha >= 0:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return loss.sum()


def quality_focal_loss(
    logits: Tensor, targets: Tensor, beta: float = _DEFAULT.focal_gamma
) -> Tensor:
    """Quality focal loss (Generalized Focal Loss, arXiv:2006.04388, equation 2).

    `-|y - sigma|**beta * ((1 - y) * log(1 - sigma) + y * log(sigma))` with sigma = sigmoid(logit)
    and y the quality to be learnt: the IoU of the predicted box for a positive anchor's own class,
    0 for everything else. The loss is 0 at sigma = y. For y of 0 or 1 it is the focal loss with
    gamma = beta and without alpha.

    Targets in [0, 1] have the shape of the logits, and are a constant in the gradient. beta >= 0,
    2 in the paper, says how fast easy examples lose weight. Below 1 the loss has a cusp at
    sigma = y; the gradient there is 0.
    """
    logits = at_least_float32(logits)
    targets = targets.detach().to(logits.dtype)
    loss = _soft_cross_entropy(logits, targets)
    if beta == 0:
        return loss.sum()
    distance = (targets - torch.sigmoid(logits)).abs()
    if beta >= 1:
        return (distance.pow(beta) * loss).sum()
    # The derivative of the power is infinite at 0, and overflows below the smallest normal number.
    apart = distance > torch.finfo(distance.dtype).tiny
    return (distance.where(apart, 1.0).pow(beta).where(apart, 0.0) * loss).sum()


def varifocal_loss(
    logits: Tensor, targets: Tensor, alpha: float = 0.75, gamma: float = _DEFAULT.focal_gamma
) -> Tensor:
    """Varifocal loss (VarifocalNet, arXiv:2008.13367, equation 2).

    With p = sigmoid(logit): `-q * (q * log(p) + (1 - q) * log(1 - p))` where q > 0, and
    `-alpha * p**gamma * log(1 - p)` where q = 0. q is the IoU of the predicted box for a positive
    anchor's own class and 0 for everything else: only negatives lose weight by being easy, and
    positives weigh by their quality.

    Targets q in [0, 1] have the shape of the logits, and are a constant in the gradient. The paper
    has an alpha of 0.75 (a negative one stands for 1) and a gamma of 2.
    """
    logits = at_least_float32(logits)
    targets = targets.detach().to(logits.dtype)
    positive = targets * _soft_cross_entropy(logits, targets)
    # p**gamma as exp(gamma * log(p)) with log(p) = -softplus(-x): no power of 0.
    negative = torch.exp(-gamma * F.softplus(-logits)) * F.softplus(logits)
    if alpha >= 0:
        negative = negative * alpha
    return torch.where(targets > 0, positive, negative).sum()


def _soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """`-(y * log(p) + (1 - y) * log(1 - p))` elementwise, p = sigmoid(logit), y in [0, 1].

    As -log(p) = softplus(-x) and -log(1 - p) = softplus(x), no logarithm of 0 appears.
    """
    return targets * F.softplus(-logits) + (1 - targets) * F.softplus(logits)


def smooth_l1_loss(pred: Tensor, target: Tensor, beta: float) -> Tensor:
    """Smooth L1 (Fast R-CNN, arXiv:1504.08083, equation 3, with a turning point beta).

    `0.5 * d**2 / beta` where the difference d is below beta, `d - 0.5 * beta` elsewhere; a beta of
    0 is L1.
    """
    pred, target = at_least_float32(pred), at_least_float32(target)
    return F.smooth_l1_loss(pred, target, reduction="sum", beta=beta)


def giou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Generalised IoU loss (arXiv:1902.09630, algorithm 1): `1 - IoU + |C - U| / |C|`.

    C is the smallest box around both, U their union. A scalar; each pair contributes 0 to 2.
    """
    iou, union, enclosing = _iou_union_enclosing(pred, target)
    area = enclosing[..., 0] * enclosing[..., 1]
    return (1 - iou + (area - union) / area.clamp(min=_EPS)).sum()


def diou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Distance IoU loss (arXiv:1911.08287, equation 7): `1 - IoU + rho**2 / c**2`.

    rho is the distance of the centres, c the diagonal of the smallest box around both. A scalar;
    each pair contributes 0 to 2.
    """
    return _diou(pred, target)[0].sum()


def ciou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Complete IoU loss (arXiv:1911.08287, equations 8 to 11): DIoU plus `alpha * v`.

    `v = 4 / pi**2 * (atan(w_t / h_t) - atan(w / h))**2` compares aspect ratios, and
    `alpha = v / (1 - IoU + v)` is taken as a constant in the gradient. A scalar.
    """
    diou, iou = _diou(pred, target)
    v = (4 / math.pi**2) * (_aspect_angle(target) - _aspect_angle(pred)) ** 2
    with torch.no_grad():
        alpha = v / (1 - iou + v).clamp(min=_EPS)
    return (diou + alpha * v).sum()


def _iou_union_enclosing(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pred, target = at_least_float32(pred), at_least_float32(target)
    intersection, union = paired_overlap(pred, target)
    low = torch.minimum(pred[..., :2], target[..., :2])
    high = torch.maximum(pred[..., 2:], target[..., 2:])
    return intersection / union.clamp(min=_EPS), union, high - low


def _diou(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    iou, _, enclosing = _iou_union_enclosing(pred, target)
    pred, target = at_least_float32(pred), at_least_float32(target)
    offset = (pred[..., :2] + pred[..., 2:] - target[..., :2] - target[..., 2:]) / 2
    diagonal = enclosing.square().sum(-1).clamp(min=_EPS)
    return 1 - iou + offset.square().sum(-1) / diagonal, iou


def _aspect_angle(boxes: Tensor) -> Tensor:
    """atan(width / height) of each box (P, 4), with a gradient of 0 for sides of 0."""
    boxes = at_least_float32(boxes)
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=_EPS)
    return torch.atan(sides[..., 0] / sides[..., 1])
