"""Arithmetic on rotated boxes: corners, enclosing boxes, scaling, overlaps.

A rotated box is (x_center, y_center, width, height, angle), `(..., 5)`: pixels, and degrees
counter-clockwise as seen on the image (y points down), so the width runs along (cos a, -sin a) and
the height along (sin a, cos a). Any angle is allowed; (w, h, a), (w, h, a + 180) and (h, w, a + 90)
are the same rectangle.

Results are float32 (float64 for float64 boxes), as in `retina_ray.ops.boxes`.

Shapes: M and R numbers of boxes, P number of pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retina_ray.ops.boxes import at_least_float32
from retina_ray.ops.rotated.overlap import Columns, shared_area

# Pairs computed at once: on a CPU temporaries that stay in its cache, on a GPU 32 MiB each.
_BLOCK_CPU = 2**14
_BLOCK_GPU = 2**21


def cos_sin_deg(angles_deg: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of angles (...) in degrees, exact (0, 1, -1) at multiples of 90."""
    angles_deg = at_least_float32(angles_deg)
    quarter = torch.round(angles_deg / 90)
    rest = torch.deg2rad(angles_deg - 90 * quarter)  # exact: |rest| <= 45 degrees
    cos, sin = rest.cos(), rest.sin()
    quarter = quarter.remainder(4)
    odd = (quarter == 1) | (quarter == 3)
    cos, sin = torch.where(odd, sin, cos), torch.where(odd, cos, sin)
    cos = torch.where((quarter == 1) | (quarter == 2), -cos, cos)
    return cos, torch.where(quarter >= 2, -sin, sin)


def wrap_angle(angles_deg: Tensor, period_deg: float = 360.0) -> Tensor:
    """The same angles (...) up to whole periods, in [-period / 2, period / 2).

    Those that are in the range already come back unchanged. The period is 360, or 180 where a
    rotation by 180 degrees changes nothing.
    """
    angles_deg = at_least_float32(angles_deg)
    half = period_deg / 2
    wrapped = angles_deg - period_deg * torch.floor(angles_deg / period_deg + 0.5)
    # Rounding can leave an angle near the seam on its wrong side.
    wrapped = torch.where(wrapped >= half, wrapped - period_deg, wrapped)
    return torch.where(wrapped < -half, wrapped + period_deg, wrapped)


def is_proper_rotated(boxes: Tensor) -> Tensor:
    """Whether each of the boxes (..., 5) is finite and has a positive width and height: (...)."""
    return torch.isfinite(boxes).all(-1) & (boxes[..., 2:4] > 0).all(-1)


def rotated_from_aligned(boxes: Tensor) -> Tensor:
    """Axis-aligned boxes (..., 4) XYXY as rotated boxes (..., 5) with an angle of 0."""
    boxes = at_least_float32(boxes)
    sides = boxes[..., 2:] - boxes[..., :2]
    centers = boxes[..., :2] + 0.5 * sides
    return torch.cat((centers, sides, torch.zeros_like(sides[..., :1])), -1)


def rotated_corners(boxes: Tensor) -> Tensor:
    """The corners (..., 4, 2), (x, y), of boxes (..., 5), clockwise as seen on the image.

    They are the top left, top right, bottom right and bottom left ones of the unrotated box.
    """
    x, y, width, height, angle = at_least_float32(boxes).unbind(-1)
    cos, sin = cos_sin_deg(angle)
    ux, uy = 0.5 * width * cos, -0.5 * width * sin
    vx, vy = 0.5 * height * sin, 0.5 * height * cos
    xs = torch.stack((x - ux - vx, x + ux - vx, x + ux + vx, x - ux + vx), -1)
    ys = torch.stack((y - uy - vy, y + uy - vy, y + uy + vy, y - uy + vy), -1)
    return torch.stack((xs, ys), -1)


def enclosing_boxes(boxes: Tensor) -> Tensor:
    """The smallest axis-aligned boxes (..., 4) XYXY around rotated boxes (..., 5).

    They are not clipped to any image; NaN stays NaN.
    """
    x, y, width, height, angle = at_least_float32(boxes).unbind(-1)
    cos, sin = (part.abs() for part in cos_sin_deg(angle))
    dx = 0.5 * (width * cos + height * sin)
    dy = 0.5 * (width * sin + height * cos)
    return torch.stack((x - dx, y - dy, x + dx, y + dy), -1)


