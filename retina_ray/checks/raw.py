"""A split of a data set in its own format under check: COCO, Pascal VOC or YOLO."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Protocol

from retina_ray.checks.images import ImageItem
from retina_ray.data.images.files import read_image_file
from retina_ray.data.importers.box_checks import CheckedBoxes, ImportLog, check_boxes
from retina_ray.data.importers.raw import RawDataset, RawImage
from retina_ray.data.prepared.schema import Category
from retina_ray.errors import Fault


class RawReader(Protocol):
    """Reads the annotations of a split, and notes the faults of their structure."""

    def __call__(self, *, log: ImportLog) -> RawDataset:
        """Read them."""
        ...


class RawSplit:
    """The annotations of a split, read, with images that are not looked at yet.

    Attributes:
        categories: in the order of the labels.
        is_local: whether the images lie on a disk.

    Raises:
        DataError: the annotations cannot be read at all.
    """

    def __init__(self, name: str, read: RawReader) -> None:
        log = ImportLog()
        self._raw = read(log=log)
        self.name = name
        self.categories: list[Category] = list(self._raw.categories)
        self.num_images = len(self._raw.images)
        self.is_local = self._raw.folder.is_local
        self.faults: list[Fault] = log.faults

    def items(self) -> Iterator[ImageItem]:
        """Yield every image that the annotations name."""
        for image in self._raw.images:
            yield ImageItem(
                file_name=image.file_name,
                image_id=image.image_id,
                height=image.height,
                width=image.width,
                read=partial(read_image_file, self._raw.folder, image.file_name),
                boxes=partial(_usable_boxes, image),
            )


def _usable_boxes(image: RawImage, height: int, width: int) -> tuple[CheckedBoxes, list[Fault]]:
    log = ImportLog()
    return check_boxes(image, height=height, width=width, log=log), log.faults
