"""Rotated anchor boxes of every cell of a pyramid (RRPN, arXiv:1703.01086, section III-C).

Shapes: A anchors a cell, H and W cells of a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from retina_ray.ops.anchors import AnchorGenerator, level_sizes

if TYPE_CHECKING:
    from retina_ray.config import ModelConfig


class RotatedAnchorGenerator(AnchorGenerator):
    """Makes the rotated anchors of a feature pyramid and keeps those of recent image sizes.

    As `AnchorGenerator`'s, and rotated by angles in degrees counter-clockwise. Anchor (size_index *
    num_ratios + ratio_index) * num_angles + angle_index of a cell has these indices, as in
    detectron2's generator of the same name.

    `cell_anchors` are (A, 5) and what a call returns is (H * W * A, 5); all else is as in
    `AnchorGenerator`.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[float],
        angles_deg: Sequence[float],
        strides: Sequence[int],
        offset: float = 0.5,
    ) -> None:
        """As `AnchorGenerator`; also refuses no angles, and those that are not finite."""
        if not len(angles_deg) or not all(math.isfinite(angle) for angle in angles_deg):
            raise ValueError(f"anchors: angles_deg: expected one or more degrees, got {angles_deg}")
        super().__init__(sizes, aspect_ratios, strides, offset)
        self._set_cells(
            [
                [
                    (0.0, 0.0, x1 - x0, y1 - y0, float(a))
                    for x0, y0, x1, y1 in cells
                    for a in angles_deg
                ]
                for cells in self._cells
            ]
        )

    @classmethod
    def from_config(cls, config: ModelConfig) -> RotatedAnchorGenerator:
        """The anchors that `config.anchors` describes on the levels of `config`."""
        return cls(
            sizes=level_sizes(config),
            aspect_ratios=config.anchors.aspect_ratios,
            angles_deg=config.anchors.angles_deg,
            strides=config.strides,
            offset=config.anchors.offset,
        )

    @staticmethod
    def _shifts(x: Tensor, y: Tensor) -> Tensor:
        zero = torch.zeros_like(x)
        return torch.stack((x, y, zero, zero, zero), -1)
