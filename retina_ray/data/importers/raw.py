"""What a reader of annotations hands on: images with their boxes, as they were found.

Each format has a reader, `read_coco`, `read_voc` and `read_yolo`, which looks at the annotations
only, never at pixels. Importing writes what was read as shards; checking looks at it and writes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from retina_ray.data.importers.box_checks import RawImage
from retina_ray.data.importers.sources import SourceFolder
from retina_ray.data.prepared.schema import BoxType, Category

__all__ = ["RawDataset"]


@dataclass(frozen=True)
class RawDataset:
    """Annotations as they were read; boxes and images are not checked yet.

    Attributes:
        images: with their raw boxes, in the order in which they would be written.
        categories: in the order of the labels.
        folder: what the file names of the images are relative to.
        source: where all of it came from, in words.
        box_type: "rotated": every raw box has a rotated one.
    """

    images: list[RawImage]
    categories: list[Category]
    folder: SourceFolder
    source: str
    box_type: BoxType = "aligned"
