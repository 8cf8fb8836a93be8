"""The box coder that a model's boxes need."""

from __future__ import annotations

from retina_ray.config import ModelConfig
from retina_ray.ops.box_coder import BoxCoder
from retina_ray.ops.postprocess import Coder
from retina_ray.ops.rotated.coder import RotatedBoxCoder

# A drawn rectangle has no front: rotated by 90 degrees, with width and height swapped, it is the
# same. The target is the description nearest to the anchor, so no two anchors are told to predict
# different numbers for what they see alike.
_SYMMETRY_DEG = 90


def make_coder(config: ModelConfig) -> Coder:
    """The coder for `config.box_type`, with its weights."""
    if config.box_type == "rotated":
        weights = (*config.box_weights, config.angle_weight)
        return RotatedBoxCoder(weights, symmetry_deg=_SYMMETRY_DEG)
    return BoxCoder(config.box_weights)
