"""Checking one image with its boxes, whatever kind of data set it comes from.

Shapes: M boxes of an image, K classes. Needs no state beside its arguments, so images are checked
in threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retina_ray.checks.boxes import DUPLICATE_BOX, TINY_BOX, repeated_boxes, tiny_boxes
from retina_ray.config import InputConfig
from retina_ray.data.images.files import ENORMOUS
from retina_ray.data.images.perceptual_hash import PerceptualHash
from retina_ray.data.images.probe import ImageProbe, probe_image
from retina_ray.data.importers.box_checks import CheckedBoxes
from retina_ray.errors import Fault, SourceFileError

LARGE_PIXELS = 50_000_000


@dataclass(frozen=True)
class CheckSettings:
    """What a check judges by.

    Attributes:
        train_size_px: shorter side in training; of several, the smallest.
        min_box_size_px: boxes with a side below this do not reach the loss.
        large_pixels: images of more are named; the importers' limit is beyond it.
        decode: False: look at headers and file ends only, and at no look-alikes.
    """

    train_size_px: int = min(InputConfig().train_sizes_px)
    train_max_size_px: int = InputConfig().train_max_size_px
    min_box_size_px: float = InputConfig().min_box_size_px
    large_pixels: int = LARGE_PIXELS
    decode: bool = True

    @classmethod
    def from_config(cls, config: InputConfig, *, decode: bool = True) -> CheckSettings:
        """Judge by a recipe's input."""
        return cls(
            train_size_px=min(config.train_sizes_px),
            train_max_size_px=config.train_max_size_px,
            min_box_size_px=config.min_box_size_px,
            decode=decode,
        )


@dataclass(frozen=True)
class ImageItem:
    """An image to be checked.

    Attributes:
        height: as annotated, pixels; None where it is not said.
        width: as annotated, pixels; None where it is not said.
        read: gives the file, or raises `SourceFileError`.
        boxes: takes the true height and width, gives the usable boxes and the faults of the others.
        apply_orientation: whether readers turn it as its EXIF says.
    """

    file_name: str
    image_id: int
    height: int | None
    width: int | None
    read: Callable[[], bytes]
    boxes: Callable[[int, int], tuple[CheckedBoxes, list[Fault]]]
    apply_orientation: bool = True


@dataclass(frozen=True)
class ImageResult:
    """What was found in an image.

    Attributes:
        faults: of the file and of its boxes.
        labels: (M,) classes of its usable boxes, without crowd regions.
        num_crowd: crowd regions.
        digest: of the file; None where it could not be read.
        perceptual_hash: None where it was not decoded.
    """

    item: ImageItem
    faults: list[Fault]
    labels: NDArray[np.int32]
    num_crowd: int
    digest: bytes | None
    perceptual_hash: PerceptualHash | None


def check_image(item: ImageItem, settings: CheckSettings) -> ImageResult:
    """Read an image, look at it, and judge its boxes by its true size."""
    faults: list[Fault] = []
    probe = None
    try:
        probe = probe_image(
            item.read(), apply_orientation=item.apply_orientation, decode=settings.decode
        )
    except SourceFileError as problem:
        faults.append(_fault(item, problem.kind, problem.message))
    height, width = item.height, item.width
    if probe is not None:
        faults += _file_faults(item, probe, settings)
        if probe.height and probe.width and not _is_too_large(probe):
            height, width = probe.height, probe.width
    labels, num_crowd = np.empty(0, np.int32), 0
    if height is not None and width is not None:
        checked, box_faults = item.boxes(height, width)
        faults += box_faults
        tiny = tiny_boxes(
            checked,
            (height, width),
            train_size_px=settings.train_size_px,
            train_max_size_px=settings.train_max_size_px,
            min_box_size_px=settings.min_box_size_px,
        )
        for kind, found in ((TINY_BOX, tiny), (DUPLICATE_BOX, repeated_boxes(checked))):
            faults += [_fault(item, kind, message, id_) for id_, message in found]
        labels = checked.labels[~checked.iscrowd]
        num_crowd = int(checked.iscrowd.sum())
    digest, perceptual_hash = (
        (probe.digest, probe.perceptual_hash) if probe is not None else (None, None)
    )
    return ImageResult(item, faults, labels, num_crowd, digest, perceptual_hash)


def _fault(item: ImageItem, kind: str, message: str, annotation_id: int | None = None) -> Fault:
    return Fault(kind, message, item.file_name, item.image_id, annotation_id)


def _is_too_large(probe: ImageProbe) -> bool:
    """Whether the header says a size that nobody should believe, nor decode."""
    return probe.problem is not None and probe.problem.kind == ENORMOUS


def _file_faults(item: ImageItem, probe: ImageProbe, settings: CheckSettings) -> Iterator[Fault]:
    """What is wrong with, or odd about, the file itself."""
    if probe.problem is not None:
        yield _fault(item, probe.problem.kind, probe.problem.message)
    size, annotated = (probe.height, probe.width), (item.height, item.width)
    if None not in size and None not in annotated and size != annotated:
        turned = size == annotated[::-1]
        hint = (
            "they are exchanged: perhaps an EXIF orientation that the annotator's tool did not "
            "apply"
            if turned
            else "the annotations may belong to another copy of the image"
        )
        message = (
            f"annotated {item.width} x {item.height} pixels, the file has "
            f"{probe.width} x {probe.height}; {hint}"
        )
        yield _fault(item, "annotated size differs from the image", message)
    header = probe.header
    if header is None:
        return
    num_pixels = header.num_pixels
    if num_pixels > settings.large_pixels and not _is_too_large(probe):
        message = (
            f"{header.width} x {header.height} pixels, {3 * num_pixels / 1e6:.0f} MB once decoded"
        )
        yield _fault(item, "large image", message)
    if header.format == "jpeg" and header.channels == 4:
        yield _fault(item, "CMYK JPEG", "has four channels (CMYK or YCCK) where RGB has three")
    if header.bits > 8:
        message = f"{header.format.upper()} of {header.bits} bits a sample; 8 are used"
        yield _fault(item, "more than 8 bits", message)
    if header.orientation != 1:
        message = f"EXIF orientation {header.orientation}: {_ORIENTATIONS[header.orientation]}"
        if not item.apply_orientation:
            message += "; the set is trained on as stored, not rotated"
        yield _fault(item, "EXIF orientation", message)


_ORIENTATIONS = {
    2: "stored flipped",
    3: "stored upside down",
    4: "stored upside down and flipped",
    5: "stored lying on its side and flipped",
    6: "stored lying on its side (rotated left)",
    7: "stored lying on its side and flipped",
    8: "stored lying on its side (rotated right)",
}
