"""Rotated boxes as offsets from rotated reference boxes (RRPN, arXiv:1703.01086, section III-D)."""

from __future__ import annotations

import torch
from torch import Tensor

from retina_ray.ops.box_coder import SCALE_CLAMP
from retina_ray.ops.boxes import at_least_float32
from retina_ray.ops.rotated.boxes import wrap_angle


class RotatedBoxCoder:
    """Turns rotated boxes into deltas (dx, dy, dw, dh, da) from reference boxes, and back.

    With the reference's x_a, y_a, w_a, h_a, angle a_a, and the box's x, y, w, h, a, as in
    detectron2's Box2BoxTransformRotated::

        dx = (x - x_a) / w_a      dw = log(w / w_a)      da = (a - a_a) in radians
        dy = (y - y_a) / h_a      dh = log(h / h_a)

    each times its weight. dx and dy are along the image's axes, not the box's.

    The same rectangle has several descriptions, and a box may be meant as any of them. The
    symmetry says which are the same box, and `encode` takes the one with the smallest rotation:

    - 360: a box has a front; da in [-180, 180) degrees. detectron2's rule.
    - 180: a rotation by 180 changes nothing; da in [-90, 90) degrees.
    - 90: nor does one by 90 with width and height swapped; da in [-45, 45).
    """

    def __init__(
        self,
        weights: tuple[float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 1.0),
        *,
        symmetry_deg: int = 360,
    ) -> None:
        """Take factors on (dx, dy, dw, dh, da), and the rotation after which a box is the same.

        Raises:
            ValueError: there are not five positive factors, or the symmetry is none of the above.
        """
        if len(weights) != 5 or not all(w > 0 for w in weights):
            raise ValueError(
                f"weights: expected five positive factors on (dx, dy, dw, dh, da), got {weights}"
            )
        if symmetry_deg not in (360, 180, 90):
            raise ValueError(f"symmetry_deg: expected 360, 180 or 90, got {symmetry_deg}")
        self.weights = tuple(float(w) for w in weights)
        self.symmetry_deg = int(symmetry_deg)

    def encode(self, reference: Tensor, target: Tensor) -> Tensor:
        """Deltas (..., 5) that lead from the reference boxes (..., 5) to the target boxes (..., 5).

        The boxes have positive sides; one of 0 in the target gives -inf.
        """
        x_a, y_a, w_a, h_a, angle_a = at_least_float32(reference).unbind(-1)
        x, y, w, h, angle = at_least_float32(target).unbind(-1)
        rotation = wrap_angle(angle - angle_a, 360 if self.symmetry_deg == 360 else 180)
        if self.symmetry_deg == 90:
            over, under = rotation >= 45, rotation < -45
            rotation = torch.where(over, rotation - 90, torch.where(under, rotation + 90, rotation))
            w, h = torch.where(over | under, h, w), torch.where(over | under, w, h)
        deltas = (
            (x - x_a) / w_a,
            (y - y_a) / h_a,
            torch.log(w / w_a),
            torch.log(h / h_a),
            torch.deg2rad(rotation),
        )
        parts = zip(deltas, self.weights, strict=True)
        # Numbers, not a tensor of weights: that would be copied to the device first.
        return torch.stack([delta * weight for delta, weight in parts], -1)

    def decode(self, deltas: Tensor, reference: Tensor) -> Tensor:
        """Boxes (..., 5) that deltas (..., 5) from reference boxes (..., 5) lead to.

        The inverse of `encode` up to the clamp, which is `BoxCoder`'s; with a symmetry below 360,
        up to another description of the same rectangle. Angles are in [-180, 180), and nothing is
        clipped to an image.
        """
        parts = zip(at_least_float32(deltas).unbind(-1), self.weights, strict=True)
        dx, dy, dw, dh, da = [delta / weight for delta, weight in parts]
        x_a, y_a, w_a, h_a, angle_a = at_least_float32(reference).unbind(-1)
        boxes = (
            x_a + dx * w_a,
            y_a + dy * h_a,
            w_a * dw.clamp(max=SCALE_CLAMP).exp(),
            h_a * dh.clamp(max=SCALE_CLAMP).exp(),
            wrap_angle(angle_a + torch.rad2deg(da)),
        )
        return torch.stack(boxes, -1)
