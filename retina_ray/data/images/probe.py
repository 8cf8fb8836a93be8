"""What is known of an encoded image without keeping it: header, completeness, perceptual hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from retina_ray.data.images.files import (
    MAX_PIXELS,
    check_complete,
    check_size,
    decode_pixels,
)
from retina_ray.data.images.headers import ImageHeader, read_header
from retina_ray.data.images.perceptual_hash import HASHED_PX, PerceptualHash, perceptual_hash
from retina_ray.errors import SourceFileError

_GREY = {
    1: cv2.IMREAD_GRAYSCALE,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


@dataclass(frozen=True, eq=False)
class ImageProbe:
    """What is known of an encoded image.

    Attributes:
        header: what the file says of itself; None where it says nothing that can be read.
        height: in pixels as a reader sees it; None where nothing tells.
        width: in pixels as a reader sees it.
        digest: 16 bytes that differ for files that differ.
        perceptual_hash: None where the image was not decoded.
        problem: why it cannot be used, or None.
    """

    header: ImageHeader | None
    height: int | None
    width: int | None
    digest: bytes
    perceptual_hash: PerceptualHash | None = None
    problem: SourceFileError | None = None


def probe_image(
    data: bytes,
    *,
    apply_orientation: bool = True,
    decode: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> ImageProbe:
    """Probe an encoded image: its header, whether it is complete, whether it can be decoded.

    What the importers refuse is refused here, with their words: nothing is decoded whose header
    does not say its size, or says an enormous one.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is enough for its hash: all of
    the file is read either way, what is saved is making pixels of it.

    Args:
        data: the file.
        apply_orientation: rotate it as its EXIF says, which importing does; the images of a
            prepared set are taken as they are stored.
        decode: False: believe the header, and check only whether the end of the file is there.
        max_pixels: larger images are not decoded; the default is the importers' limit.

    Returns:
        What was found; faults are in `problem`, nothing is raised.
    """
    header = read_header(data)
    size: tuple[int | None, int | None] = (None, None)
    if header is not None:
        size = header.shown_size() if apply_orientation else (header.height, header.width)
    digest = hashlib.blake2b(data, digest_size=16).digest()
    try:
        check_complete(data)
        known = check_size(header, max_pixels)
        if not decode:
            return ImageProbe(header, *size, digest)
        pixels, reduced = _decode_grey(data, known, apply_orientation)
    except SourceFileError as problem:
        return ImageProbe(header, *size, digest, problem=problem)
    if not reduced:
        size = (pixels.shape[0], pixels.shape[1])
    return ImageProbe(header, *size, digest, perceptual_hash(pixels))


def _decode_grey(
    data: bytes, header: ImageHeader, apply_orientation: bool
) -> tuple[NDArray[np.uint8], bool]:
    """Decode to (H, W) uint8, and say whether at a reduced size.

    Raises:
        SourceFileError: OpenCV cannot.
    """
    scale = 1
    if header.format == "jpeg" and header.height and header.width:
        shorter = min(header.height, header.width)
        scale = next((s for s in (8, 4, 2) if shorter / s >= 2 * HASHED_PX), 1)
    flags = _GREY[scale] | (0 if apply_orientation else cv2.IMREAD_IGNORE_ORIENTATION)
    return decode_pixels(data, flags), scale > 1
