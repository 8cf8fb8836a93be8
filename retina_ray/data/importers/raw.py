"""What a reader of annotations hands on: images with their boxes, as they were found.

Each format has a reader, `read_coco`, `read_voc` and `read_yolo`, which looks at the annotations
only, never at pixels. Importing writes what was read as shards; checking looks at it and writes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from retina_ray.data.prepared.schema import BoxType, Category
from retina_ray.storage.source_folder import SourceFolder


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
    format: str
    source: str
    box_type: BoxType = "aligned"


@dataclass(frozen=True, slots=True)
class RawBox:
    """An annotation as an importer read it.

    Attributes:
        label: 0 to K-1; any where `problem` is set.
        xyxy: float64, absolute pixels.
        xywh: float64, exactly as annotated where the format is XYWH; kept for evaluation.
        area: px^2.
        problem: (kind, message) where the importer found the annotation bad already.
        rotated: (x_center, y_center, width, height, angle) in a set of rotated boxes; `xyxy` is
            then the aligned box around it.
        where: place in the annotation file, for messages, where an id alone would not find it.
    """

    annotation_id: int
    label: int
    xyxy: tuple[float, float, float, float]
    xywh: tuple[float, float, float, float]
    area: float
    iscrowd: bool = False
    problem: tuple[str, str] | None = None
    rotated: tuple[float, ...] | None = None
    where: str | None = None


@dataclass(frozen=True, slots=True)
class RawImage:
    """An image as an importer read it.

    Attributes:
        file_name: relative to the folder of images.
        height: as annotated, in pixels; None where the annotations do not say.
        width: as annotated, in pixels; None where the annotations do not say.
    """

    image_id: int
    file_name: str
    height: int | None
    width: int | None
    boxes: list[RawBox] = field(default_factory=list)
