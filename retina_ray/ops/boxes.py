"""Arithmetic on boxes: areas, overlaps, clipping.

Boxes are XYXY in absolute pixels, `(..., 4)`; pixel (i, j) covers `[j, j + 1) x [i, i + 1)`, so a
side is `x1 - x0` with no `+ 1`. Sizes are (height, width).

Results are float32 (float64 for float64 boxes): half precision has too few digits for coordinates
above a few hundred pixels, so it is widened first, under autocast too.

Shapes: M and R numbers of boxes, P number of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Widen integers and half precision to float32; leave float32 and float64 as they are."""
    return x if x.dtype == torch.float64 else x.float()


def box_area(boxes: Tensor) -> Tensor:
    """Area (...) of boxes (..., 4) in square pixels; 0 for those with a side of zero or less."""
    boxes = at_least_float32(boxes)
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def is_proper(boxes: Tensor) -> Tensor:
    """Whether each of the boxes (..., 4) is finite and has a positive width and height: (...)."""
    return torch.isfinite(boxes).all(-1) & (boxes[..., 2:] > boxes[..., :2]).all(-1)


@torch.no_grad()
def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (M, R) of every box of `a` (M, 4) with every box of `b` (R, 4).

    Made for assignment, where (M, R) is large: it works in place on three tensors of that size and
    is not differentiable (see `paired_iou` for losses). 0 where a box has no area or holds a NaN or
    an infinity.
    """
    a, b = at_least_float32(a), at_least_float32(b)
    ax0, ay0, ax1, ay1 = a[:, :, None].unbind(1)
    bx0, by0, bx1, by1 = b.t().contiguous().unbind(0)
    overlap = torch.minimum(ax1, bx1).sub_(torch.maximum(ax0, bx0)).clamp_(min=0)
    heights = torch.minimum(ay1, by1).sub_(torch.maximum(ay0, by0)).clamp_(min=0)
    overlap.mul_(heights)
    union = torch.add(box_area(a)[:, None], box_area(b), out=heights).sub_(overlap)
    # 0/0 (no area on either side) and everything that came from a NaN or an infinity.
    return overlap.div_(union).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def paired_overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of boxes (P, 4) row by row: (P,) each, in square pixels.

    Differentiable.
    """
    a, b = at_least_float32(a), at_least_float32(b)
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    sides = (high - low).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    return intersection, box_area(a) + box_area(b) - intersection


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (P, 4) row by row: (P,) in [0, 1].

    0 where neither box has an area; differentiable.
    """
    intersection, union = paired_overlap(a, b)
    empty = union <= 0
    # The division by 1 keeps the gradient of empty pairs finite; their intersection is 0.
    return intersection / union.masked_fill(empty, 1.0)


def clip_boxes(boxes: Tensor, size: Sequence[float] | Tensor) -> Tensor:
    """Move coordinates (..., 4) outside an image of size (height, width) to its border.

    NaN stays NaN.
    """
    boxes = at_least_float32(boxes)
    height, width = torch.as_tensor(size, dtype=boxes.dtype, device=boxes.device)
    return torch.minimum(boxes.clamp(min=0), torch.stack((width, height, width, height)))
