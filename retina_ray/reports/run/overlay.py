"""True boxes and detections over a picture, coloured by what each detection is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

_FONT = 0.042  # letters' height as a share of the picture's width
_LETTER = 0.56  # a letter's width as a share of its height
_MAX_LETTERS, _MAX_TEXTS = 26, 12


@dataclass(frozen=True, eq=False)
class JudgedBox:
    """A box to draw.

    Attributes:
        corners: (4, 2) in pixels of the picture.
        kind: its style: `right`, the kind of an error, `lost` for a box that was not found, `true`
            for one that was.
        text: what to write beside it; empty: nothing.
        words: what the mouse shows.
    """

    corners: NDArray[np.float64]
    kind: str
    text: str
    words: str


def judged_overlay(boxes: Sequence[JudgedBox], *, width: int, height: int) -> str:
    """The SVG element that lies over a picture.

    Args:
        boxes: those that are not finite are left out.
        width: of the picture, pixels.
        height: of the picture, pixels.
    """
    boxes = [box for box in boxes if np.isfinite(box.corners).all()]
    # Large boxes first, so that small ones within them can be pointed at; true boxes at the bottom.
    boxes.sort(key=lambda box: (box.kind != "true", -np.ptp(box.corners, axis=0).prod()))
    halo = "".join(f"M{_points(box.corners)}Z" for box in boxes)
    shapes = "".join(
        f'<polygon class="{_css(box.kind)}" points="{_points(box.corners)}">'
        f"<title>{escape(box.words)}</title></polygon>"
        for box in boxes
    )
    texts = "".join(_texts(boxes, width, height))
    return (
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">'
        f'<path class="halo" d="{halo}"/>{shapes}{texts}</svg>'
    )


def _css(kind: str) -> str:
    return "true" if kind == "true" else f"v-{kind}" + " lost" * (kind == "lost")


def _texts(boxes: Sequence[JudgedBox], width: int, height: int) -> list[str]:
    """Words beside as many boxes as have room, those of errors first, large ones before small."""
    size = _FONT * width
    taken: list[tuple[float, float, float, float]] = []
    texts = []
    for box in sorted(boxes, key=lambda box: box.kind == "right"):
        text = box.text if len(box.text) <= _MAX_LETTERS else f"{box.text[: _MAX_LETTERS - 1]}…"
        if not text:
            continue
        (left, top), (_, bottom) = box.corners.min(axis=0), box.corners.max(axis=0)
        length = _LETTER * size * len(text)
        x = float(np.clip(left, 0.1 * size, max(0.1 * size, width - length - 0.1 * size)))
        above, below = float(top) - 0.3 * size, float(bottom) + 0.95 * size
        for y in (above, below, float(top) + 0.95 * size):
            place = (x, y - size, x + length, y + 0.2 * size)
            inside = place[1] >= 0 and place[3] <= height
            if inside and not any(_overlap(place, other) for other in taken):
                break
        else:
            continue
        taken.append(place)
        texts.append(
            f'<text class="{_css(box.kind)}" x="{x:.1f}" y="{y:.1f}" font-size="{size:.1f}" '
            f'textLength="{length:.1f}" lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
        )
        if len(texts) == _MAX_TEXTS:
            break
    return texts


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _points(corners: NDArray[np.float64]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in corners.tolist())
