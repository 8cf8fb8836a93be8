"""What a check found: every kind of data issue with its weight, its number and its cases.

An *error* would stop an import or a training, or make its result wrong without a word. A *warning*
is what somebody should know and may have meant.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from retina_ray.errors import Fault

Severity = Literal["error", "warning"]

MAX_LISTED = 100_000
"""Cases of a kind that are kept; more are counted only, so that memory stays bounded."""


@dataclass(frozen=True)
class Kind:
    """A kind of data issue.

    Attributes:
        name: as it stands in `Fault.kind`.
        severity: see the module's text.
        advice: what it does to a training, and what to do.
    """

    name: str
    severity: Severity
    advice: str


@dataclass(frozen=True)
class Case:
    """One place where a kind of data issue was found."""

    split: str
    fault: Fault

    def __str__(self) -> str:
        return f"{self.split}: {self.fault}" if self.split else str(self.fault)


@dataclass
class Finding:
    """All cases of one kind.

    Attributes:
        cases: the first `MAX_LISTED` of them.
    """

    kind: Kind
    count: int = 0
    cases: list[Case] = field(default_factory=list)


class Findings:
    """Collects cases by kind, in bounded memory."""

    def __init__(self) -> None:
        self._by_kind: dict[str, Finding] = {}

    def add(self, split: str, faults: Iterable[Fault]) -> None:
        """Note faults of a split; one of a kind that `KINDS` lacks counts as an error."""
        for fault in faults:
            finding = self._by_kind.get(fault.kind)
            if finding is None:
                kind = KINDS.get(fault.kind) or Kind(fault.kind, "error", "")
                finding = self._by_kind[fault.kind] = Finding(kind)
            finding.count += 1
            if len(finding.cases) < MAX_LISTED:
                finding.cases.append(Case(split, fault))

    def sorted(self) -> list[Finding]:
        """Errors first, then in the order of `KINDS`; kinds that it lacks come first."""
        rank = {name: place for place, name in enumerate(KINDS)}
        return sorted(
            self._by_kind.values(),
            key=lambda f: (f.kind.severity != "error", rank.get(f.kind.name, -1)),
        )

    def count(self, severity: Severity) -> int:
        """How many cases of this weight there are."""
        found = self._by_kind.values()
        return sum(finding.count for finding in found if finding.kind.severity == severity)


_BOXES = "import with --on-bad-box drop or clip, or mend the annotations"
_IMAGES = "copy the files again, or import with --on-bad-image drop"
_IDS = "ids must be unique and known: mend the annotations"
_SHARDS = "copy the set again, or prepare it again"

_ERRORS = {
    "data set": "",
    "missing shard": _SHARDS,
    "damaged shard": _SHARDS,
    "unreadable shard": _SHARDS,
    "shard with other columns": _SHARDS,
    "shard that misplaces its images": _SHARDS,
    "fingerprint differs": f"the shards are not those described: {_SHARDS}",
    "counts differ": f"dataset.json does not fit the shards: {_SHARDS}",
    "split without images": "there is nothing to train on or to evaluate",
    "split without boxes": "there is nothing to train on or to evaluate",
    "classes differ between splits": (
        "labels would mean other things: give all splits the same categories, ids and order"
    ),
    "duplicate image id": _IDS,
    "duplicate annotation id": _IDS,
    "annotation of an unknown image": _IDS,
    "annotation of an unknown category": _IDS,
    "malformed box": _BOXES,
    "box is not finite": _BOXES,
    "box of zero or negative size": _BOXES,
    "box out of the image": _BOXES,
    "class is not in the list": _BOXES,
    "missing image": _IMAGES,
    "unreadable image": _IMAGES,
    "truncated image": _IMAGES,
    "annotated size differs from the image": (
        "boxes may lie elsewhere: find the right copy, or import with --on-bad-image drop"
    ),
    "enormous image": (
        "importing refuses it: cut it into tiles, shrink it, or import with --max-pixels"
    ),
    "image in two splits": "evaluating on what was trained on flatters: leave it out of one",
}
"""Advice by name."""

_WARNINGS = {
    "near-duplicate images across splits": (
        "evaluating on what was nearly trained on flatters: keep alike images in one split"
    ),
    "image twice in a split": "it counts double: leave one out",
    "near-duplicate images": "they count double: leave some out if not meant",
    "duplicate box": "two boxes for one object: the loss counts it double",
    "box under a pixel at the training size": (
        "it never reaches the loss at that size: train on larger images, or leave it out"
    ),
    "large image": (
        "decoding takes long and much memory: import with --max-size, or cut it into tiles"
    ),
    "CMYK JPEG": "colours depend on the decoder: convert it to RGB",
    "more than 8 bits": "the lower bits are cut off: convert it on purpose",
    "EXIF orientation": "look whether its boxes fit: importing rotates the image as EXIF says",
    "class without any box": "it cannot be learnt: leave it out of the list",
    "class missing from a split": "it is not trained, or not evaluated, there: its AP says nothing",
}
"""Advice by name."""

KINDS = {name: Kind(name, "error", advice) for name, advice in _ERRORS.items()} | {
    name: Kind(name, "warning", advice) for name, advice in _WARNINGS.items()
}
"""By name, in the order in which they are shown."""
