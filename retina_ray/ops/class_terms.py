"""One logit's part in a classification loss, with its derivative, for the three kinds of loss.

All three give the K - 1 classes that an anchor is *not* the same term, up to a weight w_0::

    w_0 * p**gamma * softplus(x)         with p = sigmoid(x), softplus(x) = -log(1 - p)

and its derivative is `w_0 * p**gamma * (gamma * (1 - p) * softplus(x) + p)`, from softplus' = p and
p' = p * (1 - p). They differ in what a positive anchor's *own* class gets, with q the IoU of the
predicted box with the true one:

=============  =====  ======================================================  ==================
kind           w_0    own class                                               paper
=============  =====  ======================================================  ==================
focal          1 - a  a * (1 - p)**gamma * softplus(-x)                       1708.02002, eq. 5
quality_focal  1      abs(q - p)**gamma * (softplus(x) - q * x)               2006.04388, eq. 2
varifocal      a      q * (softplus(x) - q * x); as no own class where q = 0  2008.13367, eq. 2
=============  =====  ======================================================  ==================

`softplus(x) - q * x` is the binary cross entropy of the score p with the target q. A negative a
(alpha) switches the weights off. `retina_ray.ops.losses` has the same losses in dense form.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ClassLoss = Literal["focal", "quality_focal", "varifocal"]

Number = float | Tensor

# exp of it and its reciprocal are normal float32 numbers; softplus is the identity far below.
_LARGEST_EXPONENT = 80.0


def background_weight(kind: ClassLoss, alpha: Number) -> Number:
    """w_0, the weight of the classes that an anchor is not."""
    if kind == "quality_focal":
        return 1.0
    return _unless_off(alpha, 1 - alpha if kind == "focal" else alpha)


def background_factors(x: Tensor, gamma: Number) -> tuple[Tensor, Tensor, Tensor]:
    """The term of a class that an anchor is not, without w_0, in factors yet to be multiplied.

    Written for speed: one exponential, one logarithm, and no fresh memory where it can be avoided.
    They are `p**gamma`, `softplus(x)` and `gamma * (1 - p) * softplus(x) + p`: the first times the
    second is the loss, the first times the last its derivative.
    """
    t = x.clamp(max=_LARGEST_EXPONENT).exp_()
    one_more = t + 1
    complement = one_more.reciprocal()  # 1 - p, exact where p rounds to 1
    softplus = _log1p(t, one_more, complement)
    softplus = torch.maximum(softplus, x, out=softplus)  # beyond the clamp
    p = t.mul_(complement)
    modulation = _power(p, gamma)
    slope = complement.mul_(softplus)
    if isinstance(gamma, Tensor):
        return modulation, softplus, slope.mul_(gamma).add_(p)
    return modulation, softplus, p.add_(slope, alpha=gamma)


def own_term(
    x: Tensor, quality: Tensor | None, *, kind: ClassLoss, alpha: Number, gamma: Number
) -> tuple[Tensor, Tensor]:
    """The term of a positive anchor's own class, and its derivative, each of the shape of x.

    `quality` is q in [0, 1], None for "focal", which does not look at it.
    """
    if kind == "focal":  # the mirror image: the term of -x, and minus its derivative
        modulation, softplus, slope = background_factors(-x, gamma)
        weighted = modulation.mul_(_unless_off(alpha, alpha))
        return weighted * softplus, weighted.mul(slope).neg_()
    assert quality is not None
    quality = quality.to(x.dtype)
    p = torch.sigmoid(x)
    entropy = F.softplus(x) - quality * x
    if kind == "quality_focal":
        gap = p - quality
        modulation = _power(gap.abs(), gamma)
        slope = _power_slope(gap.abs(), modulation, gamma) * gap.sign() * p
        slope = slope * torch.sigmoid(-x)  # 1 - p, exact where p rounds to 1
        return modulation * entropy, modulation * gap + slope * entropy
    modulation, softplus, slope = background_factors(x, gamma)
    modulation = modulation * background_weight("varifocal", alpha)
    found = quality > 0
    return (
        torch.where(found, quality * entropy, modulation * softplus),
        torch.where(found, quality * (p - quality), modulation * slope),
    )


def every_term(
    x: Tensor,
    is_own: Tensor,
    quality: Tensor | None,
    *,
    kind: ClassLoss,
    alpha: Tensor,
    gamma: Tensor,
) -> tuple[Tensor, Tensor]:
    """Both terms at once, for a compiler to make one loop of: no step depends on the data.

    `is_own` (whether a logit is of its anchor's own class) and `quality` broadcast to x, of whose
    shape are the term of each logit and its derivative.
    """
    if kind == "focal":
        z = torch.where(is_own, -x, x)
        weight = torch.where(is_own, alpha, 1 - alpha)
        weight = torch.where(alpha < 0, torch.ones_like(weight), weight)
        p, complement, softplus, log_p = _sigmoid_and_logs(z)
        modulation = weight * torch.exp(gamma * log_p)
        derivative = modulation * (gamma * complement * softplus + p)
        return modulation * softplus, torch.where(is_own, -derivative, derivative)
    assert quality is not None
    p, complement, softplus, log_p = _sigmoid_and_logs(x)
    if kind == "quality_focal":
        target = torch.where(is_own, quality.to(x.dtype), torch.zeros_like(x))
        entropy = softplus - target * x
        gap = p - target
        distance = gap.abs().clamp(min=torch.finfo(x.dtype).tiny)
        modulation = torch.exp(gamma * distance.log())
        slope = gamma * (modulation / distance) * gap.sign() * p * complement
        return modulation * entropy, modulation * gap + slope * entropy
    quality = quality.to(x.dtype)
    modulation = torch.where(alpha < 0, torch.ones_like(alpha), alpha)
    modulation = modulation * torch.exp(gamma * log_p)
    found = is_own & (quality > 0)
    return (
        torch.where(found, quality * (softplus - quality * x), modulation * softplus),
        torch.where(
            found,
            quality * (p - quality),
            modulation * (gamma * complement * softplus + p),
        ),
    )


def _sigmoid_and_logs(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`p`, `1 - p`, `softplus(x)` and `log(p)`, each to full precision, from one exponential.

    log(p) is also x - softplus(x), but of a large x that difference keeps few digits.
    """
    t = torch.exp(-x.abs())
    one_more = 1 + t
    larger = 1 / one_more
    smaller = t * larger
    above = x >= 0
    p = torch.where(above, larger, smaller)
    complement = torch.where(above, smaller, larger)
    log_larger = -_log1p(t, one_more, larger)
    return p, complement, x.clamp(min=0) - log_larger, x.clamp(max=0) + log_larger


def _log1p(t: Tensor, one_more: Tensor, reciprocal: Tensor) -> Tensor:
    """`log(1 + t)` to full precision, given `1 + t` as rounded and the reciprocal of that.

    On a CPU, log1p takes five times as long as log. What the sum lost in rounding is known exactly
    there, and its share in the logarithm is that of the first order. A GPU's compiled logarithm is
    an approximation near 1.
    """
    if t.device.type != "cpu":
        return torch.log1p(t)
    lost = t - (one_more - 1)
    return torch.log(one_more) + lost * reciprocal


def _unless_off(alpha: Number, weight: Number) -> Number:
    """The weight, or 1 where alpha is negative."""
    if isinstance(alpha, Tensor):
        return torch.where(alpha < 0, torch.ones_like(alpha), weight)
    return weight if alpha >= 0 else 1.0


def _power(base: Tensor, exponent: Number) -> Tensor:
    """`base**exponent` in fresh memory; multiples of a half up to 6 without a general power.

    That one costs more than all the rest of the loss on a CPU.
    """
    if isinstance(exponent, Tensor) or 2 * exponent % 1 != 0 or not 0 <= exponent <= 6:
        return base.pow(exponent)
    whole = int(exponent)
    result = base.sqrt() if exponent != whole else None
    square = base
    while whole:
        if whole & 1:
            result = square.clone() if result is None else result.mul_(square)
        whole >>= 1
        if whole:
            square = square.square()
    return torch.ones_like(base) if result is None else result


def _power_slope(base: Tensor, power: Tensor, exponent: Number) -> Tensor:
    """Derivative of `base**exponent`; 0 at a base of 0, where that of a small exponent has none."""
    safe = base.clamp(min=torch.finfo(base.dtype).tiny)
    return torch.where(base > 0, power / safe * exponent, torch.zeros_like(base))
