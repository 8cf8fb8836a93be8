"""The largest IoU of each box with the anchors of its image, without looking at every cell.

Anchors of one shape on one level differ only in their centres. The overlap with a box along an axis
falls with the distance between the two centres, so of all columns the one whose centre is nearest
to the box's has the largest, and likewise of all rows; and for one shape the IoU rises with the
product of both. So the nearest cell has the largest IoU of its shape and level, and only that one
needs to be looked at. It is a cell of the real grid, the border's where a box is nearest to it.

Shapes: M boxes, L levels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from retina_ray.anchors.training_boxes import TrainingBoxes
from retina_ray.config import AnchorConfig, ModelConfig
from retina_ray.ops.boxes import box_area

# Twelve hundred steps an octave: far finer than any two sizes that a user means to be different.
_STEPS_PER_OCTAVE = 1200


def grid_size(padded: tuple[int, int], stride: int) -> tuple[int, int]:
    """Cells (H, W) of the level of this stride: every halving in the network rounds up."""
    return -(-padded[0] // stride), -(-padded[1] // stride)


class BestOverlaps:
    """Largest IoU of each box for any anchors on the levels of a model; shapes are kept.

    Settings that share a size and a ratio (neighbours on a grid of scales do) share the work.
    """

    def __init__(self, boxes: TrainingBoxes, model: ModelConfig) -> None:
        """Take the levels, their base sizes and the offset from a model's config.

        Args:
            boxes: to compare.
            model: its octave scales, ratios and scale do not matter here.
        """
        self._strides, self._offset = model.strides, model.anchors.offset
        self._sizes = torch.tensor(model.anchors.sizes, dtype=torch.float64)
        self._kept: dict[tuple[int, float], Tensor] = {}
        padded = boxes.padded_sizes()[boxes.image].t()
        y, x = (
            self._from_nearest(boxes.boxes[:, axis].double(), boxes.boxes[:, axis + 2], length)
            for axis, length in ((1, padded[0]), (0, padded[1]))
        )
        self._x, self._y = x, y
        self._area = box_area(boxes.boxes)

    def _from_nearest(self, low: Tensor, high: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Edges of the boxes (L, M) along one axis, from the nearest anchor centre of each level.

        Args:
            low: (M,) left or upper edges.
            high: (M,) right or lower edges.
            length: (M,) of the padded images.
        """
        stride = torch.tensor(self._strides, dtype=torch.float64)[:, None]
        num_cells = (length / stride).ceil()
        nearest = ((low + high) / 2 / stride - self._offset).round().clamp(min=0)
        center = (torch.minimum(nearest, num_cells - 1) + self._offset) * stride
        return (low - center).float(), (high - center).float()

    def of(self, anchors: AnchorConfig) -> Tensor:
        """(M,) largest IoU of each box with any anchor.

        Args:
            anchors: octave scales, ratios and scale are read; sizes and offset must be those of
                the model.
        """
        best = torch.zeros_like(self._area)
        for octave in anchors.octave_scales:
            for ratio in anchors.aspect_ratios:
                torch.maximum(best, self._of_shape(anchors.scale * octave, ratio), out=best)
        return best

    def _of_shape(self, factor: float, ratio: float) -> Tensor:
        """(M,) largest IoU with the anchors of one shape: a factor on all sizes, and a ratio."""
        key = (round(math.log2(factor) * _STEPS_PER_OCTAVE), ratio)
        if key not in self._kept:
            size = (self._sizes * factor)[:, None]
            width, height = size / math.sqrt(ratio), size * math.sqrt(ratio)  # (L, 1)
            overlap = _common(self._x, width.float()).mul_(_common(self._y, height.float()))
            union = self._area + (width * height).float() - overlap
            self._kept[key] = overlap.div_(union).amax(0)
        return self._kept[key]


def _common(edges: tuple[Tensor, Tensor], length: Tensor) -> Tensor:
    """What boxes, by their edges (L, M), share with a centred length (L, 1) along an axis."""
    low, high = edges
    return torch.minimum(high, length / 2).sub_(torch.maximum(low, -length / 2)).clamp_(min=0)
