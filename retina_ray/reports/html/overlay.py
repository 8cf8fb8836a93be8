"""Boxes over an image: sharp at any size, named where there is room, all by the mouse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_FONT = 0.044  # letters' height as a share of the image's width
_LETTER = 0.57  # a letter's width as a share of its height
_MAX_LETTERS, _MAX_LABELS = 26, 14
_MAX_EQUAL = 2  # equal labels in an image; colors say the rest


@dataclass(frozen=True, eq=False)
class Box:
    """A box to draw.

    Attributes:
        corners: (4, 2) in pixels of the image; not drawn where one is not finite.
        css: classes of its style.
        title: what the mouse shows.
        label: what to write beside it, if anything.
        below: drawn below the others, whatever its size.
        first: its label comes before those of others.
    """

    corners: NDArray[np.float64]
    css: str
    title: str
    label: str = ""
    below: bool = False
    first: bool = False

    @property
    def points(self) -> str:
        """The corners as SVG writes them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.corners.tolist())

    @property
    def ends(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        low, high = self.corners.min(axis=0).tolist(), self.corners.max(axis=0).tolist()
        return (*low, *high)


@dataclass(frozen=True)
class Label:
    """A text beside a box: place of its left end and its size in pixels of the image."""

    text: str
    css: str
    x: float
    y: float
    size: float
    length: float


@dataclass(frozen=True, eq=False)
class Overlay:
    """What lies over an image of `width` x `height` pixels, in the order of drawing."""

    width: int
    height: int
    boxes: Sequence[Box]
    labels: Sequence[Label]


@dataclass(frozen=True)
class ShownImage:
    """An image on a page, maybe smaller than its overlay says; empty where there is a problem."""

    jpeg: bytes
    overlay: Overlay
    problem: str = ""


def make_overlay(boxes: Sequence[Box], width: int, height: int) -> Overlay:
    """Sort boxes so that small ones can be pointed at, and find places for their labels."""
    shown = [box for box in boxes if np.isfinite(box.corners).all()]
    shown.sort(key=lambda box: (not box.below, -np.ptp(box.corners, axis=0).prod()))
    return Overlay(width, height, shown, list(_labels(shown, width, height)))


def _labels(boxes: Sequence[Box], width: int, height: int) -> Iterator[Label]:
    """As many as have room: the first ones, then those of large boxes before small."""
    size = _FONT * width
    taken: list[tuple[float, float, float, float]] = []
    written: Counter[str] = Counter()
    for box in sorted(boxes, key=lambda box: not box.first):
        text = box.label
        text = text if len(text) <= _MAX_LETTERS else f"{text[: _MAX_LETTERS - 1]}\u2026"
        left, top, right, bottom = box.ends
        outside = right <= 0 or bottom <= 0 or left >= width or top >= height
        if not text or outside or written[text] == _MAX_EQUAL:
            continue
        length = _LETTER * size * len(text)
        x = float(np.clip(left, 0.1 * size, max(0.1 * size, width - length - 0.1 * size)))
        for y in (top - 0.3 * size, bottom + 0.95 * size, max(top, 0.0) + 0.95 * size):
            place = (x, y - size, x + length, y + 0.2 * size)
            inside = place[1] >= 0 and place[3] <= height
            if inside and not any(_meet(place, other) for other in taken):
                taken.append(place)
                written[text] += 1
                yield Label(text, box.css, x, y, size, length)
                break
        if len(taken) == _MAX_LABELS:
            return


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
