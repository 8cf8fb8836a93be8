"""Reading image files on import: is it inside its folder, is it whole, how large is it really.

Needs numpy and cv2 only: no PyTorch.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import cv2
import numpy as np

__all__ = ["EncodedImage", "SourceFileError", "encode_jpeg", "load_image", "resolve_inside"]

JPEG_QUALITY = 95

_JPEG_START = b"\xff\xd8\xff"
_PNG_START = b"\x89PNG\r\n\x1a\n"
# Within a scan, FF is followed by 00 (a stuffed byte) or D0-D7 (restart): anything else ends it.
_JPEG_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


class SourceFileError(ValueError):
    """A file of the source, an image or its annotation, cannot be used.

    Attributes:
        kind: a few words that group alike faults.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message


@dataclass(frozen=True)
class EncodedImage:
    """An image as it goes into a shard.

    Attributes:
        data: JPEG or PNG.
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


def resolve_inside(folder: Path, file_name: str) -> Path:
    """Find a file that an annotation names, and refuse one that lies elsewhere.

    Args:
        folder: of the images; may itself be a link.
        file_name: relative to it; may name sub-folders.

    Returns:
        The file with links resolved; it need not exist.

    Raises:
        SourceFileError: the name is absolute, climbs out with `..`, or is a link to the outside.
    """
    kind = "file name leaves the folder"
    hint = "a file name must be relative and stay within the folder of the images"
    if not file_name or "\0" in file_name:
        raise SourceFileError(kind, f"{file_name!r} is not a file name")
    absolute = PurePosixPath(file_name).is_absolute() or PureWindowsPath(file_name).anchor
    parts = PurePosixPath(file_name.replace("\\", "/")).parts
    if absolute or ".." in parts:
        raise SourceFileError(kind, f"{file_name!r}: {hint}")
    base = folder.resolve()
    path = (base / file_name).resolve()
    if not path.is_relative_to(base):
        raise SourceFileError(kind, f"{file_name!r} is a link to {path}: {hint}; copy it in")
    return path


def load_image(path: Path, *, max_size_px: int | None = None) -> EncodedImage:
    """Read an image file, decode it to see that it is whole, and re-encode it only where needed.

    JPEG and PNG files keep their bytes, except where the image is larger than `max_size_px` or its
    EXIF orientation turns it: then the turned, smaller image is stored as JPEG of quality 95, so
    that every decoder sees the same pixels. Other formats that OpenCV knows become PNG.

    Args:
        path: of the file.
        max_size_px: the longer side is made at most this; None: as it is.

    Returns:
        The image as it goes into a shard.

    Raises:
        SourceFileError: missing, not an image, or cut off.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SourceFileError("missing image", f"{path} does not exist") from None
    except OSError as error:
        raise SourceFileError("unreadable image", f"cannot be read: {error}") from None
    _check_whole(data)
    pixels = _decode(data, cv2.IMREAD_COLOR)
    height, width = pixels.shape[:2]
    changes = []
    if _is_turned(data, pixels):
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


def encode_jpeg(pixels_rgb: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8 RGB as JPEG of quality 95."""
    bgr = cv2.cvtColor(pixels_rgb, cv2.COLOR_RGB2BGR)
    return _encode(bgr, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def _decode(data: bytes, flags: int) -> np.ndarray:
    """Decode to (H, W, 3) uint8 BGR."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise SourceFileError("unreadable image", f"OpenCV cannot decode it: {error.err}") from None
    if pixels is None:
        raise SourceFileError("unreadable image", "not an image that OpenCV can decode")
    return pixels


def _encode(pixels: np.ndarray, extension: str, options: list[int]) -> bytes:
    done, data = cv2.imencode(extension, pixels, options)
    assert done, "encoding a uint8 image to memory"
    return data.tobytes()


def _shrink(pixels: np.ndarray, max_size_px: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = max_size_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _is_turned(data: bytes, pixels: np.ndarray) -> bool:
    """Whether EXIF orientation changed what was decoded; compared only where there is EXIF."""
    head = data[: 1 << 16]
    if b"Exif\0" not in head and b"eXIf" not in head:
        return False
    stored = _decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return stored.shape != pixels.shape or not np.array_equal(stored, pixels)


def _check_whole(data: bytes) -> None:
    """Refuse files that were cut off: decoders fill the rest with grey and say nothing.

    Raises:
        SourceFileError: empty, or a JPEG or PNG without its end.
    """
    if not data:
        raise SourceFileError("unreadable image", "the file is empty")
    whole = True
    if data.startswith(_JPEG_START):
        whole = _jpeg_is_whole(data)
    elif data.startswith(_PNG_START):
        whole = _png_is_whole(data)
    if not whole:
        raise SourceFileError(
            "truncated image",
            f"the file ends early or is damaged ({len(data)} bytes); copy it again",
        )


def _jpeg_is_whole(data: bytes) -> bool:
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


def _png_is_whole(data: bytes) -> bool:
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
