"""Boxes as offsets from reference boxes (R-CNN, arXiv:1311.2524, appendix C)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from retina_ray.ops.boxes import at_least_float32

SCALE_CLAMP = math.log(1000.0 / 16)
"""Largest dw and dh (after division by the weights) that is decoded as it is.

It lets a 16 px anchor grow to 1000 px, as in Detectron; without a bound, an untrained model's
exp(dw) overflows."""


class BoxCoder:
    """Turns boxes into deltas (dx, dy, dw, dh) from reference boxes, and back.

    With the reference's centre (x_a, y_a), width w_a and height h_a, and the box's x, y, w, h
    (R-CNN, equations 6 to 9; Faster R-CNN, arXiv:1506.01497, equation 2)::

        dx = (x - x_a) / w_a      dw = log(w / w_a)
        dy = (y - y_a) / h_a      dh = log(h / h_a)

    each times its weight.
    """

    def __init__(self, weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)) -> None:
        """Take factors on (dx, dy, dw, dh).

        Raises:
            ValueError: there are not four positive ones.
        """
        if len(weights) != 4 or not all(w > 0 for w in weights):
            raise ValueError(
                f"weights: expected four positive factors on (dx, dy, dw, dh), got {weights}"
            )
        self.weights = tuple(float(w) for w in weights)

    def encode(self, reference: Tensor, target: Tensor) -> Tensor:
        """Deltas (..., 4) that lead from the reference boxes (..., 4) to the target boxes (..., 4).

        The boxes have positive sides; one of 0 in the target gives -inf.
        """
        centers_a, sides_a = _centers_and_sides(at_least_float32(reference))
        centers, sides = _centers_and_sides(at_least_float32(target))
        shift = (centers - centers_a) / sides_a
        log_scale = torch.log(sides / sides_a)
        return _times(torch.cat((shift, log_scale), -1), self.weights)

    def decode(self, deltas: Tensor, reference: Tensor) -> Tensor:
        """Boxes (..., 4) that deltas (..., 4) from reference boxes (..., 4) lead to.

        The inverse of `encode` up to the clamp; not clipped to any image.
        """
        deltas, reference = at_least_float32(deltas), at_least_float32(reference)
        deltas = _times(deltas, [1 / w for w in self.weights])
        centers_a, sides_a = _centers_and_sides(reference)
        centers = centers_a + deltas[..., :2] * sides_a
        half_sides = 0.5 * sides_a * deltas[..., 2:].clamp(max=SCALE_CLAMP).exp()
        return torch.cat((centers - half_sides, centers + half_sides), -1)


def _centers_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 2) centres (x, y) and (..., 2) sides (width, height)."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sides, sides


def _times(deltas: Tensor, factors: Sequence[float]) -> Tensor:
    """Scale dx, dy, dw, dh by numbers: a tensor of factors would be copied to the device first."""
    if all(factor == 1 for factor in factors):
        return deltas
    parts = zip(deltas.unbind(-1), factors, strict=True)
    return torch.stack([part * factor for part, factor in parts], -1)
