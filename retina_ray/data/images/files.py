"""Reading image files on import: is it inside its folder, is it complete, how large is it really.

Needs numpy and cv2 only: no PyTorch.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

import cv2
import numpy as np

from retina_ray.data.images.headers import ImageHeader, read_header
from retina_ray.errors import SourceFileError
from retina_ray.storage.source_folder import SourceFolder

JPEG_QUALITY = 95

MAX_PIXELS = 180_000_000
"""Images of more pixels are refused before they are decoded: 0.5 GB as 8-bit RGB. The largest
cameras and most scans stay below it; a file of some kilobytes that claims more is a bomb."""

ENORMOUS = "enormous image"
"""Kind of the fault of an image of more pixels than allowed."""

_JPEG_START = b"\xff\xd8\xff"
_PNG_START = b"\x89PNG\r\n\x1a\n"
# Within a scan, FF is followed by 00 (a stuffed byte) or D0-D7 (restart): anything else ends it.
_JPEG_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


@dataclass(frozen=True)
class EncodedImage:
    """An image as it goes into a shard.

    Attributes:
        height: in pixels, of `data`.
        width: in pixels, of `data`.
        original_height: in pixels, of the file.
        original_width: in pixels, of the file.
        changes: what was done to the file's bytes: "resized", "orientation applied", "format
            changed"; empty where they are as they were.
    """

    data: bytes
    height: int
    width: int
    original_height: int
    original_width: int
    changes: tuple[str, ...] = ()


def read_image_file(folder: SourceFolder, file_name: str) -> bytes:
    """Read the bytes of an image.

    Args:
        folder: of the images.
        file_name: as the annotations give it, relative to the folder.

    Raises:
        SourceFileError: missing, unreadable, or not within the folder.
        StorageError: a remote storage does not answer.
    """
    try:
        return folder.read_bytes(file_name)
    except FileNotFoundError:
        message = f"{folder}/{file_name} does not exist"
        raise SourceFileError("missing image", message) from None
    except OSError as error:
        raise SourceFileError("unreadable image", f"cannot be read: {error}") from None


def load_image(
    data: bytes, *, max_size_px: int | None = None, max_pixels: int = MAX_PIXELS
) -> EncodedImage:
    """Decode an image file to see that it is complete, and re-encode it only where needed.

    JPEG and PNG files keep their bytes, except where the image is larger than `max_size_px` or its
    EXIF orientation rotates it: then the upright, smaller image is stored as JPEG of quality 95, so
    that every decoder sees the same pixels. BMP, GIF, WebP, TIFF and PNM become PNG.

    Args:
        data: the bytes of the file.
        max_size_px: the longer side is made at most this; None: as it is.
        max_pixels: height times width; an image whose header says more is not decoded.

    Returns:
        The image as it goes into a shard.

    Raises:
        SourceFileError: not an image, cut off, or enormous.
    """
    pixels = _decode_checked(data, max_pixels)
    height, width = pixels.shape[:2]
    changes = []
    if _is_rotated(data, pixels):
        changes.append("orientation applied")
    if max_size_px is not None and max(height, width) > max_size_px:
        pixels = _shrink(pixels, max_size_px)
        changes.append("resized")
    if changes:
        data = _encode(pixels, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    elif not data.startswith((_JPEG_START, _PNG_START)):
        data = _encode(pixels, ".png", [])
        changes.append("format changed")
    stored_height, stored_width = pixels.shape[:2]
    return EncodedImage(data, stored_height, stored_width, height, width, tuple(changes))


def decode_upright(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file that is not of a prepared set, judged and rotated as an import does.

    Args:
        data: the bytes of the file.
        max_pixels: height times width; an image whose header says more is not decoded.

    Returns:
        (H, W, 3) uint8 RGB, rotated and flipped as its EXIF says.

    Raises:
        SourceFileError: not an image, cut off, or enormous.
    """
    return cv2.cvtColor(_decode_checked(data, max_pixels), cv2.COLOR_BGR2RGB)