def scale_rotated(boxes: Tensor, scale_x: float | Tensor, scale_y: float | Tensor) -> Tensor:
    """Carry boxes along when their image is resized.

    Unequal factors turn a rotated rectangle into a parallelogram. As in detectron2, the result has
    the lengths of its midlines and the direction of the one that was the height: exact for equal
    factors and for multiples of 90 degrees, an approximation otherwise.

    `boxes` are (..., 5), a scale is the new size over the old one; angles come out in [-180, 180].
    """
    x, y, width, height, angle = at_least_float32(boxes).unbind(-1)
    cos, sin = cos_sin_deg(angle)
    scaled = (
        x * scale_x,
        y * scale_y,
        width * torch.hypot(scale_x * cos, scale_y * sin),
        height * torch.hypot(scale_x * sin, scale_y * cos),
        torch.rad2deg(torch.atan2(scale_x * sin, scale_y * cos)),
    )
    return torch.stack(scaled, -1)


@torch.no_grad()
def rotated_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (M, R) of every box of `a` (M, 5) with every box of `b` (R, 5).

    Only pairs whose enclosing axis-aligned boxes meet are computed, exactly and in blocks of
    bounded memory. To list them, a CUDA device is waited for once. 0 where a box has no area or
    holds a NaN or an infinity.
    """
    a, b = at_least_float32(a), at_least_float32(b)
    pairs = _meeting(a, b).flatten().nonzero().squeeze(1)
    iou = a.new_zeros(len(a) * len(b))
    columns_a, columns_b = torch.stack(_columns(a)), torch.stack(_columns(b))
    block = _BLOCK_CPU if a.device.type == "cpu" else _BLOCK_GPU
    for part in pairs.split(block):
        row = torch.div(part, len(b), rounding_mode="floor")
        of_a = columns_a.index_select(1, row).unbind(0)
        of_b = columns_b.index_select(1, part - row * len(b)).unbind(0)
        iou[part] = _iou(of_a, of_b)
    return iou.view(len(a), len(b))


@torch.no_grad()
def paired_rotated_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (P, 5) row by row: (P,) in [0, 1].

    0 where a box has no area or holds a NaN or an infinity.
    """
    iou = _iou(_columns(at_least_float32(a)), _columns(at_least_float32(b)))
    return torch.where(is_proper_rotated(a) & is_proper_rotated(b), iou, 0.0)


@torch.no_grad()
def paired_rotated_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Area that boxes (P, 5) share row by row: (P,) in square pixels.

    0 where a box has no area or holds a NaN or an infinity.
    """
    area = shared_area(_columns(at_least_float32(a)), _columns(at_least_float32(b)))
    area = torch.where(is_proper_rotated(a) & is_proper_rotated(b), area, 0.0)
    return area.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)  # areas that overflow


def _meeting(a: Tensor, b: Tensor) -> Tensor:
    """(M, R) bool: whether the boxes are proper and their enclosing boxes meet."""
    nan = float("nan")  # compares as False with everything
    enclosing_a = enclosing_boxes(a).masked_fill(~is_proper_rotated(a)[:, None], nan)
    enclosing_b = enclosing_boxes(b).masked_fill(~is_proper_rotated(b)[:, None], nan)
    ax0, ay0, ax1, ay1 = enclosing_a[:, :, None].unbind(1)
    bx0, by0, bx1, by1 = enclosing_b.t().contiguous().unbind(0)
    # Not strictly: a box thinner than the rounding of its position still meets itself.
    meet = ax0 <= bx1
    return meet.logical_and_(bx0 <= ax1).logical_and_(ay0 <= by1).logical_and_(by0 <= ay1)


def _columns(boxes: Tensor) -> Columns:
    """What `shared_area` takes of boxes (P, 5)."""
    x, y, width, height, angle = boxes.unbind(-1)
    return x, y, 0.5 * width, 0.5 * height, *cos_sin_deg(angle)


def _iou(a: Columns, b: Columns) -> Tensor:
    intersection = shared_area(a, b)
    union = 4 * (a[2] * a[3] + b[2] * b[3]) - intersection
    # Areas that overflow or vanish in this type.
    return (intersection / union).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
