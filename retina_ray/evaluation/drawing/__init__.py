"""Drawing true and predicted boxes on images, and laying images out in a sheet."""

from retina_ray.evaluation.drawing.boxes import AnnotatedImage
from retina_ray.evaluation.drawing.sheet import contact_sheet, write_png

__all__ = ["AnnotatedImage", "contact_sheet", "write_png"]