def encode_jpeg(pixels_rgb: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8 RGB as JPEG of quality 95."""
    bgr = cv2.cvtColor(pixels_rgb, cv2.COLOR_RGB2BGR)
    return _encode(bgr, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def _decode_checked(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode what is complete and not enormous to (H, W, 3) uint8 BGR, upright."""
    check_complete(data)
    check_size(read_header(data), max_pixels)
    return decode_pixels(data, cv2.IMREAD_COLOR)


def decode_pixels(data: bytes, flags: int) -> np.ndarray:
    """Decode to uint8 by OpenCV, with its flags: (H, W, 3) BGR, or (H, W) grey.

    Raises:
        SourceFileError: it cannot.
    """
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise SourceFileError("unreadable image", f"OpenCV cannot decode it: {error.err}") from None
    if pixels is None:
        raise SourceFileError("unreadable image", "not an image that OpenCV can decode")
    return np.asarray(pixels, np.uint8)


def _encode(pixels: np.ndarray, extension: str, options: list[int]) -> bytes:
    done, data = cv2.imencode(extension, pixels, options)
    assert done, "encoding a uint8 image to memory"
    return data.tobytes()


def _shrink(pixels: np.ndarray, max_size_px: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = max_size_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _is_rotated(data: bytes, pixels: np.ndarray) -> bool:
    """Whether EXIF orientation changed what was decoded; compared only where there is EXIF."""
    head = data[: 1 << 16]
    if b"Exif\0" not in head and b"eXIf" not in head:
        return False
    stored = decode_pixels(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return stored.shape != pixels.shape or not np.array_equal(stored, pixels)


def check_complete(data: bytes) -> None:
    """Refuse files that were cut off: decoders fill the rest with grey and say nothing.

    Raises:
        SourceFileError: empty, or a JPEG or PNG without its end.
    """
    if not data:
        raise SourceFileError("unreadable image", "the file is empty")
    is_jpeg, is_png = data.startswith(_JPEG_START), data.startswith(_PNG_START)
    if (is_jpeg and not _jpeg_is_complete(data)) or (is_png and not _png_is_complete(data)):
        raise SourceFileError(
            "truncated image",
            f"the file ends early or is damaged ({len(data)} bytes); copy it again",
        )


def check_size(header: ImageHeader | None, max_pixels: int) -> ImageHeader:
    """Refuse what would unfold to too many pixels, and what does not say how many they are.

    Whoever decodes files of others asks this before.

    Args:
        header: of the file; None where it has none that is known.
        max_pixels: height times width.

    Returns:
        The header, which says a size within the limit.

    Raises:
        SourceFileError: more pixels than the limit, or a header of no known format.
    """
    if header is None or header.height is None or header.width is None:
        raise SourceFileError(
            "unreadable image",
            "no header of a JPEG, PNG, BMP, GIF, WebP, TIFF or PNM image; convert it to one of "
            "them, or leave it out",
        )
    num_pixels = header.height * header.width
    if num_pixels > max_pixels:
        raise SourceFileError(
            ENORMOUS,
            f"{header.width} x {header.height} pixels by its header, {num_pixels} in all and more "
            f"than the limit of {max_pixels}: it was not decoded; cut it into tiles, or raise the "
            "limit",
        )
    return header


def _jpeg_is_complete(data: bytes) -> bool:
    """Walk the segments of a JPEG to its end marker."""
    at = 2
    while at + 1 < len(data):
        at = data.find(b"\xff", at)
        if at < 0:
            return False
        while at < len(data) and data[at] == 0xFF:
            at += 1
        if at >= len(data):
            return False
        marker = data[at]
        at += 1
        if marker == 0xD9:
            return True
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            continue
        start = at
        at += int.from_bytes(data[start : start + 2], "big")
        if marker == 0xDA:
            end = _JPEG_SCAN_END.search(data, at)
            if end is None:
                return False
            at = end.start()
    return False


def _png_is_complete(data: bytes) -> bool:
    """Walk the chunks of a PNG to its end, checking their sums."""
    at = len(_PNG_START)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + length]
        total = data[at + 8 + length : at + 12 + length]
        if len(total) < 4 or zlib.crc32(body) != int.from_bytes(total, "big"):
            return False
        if body[:4] == b"IEND":
            return True
        at += 12 + length
    return False
