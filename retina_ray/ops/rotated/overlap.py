"""The area that two rotated rectangles share, exactly and for many pairs at once.

A rectangle is the columns (x_center, y_center, width / 2, height / 2, cos, sin) of its
angle, counter-clockwise as seen on the image: pixels, y pointing down.

Shapes: P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

Columns = tuple[Tensor, ...]


def shared_area(a: Columns, b: Columns) -> Tensor:
    """Area that each rectangle of `a` shares with the one of `b` in the same row.

    In the frame of the smaller box, |x| <= w and |y| <= h, Green's theorem gives the area as an
    integral along the edges of the larger one alone: of clamp(x, -w, w) dy over the part of the
    edge within |y| <= h. No corners are collected or sorted, and nothing in it jumps, so parallel
    and coincident edges need no care.

    Returns:
        (P,) in square pixels, 0 to the area of the smaller one; of no meaning where a number is not
        finite or a side not positive.
    """
    w, h, x, y = _larger_in_frame_of_smaller(a, b)
    end_x, end_y = x.roll(-1, 0), y.roll(-1, 0)
    step_x, step_y = end_x - x, end_y - y
    y0 = torch.clamp(y, -h, h)
    y1 = y0.roll(-1, 0)
    level = step_y == 0  # contributes nothing, must only not divide by zero
    divisor = step_y.masked_fill(level, 1.0)
    x0 = x + ((y0 - y) / divisor).clamp_(0, 1) * step_x
    x1 = x + ((y1 - y) / divisor).clamp_(0, 1) * step_x

    # Mean of clamp(x, -w, w) from x0 to x1: shares of the way inside, below -w and above w.
    way = x1 - x0
    inside0, inside1 = torch.clamp(x0, -w, w), torch.clamp(x1, -w, w)
    inside = inside1 - inside0
    below = torch.minimum(x1, -w) - torch.minimum(x0, -w)
    above = way - inside - below
    total = 0.5 * inside * (inside0 + inside1) + w * (above - below)
    upright = way == 0
    mean = torch.where(upright, inside0, total / way.masked_fill(upright, 1.0))
    area = ((y1 - y0) * mean).sum(0)
    return torch.minimum(area.clamp(min=0), 4 * w * h)


def _larger_in_frame_of_smaller(a: Columns, b: Columns) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Half sides (P,) of the smaller box; corners x, y (4, P) of the other, seen from its centre.

    Distances from the smaller box's centre keep the digits that coordinates of the image lose.
    """
    first = a[2] * a[3] <= b[2] * b[3]
    small = [torch.where(first, of_a, of_b) for of_a, of_b in zip(a, b, strict=True)]
    large = [torch.where(first, of_b, of_a) for of_a, of_b in zip(a, b, strict=True)]
    x, y, w, h, cos, sin = small
    dx, dy = large[0] - x, large[1] - y
    center_x, center_y = dx * cos - dy * sin, dx * sin + dy * cos
    turn_cos = large[4] * cos + large[5] * sin
    turn_sin = large[5] * cos - large[4] * sin
    ux, uy = large[2] * turn_cos, -large[2] * turn_sin
    vx, vy = large[3] * turn_sin, large[3] * turn_cos
    px, py, mx, my = ux + vx, uy + vy, ux - vx, uy - vy
    corners_x = torch.stack((center_x - px, center_x + mx, center_x + px, center_x - mx))
    corners_y = torch.stack((center_y - py, center_y + my, center_y + py, center_y - my))
    return w, h, corners_x, corners_y
