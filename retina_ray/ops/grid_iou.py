"""Overlaps of boxes with the anchors of a grid, taken apart into x and y.

All anchors of a column of cells have the same x and all of a row the same y. So a box overlaps the
anchors of a level by `width (A, W) * height (A, H)`: two small tables and one product, instead of
four comparisons for each of the H * W * A anchors.

*Grid order* is (A, H, W), in which the inner loops run over whole rows; *row order* is that of
anchors elsewhere, (y * W + x) * A + a.

Shapes: A anchors a cell, H and W cells of a level, M boxes. Boxes are XYXY in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retina_ray.ops.boxes import at_least_float32, box_area, is_proper


@dataclass(frozen=True)
class GridAxes:
    """The anchors of a level along either axis: edges in pixels, areas in square pixels."""

    x0: Tensor  # (A, W)
    x1: Tensor  # (A, W)
    y0: Tensor  # (A, H)
    y1: Tensor  # (A, H)
    area: Tensor  # (A, H, W)


@dataclass(frozen=True)
class GridOverlap:
    """What boxes and the anchors of a level have in common along either axis; 0 where nothing."""

    widths: Tensor  # (..., A, W)
    heights: Tensor  # (..., A, H)
    box_area: Tensor  # (...)
    anchor_area: Tensor  # (A, H, W)

    def iou(self) -> Tensor:
        """Intersection over union (..., A, H, W), equal to `box_iou` to the last bit."""
        overlap = self.widths[..., None, :] * self.heights[..., None]
        union = (self.anchor_area + self.box_area[..., None, None, None]).sub_(overlap)
        return overlap.div_(union)

    def window_iou(self, index: int, rows: slice, columns: slice) -> Tensor:
        """As `iou`, of one of the boxes (M,) with the anchors of some rows and columns."""
        overlap = self.widths[index, :, None, columns] * self.heights[index, :, rows, None]
        union = (self.anchor_area[:, rows, columns] + self.box_area[index]).sub_(overlap)
        return overlap.div_(union)

    def windows(self) -> list[tuple[slice, slice]]:
        """For each box (M,) the rows and columns of cells with an anchor that it overlaps.

        Both are empty where there is none. Waits for the device.
        """
        return list(zip(_spans(self.heights), _spans(self.widths), strict=True))


def grid_axes(anchors: Tensor, height: int, width: int) -> GridAxes:
    """Take the anchors (H * W * A, 4) of a level apart, row (y * W + x) * A + a.

    Raises:
        ValueError: they do not divide into H * W cells.
    """
    num_cells = height * width
    if len(anchors) % num_cells if num_cells else len(anchors):
        raise ValueError(f"{len(anchors)} anchors do not fill a grid of {height} x {width} cells")
    if num_cells == 0:
        none = anchors.new_zeros(1, width), anchors.new_zeros(1, height)
        return GridAxes(none[0], none[0], none[1], none[1], anchors.new_zeros(1, height, width))
    cells = at_least_float32(anchors).view(height, width, -1, 4)
    x0, x1 = cells[0, :, :, 0].t().contiguous(), cells[0, :, :, 2].t().contiguous()
    y0, y1 = cells[:, 0, :, 1].t().contiguous(), cells[:, 0, :, 3].t().contiguous()
    return GridAxes(x0, x1, y0, y1, (x1 - x0)[:, None] * (y1 - y0)[:, :, None])


def is_grid(anchors: Tensor, height: int, width: int) -> bool:
    """Whether all anchors of a column share their x and all of a row their y; waits for the device.

    They are (H * W * A, 4).
    """
    num_cells = height * width
    if num_cells == 0 or len(anchors) % num_cells:
        return False
    cells = anchors.view(height, width, -1, 4)
    same_x = cells[..., 0::2] == cells[:1, ..., 0::2]
    same_y = cells[..., 1::2] == cells[:, :1, :, 1::2]
    return bool(same_x.all() & same_y.all())


def grid_overlap(boxes: Tensor, axes: GridAxes) -> GridOverlap:
    """Compare boxes (..., 4), finite, with the anchors of a level along either axis."""
    x0, y0, x1, y1 = at_least_float32(boxes)[..., None, None, :].unbind(-1)
    widths = torch.minimum(x1, axes.x1).sub_(torch.maximum(x0, axes.x0)).clamp_(min=0)
    heights = torch.minimum(y1, axes.y1).sub_(torch.maximum(y0, axes.y0)).clamp_(min=0)
    return GridOverlap(widths, heights, box_area(boxes), axes.area)


def in_row_order(values: Tensor, axes: Sequence[GridAxes]) -> Tensor:
    """Bring values (..., R) of all levels from grid order into row order."""
    parts = []
    for part, level in zip(values.split([a.area.numel() for a in axes], -1), axes, strict=True):
        parts.append(part.unflatten(-1, level.area.shape).movedim(-3, -1).flatten(-3))
    return torch.cat(parts, -1)


def usable_boxes(boxes: Tensor) -> Tensor:
    """Boxes (..., 4) in float32, those that are not finite or have no area replaced by zeros."""
    boxes = at_least_float32(boxes)
    return boxes.masked_fill(~is_proper(boxes)[..., None], 0.0)


def _spans(overlap: Tensor) -> list[slice]:
    """For each box the cells in which the overlap (M, A, S) of any anchor is not 0."""
    num_boxes, _, num_cells = overlap.shape
    if num_cells == 0:
        return [slice(0, 0)] * num_boxes
    hit = (overlap > 0).any(1)
    cells = torch.arange(num_cells, device=hit.device)
    first = cells.where(hit, num_cells).amin(1).tolist()
    last = cells.where(hit, -1).amax(1).tolist()
    return [slice(a, max(a, b + 1)) for a, b in zip(first, last, strict=True)]
