"""What makes COCO ground truth or results unfit for a metric, every fault as a line of text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_MAX_NAMED = 5  # how many faulty entries a line spells out


def coco_faults(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """What makes ground truth unfit to measure on, or results to be scored against it."""
    yield from _ground_truth_faults(ground_truth)
    yield from _result_faults(ground_truth, results)
    yield from _box_faults(ground_truth, results)


def _ground_truth_faults(ground_truth: Mapping[str, Any]) -> Iterator[str]:
    missing = [key for key in ("images", "annotations", "categories") if key not in ground_truth]
    if missing:
        yield f"ground truth: has no {', '.join(map(repr, missing))}: expected COCO's format"
        return
    annotations = ground_truth["annotations"]
    for key in ("images", "categories"):
        counts = Counter(entry["id"] for entry in ground_truth[key])
        if not counts:
            yield f"ground truth: '{key}' is empty"
        if repeated := sorted(i for i, count in counts.items() if count > 1):
            yield f"ground truth: {key} with the same id: {_some(repeated)}"
        field_name = "image_id" if key == "images" else "category_id"
        if unknown := sorted({a[field_name] for a in annotations} - set(counts)):
            yield f"ground truth: annotations with an unknown {field_name}: {_some(unknown)}"
    if all(annotation.get("iscrowd", 0) for annotation in annotations):
        yield (
            f"ground truth: {len(ground_truth['images'])} images without a single box (crowd "
            "regions aside), so no metric is defined: check the validation split"
        )


def _result_faults(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    for key, field_name in (("images", "image_id"), ("categories", "category_id")):
        known = {entry["id"] for entry in ground_truth.get(key, ())}
        if unknown := sorted({result[field_name] for result in results} - known):
            yield f"results: {field_name} not in the ground truth: {_some(unknown)}"
    broken = {
        result["image_id"]
        for result in results
        if not all(map(math.isfinite, (*result["bbox"], result["score"])))
    }
    if broken:
        yield f"results: a box or score that is not finite in images {_some(sorted(broken))}"


def _box_faults(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Boxes that are neither aligned (4 numbers) nor rotated (5), or of both kinds."""
    counts: Counter[int] = Counter()
    for what, entries, key in (
        ("ground truth", ground_truth.get("annotations", ()), "id"),
        ("results", results, "image_id"),
    ):
        lengths = [len(entry["bbox"]) for entry in entries]
        counts.update(lengths)
        named = "annotations" if key == "id" else "images"
        odd = [e.get(key) for e, n in zip(entries, lengths, strict=True) if n not in (4, 5)]
        if odd:
            yield f"{what}: a bbox of neither 4 nor 5 numbers in {named} {_some(odd)}"
    if counts[4] and counts[5]:
        yield (
            f"{counts[4]} boxes have 4 numbers and {counts[5]} have 5 (rotated): ground truth and "
            "results must have boxes of one kind"
        )
    broken = [
        annotation.get("id")
        for annotation in ground_truth.get("annotations", ())
        if len(box := annotation["bbox"]) == 5
        and not (all(map(math.isfinite, box)) and box[2] > 0 and box[3] > 0)
    ]
    if broken:
        yield f"ground truth: rotated boxes without an area in annotations {_some(broken)}"


def _some(values: Sequence[Any]) -> str:
    """Spell out the first values and count the rest."""
    rest = len(values) - _MAX_NAMED
    return ", ".join(map(str, values[:_MAX_NAMED])) + (f" and {rest} more" if rest > 0 else "")
