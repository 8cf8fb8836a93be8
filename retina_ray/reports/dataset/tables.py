"""The numbers of a data set's page: of each split, of the import, of each class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from retina_ray.reports.dataset.images import Album
from retina_ray.reports.dataset.splits import Split

_LOG_FACTOR = 20  # counts that differ by more get a log scale

Rows = dict[str, list[object]]
"""A value of each split, by what it is."""


def split_facts(splits: Sequence[Split], albums: Mapping[str, Album]) -> Rows:
    """What each split is and holds."""
    infos = [split.dataset.info for split in splits]
    return {
        "images": [len(split) for split in splits],
        "without boxes": [int((split.boxes_per_image == 0).sum()) for split in splits],
        "boxes": [len(split.single) for split in splits],
        "crowd regions": [int(split.crowd.sum()) for split in splits],
        "kind of boxes": [info.box_type for info in infos],
        "classes": [len(info.categories) for info in infos],
        "formats": [_formats(albums[split.name]) for split in splits],
        "size": [_bytes(sum(shard.num_bytes for shard in info.shards)) for info in infos],
        "source": [info.source or "-" for info in infos],
        "fingerprint": [info.fingerprint[:12] for info in infos],
    }


@dataclass(frozen=True)
class ImportReport:
    """What the imports of all splits dropped, clipped or changed; `examples`: split and words."""

    rows: Rows
    examples: list[tuple[str, str]]
    changed: bool


def import_report(splits: Sequence[Split]) -> ImportReport:
    """Read what the imports wrote down; nothing where the sets were not imported."""
    reports = [split.dataset.report for split in splits]
    keys = dict.fromkeys(key for report in reports for key in report if key != "examples")
    rows: Rows = {key: [report.get(key) for report in reports] for key in keys}
    changed = any(
        isinstance(value, int) and value
        for key, values in rows.items()
        if key.startswith(("dropped", "clipped"))
        for value in values
    )
    return ImportReport(
        rows={
            key.replace("_", " "): values
            for key, values in rows.items()
            if any(value not in (None, {}, []) for value in values)
        },
        examples=[
            (split.name, str(example))
            for split in splits
            for example in split.dataset.report.get("examples") or []
        ],
        changed=changed,
    )


class ClassBar(NamedTuple):
    """Boxes of a class in a split and images that hold them, and the lengths of their bars in %.

    Of a class that the split does not have, all are None.
    """

    split: str
    boxes: int | None = None
    images: int | None = None
    boxes_percent: float | None = None
    images_percent: float | None = None


@dataclass(frozen=True)
class ClassBars:
    """The classes with a bar for each split, most boxes first, on one scale."""

    classes: list[tuple[str, list[ClassBar]]]
    log: bool


def class_bars(splits: Sequence[Split]) -> ClassBars:
    """Count the boxes and images of each class; crowd regions are not counted."""
    counts = [split.box_counts() for split in splits]
    names = dict.fromkeys(name for of in counts for name in of)
    total = {name: sum(of.get(name, (0, 0))[0] for of in counts) for name in names}
    values = [number for of in counts for both in of.values() for number in both if number]
    top, low = max(values, default=1), min(values, default=1)
    log = top > _LOG_FACTOR * low

    def percent(number: int) -> float:
        if not number:
            return 0.0
        # The log scale starts at a half, so that a single box is seen too.
        return 100 * (math.log(2 * number) / math.log(2 * top) if log else number / top)

    def bar(split: str, both: tuple[int, int] | None) -> ClassBar:
        return ClassBar(split) if both is None else ClassBar(split, *both, *map(percent, both))

    return ClassBars(
        [
            (name, [bar(s.name, of.get(name)) for s, of in zip(splits, counts, strict=True)])
            for name in sorted(names, key=lambda name: -total[name])
        ],
        log,
    )


def _formats(album: Album) -> str:
    """Formats of the images in the row groups that were read."""
    total = sum(album.formats.values())
    if not total:
        return "not looked at"
    parts = ", ".join(f"{count:,} {kind}" for kind, count in album.formats.items())
    if total == len(album.split):
        return parts
    return f"{parts} in {total:,} looked at" if len(album.formats) > 1 else f"{parts} looked at"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
