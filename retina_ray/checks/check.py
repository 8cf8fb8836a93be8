"""Check a data set: read all of it, and name everything that is wrong or odd, at once.

Split after split, image after image in threads; of an image only its perceptual hash stays in
memory (see `retina_ray.checks.duplicates`). Nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from retina_ray.checks.duplicates import DuplicateFinder
from retina_ray.checks.findings import Finding, Findings
from retina_ray.checks.formats import LayoutName, find_layout
from retina_ray.checks.images import CheckSettings, check_image
from retina_ray.checks.prepared import PreparedSplit
from retina_ray.checks.raw import RawSplit
from retina_ray.data.prepared.schema import Category
from retina_ray.errors import DataError, Fault
from retina_ray.storage.source_folder import map_ahead

OnImage = Callable[[str, int, int], None]
"""Called with (split, images done, images of the split)."""


@dataclass
class SplitSummary:
    """What a split holds.

    Attributes:
        categories: in the order of the labels.
        num_empty: of these, without a usable box.
        num_crowd: crowd regions.
        class_counts: usable boxes without crowd regions, by class name.
    """

    name: str
    categories: Sequence[Category]
    num_images: int = 0
    num_empty: int = 0
    num_crowd: int = 0
    class_counts: dict[str, int] = field(default_factory=dict)

    @property
    def num_boxes(self) -> int:
        """Usable boxes without crowd regions."""
        return sum(self.class_counts.values())


@dataclass(frozen=True)
class CheckReport:
    """All that a check found.

    Attributes:
        passed_over: splits that are only made of others.
        findings: errors first.
    """

    dataset: str
    layout: LayoutName
    settings: CheckSettings
    splits: list[SplitSummary]
    passed_over: tuple[str, ...]
    findings: list[Finding]
    num_errors: int
    num_warnings: int


def check_dataset(
    dataset: str | os.PathLike[str],
    *,
    settings: CheckSettings | None = None,
    root: str | None = None,
    on_image: OnImage | None = None,
) -> CheckReport:
    """Read a data set whole, and report all its data issues.

    Args:
        dataset: a prepared set, a folder of such, or a set in COCO's, VOC's or YOLO's layout.
        settings: what to judge by; None: the defaults of `InputConfig`.
        root: of YOLO's images, where the description's `path` does not lead to them.
        on_image: called after each image.

    Returns:
        The findings. Data issues raise nothing.

    Raises:
        DataError: it is no data set that is known.
    """
    settings = settings or CheckSettings()
    layout = find_layout(dataset, root=root)
    findings, finder, summaries = Findings(), DuplicateFinder(), []
    for name, open_split in layout.splits.items():
        try:
            split = open_split()
        except DataError as error:
            findings.add(name, error.faults)
            continue
        shown = name if len(layout.splits) > 1 else split.name
        summaries.append(_check_split(split, shown, settings, findings, finder, on_image))
    for split_name, fault in finder.faults():
        findings.add(split_name, [fault])
    for split_name, fault in _class_faults(summaries):
        findings.add(split_name, [fault])
    return CheckReport(
        dataset=os.fspath(dataset),
        layout=layout.name,
        settings=settings,
        splits=summaries,
        passed_over=layout.passed_over,
        findings=findings.sorted(),
        num_errors=findings.count("error"),
        num_warnings=findings.count("warning"),
    )


def _check_split(
    split: PreparedSplit | RawSplit,
    name: str,
    settings: CheckSettings,
    findings: Findings,
    finder: DuplicateFinder,
    on_image: OnImage | None,
) -> SplitSummary:
    """Check every image of a split."""
    summary = SplitSummary(name, split.categories)
    counts = np.zeros(len(split.categories), np.int64)
    results = map_ahead(
        partial(check_image, settings=settings), split.items(), is_local=split.is_local
    )
    for result in results:
        summary.num_images += 1
        summary.num_empty += not len(result.labels)
        summary.num_crowd += result.num_crowd
        counts += np.bincount(result.labels, minlength=len(counts)).astype(np.int64)
        findings.add(name, result.faults)
        finder.add(name, result)
        if on_image is not None:
            on_image(name, summary.num_images, split.num_images)
    findings.add(name, split.faults)
    names = [category.name for category in split.categories]
    summary.class_counts = dict(zip(names, counts.tolist(), strict=True))
    if not summary.num_images:
        findings.add(name, [Fault("split without images", "no image could be looked at")])
    elif not summary.num_boxes:
        message = f"none of the {summary.num_images} images has a usable box"
        findings.add(name, [Fault("split without boxes", message)])
    return summary


def _class_faults(summaries: Sequence[SplitSummary]) -> list[tuple[str, Fault]]:
    """Classes that differ between splits, that no split has, or that one lacks."""
    faults: list[tuple[str, Fault]] = []
    if not summaries:
        return faults
    first, *others = summaries
    for other in others:
        if difference := _first_difference(first, other):
            faults.append((other.name, Fault("classes differ between splits", difference)))
    names = dict.fromkeys(name for summary in summaries for name in summary.class_counts)
    for name in names:
        where = {s.name: s.class_counts.get(name, 0) for s in summaries}
        if not any(where.values()):
            faults.append(("", Fault("class without any box", f"{name!r} has none in any split")))
            continue
        there = ", ".join(f"{count} in {split}" for split, count in where.items() if count)
        faults += [
            (split, Fault("class missing from a split", f"{name!r} has none here, {there}"))
            for split, count in where.items()
            if not count
        ]
    return faults


def _first_difference(first: SplitSummary, other: SplitSummary) -> str | None:
    """Where the classes of two splits part, in words."""
    if list(first.categories) == list(other.categories):
        return None
    if len(first.categories) != len(other.categories):
        extra = {c.name for c in first.categories} ^ {c.name for c in other.categories}
        return (
            f"{len(other.categories)} classes here, {len(first.categories)} in {first.name}; only "
            f"one of them has {', '.join(sorted(extra)[:5]) or 'the rest'}"
        )
    for label, (one, two) in enumerate(zip(first.categories, other.categories, strict=True)):
        if one != two:
            return (
                f"label {label} is {two.name!r} (id {two.id}) here, {one.name!r} (id {one.id}) in "
                f"{first.name}"
            )
    return None
