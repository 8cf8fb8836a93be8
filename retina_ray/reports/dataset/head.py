"""The head of a data set's page: where it lies, its figures by split, and how it was imported."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from html import escape

from retina_ray.reports.dataset.page import facts
from retina_ray.reports.dataset.pictures import Album
from retina_ray.reports.dataset.splits import Split


def head(
    uri: str | os.PathLike[str],
    splits: Sequence[Split],
    albums: Mapping[str, Album],
) -> str:
    """Where the set lies, and its figures by split."""
    infos = [split.dataset.info for split in splits]
    rows: dict[str, list[object]] = {
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
    words = ""
    if len({info.categories for info in infos}) > 1:
        words = (
            '<p class="warn">The splits differ in their classes, or in the ids or the order of '
            "them: a run that trains on one and evaluates on another would refuse to start.</p>"
        )
    # Whoever gets the page need not get the key of the storage.
    place = re.sub(r"://[^/@]*@", "://", os.fspath(uri))
    names = [split.name for split in splits]
    return f'<p class="soft">{escape(place)}</p>{words}{facts(names, rows)}'


def import_reports(splits: Sequence[Split]) -> str:
    """What the import dropped, clipped or changed; examples and settings behind a click."""
    reports = [split.dataset.report for split in splits]
    keys = list(dict.fromkeys(key for report in reports for key in report if key != "examples"))
    if not keys:
        return ""
    names = [split.name for split in splits]
    rows = {key.replace("_", " "): [report.get(key) for report in reports] for key in keys}
    rows = {
        key: values for key, values in rows.items() if any(v not in (None, {}, []) for v in values)
    }
    examples = "".join(
        f"<li>{escape(name)}: {escape(str(example))}</li>"
        for name, report in zip(names, reports, strict=True)
        for example in report.get("examples") or []
    )
    changed = any(
        isinstance(report.get(key), int) and report[key]
        for report in reports
        for key in keys
        if key.startswith(("dropped", "clipped"))
    )
    return (
        f"<details{' open' * changed}><summary>What the import dropped or changed</summary>"
        f"{facts(names, rows)}<ul>{examples}</ul></details>"
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
