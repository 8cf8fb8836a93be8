"""Look at an encoded image without keeping it: header, is it whole, and what it looks like.

The picture becomes a *look*: a perceptual hash of 64 bits and a thumbnail of 16 x 16 grey levels,
256 bytes in all, by which copies are found again that were re-encoded, shrunk, made brighter or cut
a little. The hash holds the signs of the 64 lowest frequencies but the mean of a cosine transform
of the picture at 32 x 32 (a form of pHash, C. Zauner, "Implementation and Benchmarking of
Perceptual Image Hash Functions", 2010, section 3.2.1). Two pictures are near-duplicates where their
hashes differ in at most `MAX_HASH_BITS` bits and their thumbnails in at most `MAX_LOOK_DISTANCE`.

Both limits were measured. Figures are for 364 images of BCCD, which are all microscope pictures of
cells and so the hard case, and 160 of COCO: the share of altered copies that is found, and the
distance of their thumbnails (median, worst).

    copy                      BCCD                     COCO
    JPEG of quality 50        100 %   0.0003 0.0011    100 %    0.0000 0.0005
    half the size             100 %   0.0003 0.0009    100 %    0.0000 0.0069
    20 levels brighter        100 %   0.0000 0.0002    100 %    0.0001 0.0168
    20 levels darker          100 %   0.0000 0.0002    100 %    0.0003 0.0058
    cut to 98 % a side        100 %   0.0069 0.0124    100 %    0.0041 0.0700
    cut to 95 % a side        99.5 %  0.0491 0.0860    98.1 %   0.0269 0.2029
    mirrored                  0 %     0.7658 1.2816    0 %      0.6149 1.6176

Of 66 066 pairs of different images of BCCD two lie within 11 bits (3 and 10), at distances of 0.012
and 0.082, and both show the same cells, the second shifted by 5 %; the next has 14 bits and 0.43.
Of 12 720 pairs of COCO none has less than 15 bits, and none a distance below 0.178. A difference
hash of 8 x 9 did a little worse. Mirrored and turned copies are not found, and shifted views mostly
not.

Needs numpy and cv2 only: no PyTorch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from retina_ray.data.images.files import MAX_PIXELS, check_size, check_whole
from retina_ray.data.images.headers import ImageHeader, read_header
from retina_ray.data.images.perceptual_hash import (
    _HASHED_PX,
    Look,
    look_of,
)
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
        look: None where the image was not decoded.
        problem: why it cannot be used, or None.
    """

    header: ImageHeader | None
    height: int | None
    width: int | None
    digest: bytes
    look: Look | None = None
    problem: SourceFileError | None = None


def probe_image(
    data: bytes,
    *,
    apply_orientation: bool = True,
    decode: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> ImageProbe:
    """Look at an encoded image: its header, whether it is whole, and whether it can be decoded.

    What the importers refuse is refused here, with their words: nothing is decoded whose header
    does not say its size, or says an enormous one.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is enough for its look: all of the
    file is read either way, what is saved is making pixels of it.

    Args:
        data: the file.
        apply_orientation: turn it as its EXIF says, which importing does; the images of a prepared
            set are taken as they are stored.
        decode: False: believe the header, and look only whether the end of the file is there.
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
        check_whole(data)
        known = check_size(header, max_pixels)
        if not decode:
            return ImageProbe(header, *size, digest)
        pixels, reduced = _decode_grey(data, known, apply_orientation)
    except SourceFileError as problem:
        return ImageProbe(header, *size, digest, problem=problem)
    if not reduced:
        size = (pixels.shape[0], pixels.shape[1])
    return ImageProbe(header, *size, digest, look_of(pixels))


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
        scale = next((s for s in (8, 4, 2) if shorter / s >= 2 * _HASHED_PX), 1)
    flags = _GREY[scale] | (0 if apply_orientation else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise SourceFileError("unreadable image", f"OpenCV cannot decode it: {error.err}") from None
    if pixels is None:
        raise SourceFileError("unreadable image", "not an image that OpenCV can decode")
    return np.asarray(pixels, np.uint8), scale > 1
