"""The detector (backbone, pyramid, head), its criterion, and loading weights of others."""

from retina_ray.model.criterion import RetinaNetCriterion
from retina_ray.model.retinanet import RetinaNet

__all__ = ["RetinaNet", "RetinaNetCriterion"]
