"""Rotated boxes (x_center, y_center, width, height, angle): overlap, anchors, coder, suppression.

The aligned counterparts are `ops.boxes`, `ops.anchors` and `ops.box_coder`, on which these build.
"""

from retina_ray.ops.rotated.anchors import RotatedAnchorGenerator
from retina_ray.ops.rotated.boxes import (
    cos_sin_deg,
    enclosing_boxes,
    is_proper_rotated,
    paired_rotated_intersection,
    paired_rotated_iou,
    rotated_corners,
    rotated_from_aligned,
    rotated_iou,
    scale_rotated,
    wrap_angle,
)
from retina_ray.ops.rotated.coder import RotatedBoxCoder
from retina_ray.ops.rotated.nms import batched_rotated_nms

__all__ = [
    "RotatedAnchorGenerator",
    "RotatedBoxCoder",
    "batched_rotated_nms",
    "cos_sin_deg",
    "enclosing_boxes",
    "is_proper_rotated",
    "paired_rotated_intersection",
    "paired_rotated_iou",
    "rotated_corners",
    "rotated_from_aligned",
    "rotated_iou",
    "scale_rotated",
    "wrap_angle",
]
