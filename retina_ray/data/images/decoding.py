"""From encoded bytes to pixels: (H, W, 3) uint8 RGB."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from retina_ray.data.images.files import check_complete
from retina_ray.data.images.headers import encoded_size
from retina_ray.errors import SourceFileError

Pixels = NDArray[np.uint8]

# Reduced and in RGB: the names of the grey flags, since each colour flag also has the bit for BGR,
# and OpenCV takes one order of colours only.
_REDUCED = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_COLOR_RGB,
}
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"


class DecodeError(ValueError):
    """An image cannot be decoded, or is not what its annotation says; the message is the reason."""


def decode_image(
    data: bytes,
    *,
    min_shorter_side: int | None = None,
    expected_size: tuple[int, int] | None = None,
) -> Pixels:
    """Decode an image to 8-bit RGB.

    Grey images become RGB, an alpha channel is dropped, 16 bits are scaled to 8. An EXIF
    orientation is ignored, since a prepared set's annotations are made in the coordinates of the
    stored pixels; for files of others there is `retina_ray.data.images.files.decode_upright`.

    Args:
        data: JPEG, PNG, or what else OpenCV reads.
        min_shorter_side: the image may come out smaller, by 1/2, 1/4 or 1/8, as long as its
            shorter side keeps this length. Only JPEGs do, since their decoder saves the work; a
            reduced side has ceil(side / factor) pixels, and a factor whose last pixel would lie
            by more than half outside the image is not used.
        expected_size: the (height, width) that the annotations were made for.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        DecodeError: empty, truncated, not an image, or of another size than expected.
    """
    if not data:
        raise DecodeError("the file is empty")
    size = encoded_size(data)
    _check_size(size, expected_size)
    factor = 1
    if data.startswith(_JPEG_START):
        if size is not None:
            factor = _reduction(size, min_shorter_side)
        if size is None or not data.endswith(_JPEG_END):
            # OpenCV fills what is missing with grey, without a word.
            _check_complete(data)
    image = _decode(data, factor)
    if size is None:
        _check_size(image.shape[:2], expected_size)
    return image


def _check_complete(data: bytes) -> None:
    """Refuse a JPEG without its end.

    Raises:
        DecodeError: it was cut off.
    """
    try:
        check_complete(data)
    except SourceFileError as error:
        raise DecodeError(f"the JPEG is truncated: {error.message}") from error


def _decode(data: bytes, factor: int) -> Pixels:
    """Decode whatever OpenCV reads.

    Raises:
        DecodeError: it does not.
    """
    try:
        flags = _REDUCED[factor] | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DecodeError(f"OpenCV refuses it: {' '.join(str(error).split())}") from error
    if image is None:
        raise DecodeError("not an image that OpenCV can decode: damaged, truncated or unknown")
    return np.asarray(image, np.uint8)


def _reduction(size: tuple[int, int], min_shorter_side: int | None) -> int:
    """Choose the largest factor that leaves enough pixels and keeps the edges in place."""
    if min_shorter_side is None:
        return 1
    for factor in (8, 4, 2):
        long_enough = -(-min(size) // factor) >= min_shorter_side
        outside = max(-side % factor for side in size)
        if long_enough and 2 * outside <= factor:
            return factor
    return 1


def _check_size(size: tuple[int, ...] | None, expected: tuple[int, int] | None) -> None:
    """Refuse an image of another size than its annotation."""
    if size is not None and expected is not None and tuple(size) != tuple(expected):
        raise DecodeError(
            f"the image has {size[1]} x {size[0]} pixels, its annotation says "
            f"{expected[1]} x {expected[0]}"
        )
