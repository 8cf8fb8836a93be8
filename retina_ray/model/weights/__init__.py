"""Load weights of torchvision and detectron2, and write detectron2's.

Both train with anchors whose first centre is at (0, 0): set `model.anchors.offset` to 0.0 for their
detectors, or every box is off by half a stride. Files are read without running code from them
(`weights_only=True`, safetensors). What does not fit is refused, with all faults at once, and
leaves the model as it was.
"""

from retina_ray.model.weights.detectron2 import load_detectron2_retinanet, to_detectron2
from retina_ray.model.weights.torchvision import load_backbone, load_torchvision_retinanet

__all__ = [
    "load_backbone",
    "load_detectron2_retinanet",
    "load_torchvision_retinanet",
    "to_detectron2",
]
