"""Boxes over a picture, as SVG: sharp at any size, named where there is room, all by the mouse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from retina_ray.reports.dataset.pictures import Mark, Shot
from retina_ray.reports.dataset.style import BOX_COLOURS

_FONT = 0.046  # letters' height as a share of the picture's width
_LETTER = 0.57  # a letter's width as a share of its height
_MAX_LETTERS, _MAX_NAMES = 24, 14
_MAX_OF_CLASS = 2  # names of one class in a picture; its colour says the rest


@dataclass(frozen=True)
class Palette:
    """Numbers of colours by label; the same label has the same colour in all pictures of a card.

    Few classes have a colour each, whatever the picture. With more, the most frequent ones of a
    picture get colours of their own.
    """

    numbers: Mapping[int, int]

    @classmethod
    def of(cls, marks: Sequence[Mark], num_classes: int) -> Palette:
        """Choose the colours of a picture's classes."""
        if num_classes <= len(BOX_COLOURS):
            return cls({})
        labels = [label for label, _ in Counter(mark.label for mark in marks).most_common()]
        return cls({label: number for number, label in enumerate(labels)})

    def number(self, label: int) -> int:
        """The number of a label's colour."""
        return self.numbers.get(label, label if not self.numbers else label + 1) % len(BOX_COLOURS)


def overlay(shot: Shot, names: Sequence[str], palette: Palette) -> str:
    """The SVG element that lies over a picture.

    Args:
        shot: whose boxes are drawn; those that are not finite are left out.
        names: of the classes, by label.
        palette: their colours.
    """
    marks = [mark for mark in shot.marks if np.isfinite(mark.corners).all()]
    # Large boxes first, so that small ones within them can be pointed at.
    marks.sort(key=lambda mark: (not mark.pale, -np.ptp(mark.corners, axis=0).prod()))
    halo = "".join(f"M{_points(mark.corners, ' ')}Z" for mark in marks if not mark.pale)
    shapes = "".join(_shape(mark, names, palette) for mark in marks)
    texts = "".join(_texts(shot, marks, names, palette))
    return (
        f'<svg viewBox="0 0 {shot.width} {shot.height}" preserveAspectRatio="none">'
        f'<path class="halo" d="{halo}"/>{shapes}{texts}</svg>'
    )


def _shape(mark: Mark, names: Sequence[str], palette: Palette) -> str:
    extra = " crowd" * mark.crowd + " pale" * mark.pale
    return (
        f'<polygon class="c{palette.number(mark.label)}{extra}" points="{_points(mark.corners)}">'
        f"<title>{escape(_full_name(mark, names))}</title></polygon>"
    )


def _texts(shot: Shot, marks: Sequence[Mark], names: Sequence[str], palette: Palette) -> list[str]:
    """Names of as many boxes as have room for them, the largest boxes first."""
    size = _FONT * shot.width
    taken: list[tuple[float, float, float, float]] = []
    named: Counter[str] = Counter()
    texts: list[str] = []
    for mark in marks:
        text = _full_name(mark, names)
        text = text if len(text) <= _MAX_LETTERS else f"{text[: _MAX_LETTERS - 1]}\u2026"
        width = _LETTER * size * len(text)
        (left, top), (right, bottom) = mark.corners.min(axis=0), mark.corners.max(axis=0)
        if mark.pale or max(right - left, bottom - top) < 1.5 * size:
            continue
        if named[text] == _MAX_OF_CLASS:
            continue
        if right <= 0 or bottom <= 0 or left >= shot.width or top >= shot.height:
            continue
        x = min(
            max(float(left) + 0.15 * size, 0.1 * size), max(0.0, shot.width - width - 0.15 * size)
        )
        # Above the box, or inside it at the upper edge of the picture.
        y = float(top) - 0.3 * size if top > 1.2 * size else max(float(top), 0.0) + 0.95 * size
        place = (x, y - size, x + width, y + 0.2 * size)
        if y > shot.height or any(_overlap(place, other) for other in taken):
            continue
        taken.append(place)
        named[text] += 1
        texts.append(
            f'<text class="c{palette.number(mark.label)}" x="{x:.1f}" y="{y:.1f}" '
            f'font-size="{size:.1f}" textLength="{width:.1f}" lengthAdjust="spacingAndGlyphs">'
            f"{escape(text)}</text>"
        )
        if len(texts) == _MAX_NAMES:
            break
    return texts


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _full_name(mark: Mark, names: Sequence[str]) -> str:
    name = names[mark.label] if 0 <= mark.label < len(names) else f"class {mark.label}"
    return f"{name} (crowd)" if mark.crowd else name


def _points(corners: NDArray[np.float64], separator: str = " ") -> str:
    return separator.join(f"{x:.1f},{y:.1f}" for x, y in corners.tolist())
