"""A data set's page as one HTML file that needs no other; what comes from outside is escaped."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from retina_ray.reports.dataset.figures import Chart
from retina_ray.reports.dataset.overlay import Palette, overlay
from retina_ray.reports.dataset.pictures import Mark, Shot
from retina_ray.reports.dataset.plots import LINE_STYLES, SERIES
from retina_ray.reports.dataset.style import STYLE

_MAX_CLASSES = 120  # rows of bars that are open when the page is
_LOG_FACTOR = 20  # counts that differ by more get a log scale
_TINY_PX = 200


@dataclass(frozen=True)
class Card:
    """An image as stored, and what training makes of it.

    Attributes:
        title: its file name.
        facts: a few words beside it.
        shots: the stored picture first.
    """

    title: str
    facts: str
    shots: Sequence[Shot]


def page(
    *, title: str, intro: str, sections: Sequence[tuple[str, str, str]], style: str = ""
) -> str:
    """Put the page together.

    Args:
        title: plain text.
        intro: HTML below it.
        sections: anchor, plain heading and HTML of each.
        style: rules that go beyond the common style sheet.
    """
    links = "".join(f'<a href="#{anchor}">{escape(head)}</a>' for anchor, head, _ in sections)
    body = "".join(
        f'<section id="{anchor}"><h2>{escape(head)}</h2>{html}</section>'
        for anchor, head, html in sections
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body>"
        f"<h1>{escape(title)}</h1>{intro}<nav>{links}</nav>{body}</body></html>\n"
    )


def facts(names: Sequence[str], rows: Mapping[str, Sequence[object]]) -> str:
    """A table with a column for each split; values that are equal everywhere are said once."""
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *names))
    lines = []
    for name, values in rows.items():
        cells = [_cell(value) for value in values]
        if len(cells) > 1 and len(set(cells)) == 1 and not isinstance(values[0], int):
            inner = f'<td colspan="{len(cells)}">{cells[0]}</td>'
        else:
            inner = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f"<tr><th>{escape(name)}</th>{inner}</tr>")
    body = "".join(lines)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def legend(names: Sequence[str], numbers: Iterable[int]) -> str:
    """The names of splits with their colours and line styles."""
    items = "".join(
        f'<span><i style="border-top-color:{SERIES[n % len(SERIES)]};'
        f'border-top-style:{LINE_STYLES[n % len(LINE_STYLES)]}"></i>{escape(names[n])}</span>'
        for n in numbers
    )
    return f'<div class="legend">{items}</div>'


def class_bars(
    names: Sequence[str], counts: Sequence[Mapping[str, tuple[int, int]]], splits: Sequence[str]
) -> str:
    """Bars of boxes and of images for each class, most boxes first.

    Args:
        names: of the classes.
        counts: for each split, boxes and images by class.
        splits: their names.
    """
    if not names:
        return "<p>There are no classes.</p>"
    total = {name: sum(of.get(name, (0, 0))[0] for of in counts) for name in names}
    order = sorted(names, key=lambda name: -total[name])
    values = [number for of in counts for both in of.values() for number in both if number]
    top, low = max(values, default=1), min(values, default=1)
    log = top > _LOG_FACTOR * low

    def percent(number: int) -> float:
        if not number:
            return 0.0
        # The log scale starts at a half, so that a single box is seen too.
        return 100 * (math.log(2 * number) / math.log(2 * top) if log else number / top)

    rows = [_class_row(name, counts, splits, percent) for name in order]
    scale = "log scale" if log else "linear scale"
    many = " many" * (len(rows) > 8)
    first, rest = rows[:_MAX_CLASSES], rows[_MAX_CLASSES:]
    html = (
        f"<p>Pale: boxes, dark: images that hold them; {scale}. Crowd regions are not counted.</p>"
        f"{legend(splits, range(len(splits)))}"
        f'<div class="classes{many}">{"".join(first)}</div>'
    )
    if rest:
        html += (
            f"<details><summary>{len(rest):,} more classes</summary>"
            f'<div class="classes many">{"".join(rest)}</div></details>'
        )
    return html


def _class_row(name: str, counts, splits: Sequence[str], percent) -> str:
    bars = []
    for number, (of, split) in enumerate(zip(counts, splits, strict=True)):
        colour = SERIES[number % len(SERIES)]
        if name not in of:
            words, boxes, images = '<span class="warn">no such class</span>', 0, 0
        else:
            boxes, images = of[name]
            words = (
                f"<span>{boxes:,} in {images:,}</span>"
                if boxes
                else '<span class="warn">none</span>'
            )
        bars.append(
            f'<div class="bar" title="{escape(split)}: {boxes:,} boxes in {images:,} images">'
            f'<span class="track"><b style="width:{percent(boxes):.1f}%;background:{colour}"></b>'
            f'<b style="width:{percent(images):.1f}%;background:{colour}"></b></span>{words}</div>'
        )
    return f'<div class="class"><span>{escape(name)}</span><div>{"".join(bars)}</div></div>'


def charts(items: Iterable[Chart], names: Sequence[str]) -> str:
    """Figures with their legends and notes."""
    wide: list[str] = []
    square: dict[str, list[str]] = {}  # those of one title stand in a row
    for chart in items:
        light, dark = (
            f"data:image/png;base64,{base64.b64encode(png).decode()}"
            for png in (chart.plot.light, chart.plot.dark)
        )
        notes = "".join(f"<div>{escape(note)}</div>" for note in chart.notes)
        words = escape(f"{chart.title}. {' '.join(chart.notes)}")
        html = (
            f'<figure class="chart"><h3>{escape(chart.title)}</h3>{legend(names, chart.splits)}'
            f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img alt="{words}" src="{light}"></picture><figcaption>{notes}</figcaption></figure>'
        )
        (square.setdefault(chart.title, []) if chart.square else wide).append(html)
    return f'<div class="charts">{"".join(wide)}</div>' + "".join(
        f'<div class="charts square">{"".join(row)}</div>' for row in square.values()
    )


def cards(items: Iterable[Card], names: Sequence[str]) -> str:
    """A row of pictures for each image."""
    parts = []
    for card in items:
        palette = Palette.of(card.shots[0].marks, len(names))
        shots = "".join(_shot(shot, names, palette) for shot in card.shots)
        parts.append(
            f'<article class="card"><header><h3>{escape(card.title)}</h3>'
            f'<p>{escape(card.facts)}</p></header><p class="key">'
            f"{_key(card.shots[0].marks, names, palette)}</p>"
            f'<div class="shots">{shots}</div></article>'
        )
    return f'<div class="cards">{"".join(parts)}</div>'


def loose_shots(items: Iterable[tuple[Shot, Sequence[str]]]) -> str:
    """Pictures one beside the other, each with the class names of its split."""
    shots = "".join(_shot(shot, names, Palette.of(shot.marks, len(names))) for shot, names in items)
    return f'<div class="shots loose">{shots}</div>'


def _shot(shot: Shot, names: Sequence[str], palette: Palette) -> str:
    size = f"{shot.width} x {shot.height} px"
    size = f"a part of {size}" if shot.cropped else f"{size}, {_boxes(shot.marks)}"
    if shot.problem:
        inner = f'<div class="none">{escape(shot.problem)}</div>'
        size = ""
    else:
        data = base64.b64encode(shot.jpeg).decode()
        tiny = ' class="tiny"' if max(shot.width, shot.height) < _TINY_PX else ""
        inner = (
            f'<img{tiny} alt="" width="{shot.width}" height="{shot.height}" loading="lazy" '
            f'src="data:image/jpeg;base64,{data}">'
            f"{overlay(shot, names, palette)}"
        )
    # Lines that the caption brings along are its own; the size goes on the last one.
    caption = "<br>".join(escape(line) for line in (*shot.caption.split("\n"), size) if line)
    return (
        f'<figure class="shot"><div class="frame" style="--a:{shot.width / shot.height:.4f}">'
        f"{inner}</div><figcaption>{caption}</figcaption></figure>"
    )


def _key(marks: Sequence[Mark], names: Sequence[str], palette: Palette) -> str:
    """The classes of a picture with their colours and how many boxes each has."""
    if not marks:
        return "no boxes"
    found = Counter(mark.label for mark in marks if not mark.crowd)
    crowd = Counter(mark.label for mark in marks if mark.crowd)
    items = [(label, f"{_name(names, label)} {count}") for label, count in found.most_common()]
    items += [
        (label, f"{_name(names, label)}: {count} crowd region{'s' * (count > 1)}, dashed")
        for label, count in crowd.most_common()
    ]
    return "".join(
        f'<span><i class="k{palette.number(label)}"></i>{escape(text)}</span>'
        for label, text in items
    )


def _boxes(marks: Sequence[Mark]) -> str:
    count = sum(not mark.crowd for mark in marks)
    return f"{count} box{'es' * (count != 1)}"


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if 0 <= label < len(names) else f"class {label}"


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "-" if value is None else str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return "<br>".join(f"{escape(str(k))}: {_cell(v)}" for k, v in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_cell, value)) or "-"
    return escape(str(value))
