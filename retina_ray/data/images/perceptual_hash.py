"""Perceptual hashes: do two images look alike?"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

MAX_HASH_BITS = 11


MAX_LOOK_DISTANCE = 0.1


THUMBNAIL_PX = 16


_HASHED_PX = 32


_FLAT_LEVELS = 2.0
"""A thumbnail of a smaller standard deviation shows nothing that could be correlated."""


def _lowest_frequencies() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the 64 lowest frequencies without the mean, along the diagonals.

    Dealt out like cards to the four 16-bit bands of a hash, so that each band holds low and high
    ones: bands of high ones only would be alike in many smooth pictures, and slow to search.
    """
    places = sorted(((y, x) for y in range(12) for x in range(12)), key=lambda p: (sum(p), p[0]))
    chosen = np.array(places[1:65]).reshape(16, 4, 2).transpose(1, 0, 2).reshape(64, 2)
    return chosen[:, 0], chosen[:, 1]


_ROWS, _COLUMNS = _lowest_frequencies()


@dataclass(frozen=True, eq=False)
class Look:
    """What a picture looks like, in 264 bytes.

    Attributes:
        hash: 64 bits.
        thumbnail: (16, 16) uint8, grey.
    """

    hash: int
    thumbnail: NDArray[np.uint8]


def look_of(pixels: NDArray[np.uint8]) -> Look:
    """Take the look of a picture.

    Args:
        pixels: (H, W) uint8, grey.
    """
    small = cv2.resize(pixels, (_HASHED_PX, _HASHED_PX), interpolation=cv2.INTER_AREA)
    signs = cv2.dct(small.astype(np.float32))[_ROWS, _COLUMNS] > 0
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    thumbnail = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return Look(int.from_bytes(np.packbits(signs).tobytes(), "big"), thumbnail.astype(np.uint8))


def look_distances(some: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Measure how much thumbnails differ, pair by pair: 1 - their correlation.

    Brightness and contrast do not count, nor does a shift by one pixel of the thumbnail. Where one
    of the two is flat (an empty frame), there is nothing to correlate: then it is their mean
    difference in levels, over 20.

    Args:
        some: (P, 16, 16).
        others: (P, 16, 16).

    Returns:
        (P,) from 0, alike, to 2, inverted.
    """
    one, other = (x.reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX) for x in (some, others))
    spread = [x.reshape(-1, THUMBNAIL_PX**2).std(axis=1, dtype=np.float32) for x in (one, other)]
    flat = np.minimum(*spread) < _FLAT_LEVELS
    level = np.abs(one.astype(np.float32) - other).mean(axis=(1, 2)) / 20
    shifts = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    nearest = np.min([_shifted_distance(one, other, y, x) for y, x in shifts], axis=0)
    return np.where(flat, np.minimum(level, 2), np.clip(nearest, 0, 2)).astype(np.float32)


def _shifted_distance(
    one: NDArray[np.uint8], other: NDArray[np.uint8], y: int, x: int
) -> NDArray[np.float32]:
    """(P,) 1 - correlation of what two thumbnails share when one is moved by (y, x)."""

    def shared(thumbnails: NDArray[np.uint8], y: int, x: int) -> NDArray[np.float32]:
        rows = slice(max(0, y), THUMBNAIL_PX + min(0, y))
        columns = slice(max(0, x), THUMBNAIL_PX + min(0, x))
        part = thumbnails[:, rows, columns].astype(np.float32)
        return part - part.mean(axis=(1, 2), keepdims=True)

    a, b = shared(one, y, x), shared(other, -y, -x)
    size = np.sqrt((a**2).mean(axis=(1, 2)) * (b**2).mean(axis=(1, 2)))
    return 1 - (a * b).mean(axis=(1, 2)) / np.maximum(size, 1e-6)
