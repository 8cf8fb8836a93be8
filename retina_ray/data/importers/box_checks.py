"""What may be wrong with annotations, and what an import does about it.

Two policies. `on_bad_box` is for single boxes: zero or negative size, not a number, out of the
image, a class that the data set does not have, coordinates that cannot be read.

    error   name them all and write nothing (the default)
    drop    leave them out, and count them in the report
    clip    cut what sticks out at the border; leave out what cannot be mended

`on_bad_image` is for images that cannot be read, are missing, cut off or enormous, or have another
size than the annotations say: `error`, or `drop` (with their boxes). Faults of structure are errors
always: ids used twice, annotations of unknown images or categories, file names that leave the
folder.

A box that ends exactly on the border is fine. One that sticks out by at most `ROUNDING_PX` is an
artefact of rounding (COCO's two decimals, VOC's 0-based files): it is cut at the border whatever
the policy, counted as `rounded_boxes`, and keeps its annotated coordinates for evaluation.

A rotated box may reach beyond the image: only the aligned box around it is cut at the border. One
that lies outside is bad, as any other.

Needs numpy only: no PyTorch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.importers.raw import RawBox, RawImage
from retina_ray.errors import DataError, Fault

ROUNDING_PX = 1.0

# The kinds of fault that `on_bad_box` can forgive.
MALFORMED_BOX = "malformed box"
NOT_FINITE = "box is not finite"
ZERO_SIZE = "box of zero or negative size"
OUTSIDE = "box out of the image"
UNKNOWN_CLASS = "class is not in the list"
BOX_FAULTS = frozenset({MALFORMED_BOX, NOT_FINITE, ZERO_SIZE, OUTSIDE, UNKNOWN_CLASS})

_MAX_EXAMPLES = 20


@dataclass(frozen=True)
class CheckedBoxes:
    """The usable boxes of an image.

    Attributes:
        boxes: (M, 4) float64 XYXY within the image, not empty as float32 either.
        bbox: (M, 4) float64 XYWH for evaluation.
        labels: (M,) int32.
        iscrowd: (M,) bool.
        area: (M,) float64, px^2.
        annotation_id: (M,) int64.
        rotated: (M, 5) float64, in a set of rotated boxes.
    """

    boxes: np.ndarray
    bbox: np.ndarray
    labels: np.ndarray
    iscrowd: np.ndarray
    area: np.ndarray
    annotation_id: np.ndarray
    rotated: np.ndarray


class ImportLog:
    """Collects every fault of an import, and applies the two policies.

    Args:
        options: of the import; by default every fault makes it fail.

    Attributes:
        counts: what was changed, by name, for the report.
        dropped_boxes: by kind.
        dropped_images: by kind.
    """

    def __init__(self, options: ImportOptions | None = None) -> None:
        self.options = options or ImportOptions()
        self.faults: list[Fault] = []
        self.counts: Counter[str] = Counter()
        self.dropped_boxes: Counter[str] = Counter()
        self.dropped_images: Counter[str] = Counter()
        self._examples: list[str] = []

    def bad_structure(self, fault: Fault) -> None:
        """Note a fault that no policy forgives."""
        self.faults.append(fault)

    def bad_box(self, fault: Fault) -> None:
        """Note a box that cannot be used: an error, or left out."""
        if self.options.on_bad_box == "error":
            self.faults.append(fault)
        else:
            self.dropped_boxes[fault.kind] += 1
            self._note(f"box dropped: {fault}")

    def bad_image(self, fault: Fault) -> None:
        """Note an image that cannot be used: an error, or left out with its boxes."""
        if self.options.on_bad_image == "error":
            self.faults.append(fault)
        else:
            self.dropped_images[fault.kind] += 1
            self._note(f"image dropped: {fault}")

    def clipped_box(self, fault: Fault) -> None:
        """Note a box that was cut at the border."""
        self.counts["clipped_boxes"] += 1
        self._note(f"box clipped: {fault}")

    def _note(self, text: str) -> None:
        if len(self._examples) < _MAX_EXAMPLES:
            self._examples.append(text)

    def absorb(self, part: ImportLog) -> None:
        """Add what was noted on a part of the images; parts come in the order of the images."""
        self.faults += part.faults
        self.absorb_counts(part.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """What was changed and left out, as JSON can hold it; without the faults."""
        return {
            "counts": dict(self.counts),
            "dropped_boxes": dict(self.dropped_boxes),
            "dropped_images": dict(self.dropped_images),
            "examples": list(self._examples),
        }

    def absorb_counts(self, part: Mapping[str, Any]) -> None:
        """Add what `to_dict` gave of another log."""
        self.counts.update(part["counts"])
        self.dropped_boxes.update(part["dropped_boxes"])
        self.dropped_images.update(part["dropped_images"])
        for text in part["examples"]:
            self._note(text)

    def raise_if_faulty(self) -> None:
        """Raise all faults at once.

        Raises:
            DataError: there are any.
        """
        if self.faults:
            raise DataError(self.faults)

    def report(self) -> dict[str, Any]:
        """What goes into `dataset.json`: policies, counts by kind, the first few cases."""
        return {
            "on_bad_box": self.options.on_bad_box,
            "on_bad_image": self.options.on_bad_image,
            "dropped_boxes": self.dropped_boxes.total(),
            "dropped_boxes_by_kind": dict(self.dropped_boxes),
            "clipped_boxes": self.counts["clipped_boxes"],
            "rounded_boxes": self.counts["rounded_boxes"],
            "dropped_images": self.dropped_images.total(),
            "dropped_images_by_kind": dict(self.dropped_images),
            **{
                name: count
                for name, count in sorted(self.counts.items())
                if name not in ("clipped_boxes", "rounded_boxes")
            },
            "examples": list(self._examples),
        }


def repeated(values: Iterable[Any]) -> list[Any]:
    """The values that occur more than once, each once, in order of first appearance."""
    return [value for value, count in Counter(values).items() if count > 1]


def check_boxes(image: RawImage, *, height: int, width: int, log: ImportLog) -> CheckedBoxes:
    """Check every box of an image, and drop or clip by the log's policy.

    Args:
        image: with its raw boxes.
        height: true height in pixels.
        width: true width in pixels.
        log: receives the faults.

    Returns:
        What is left. Under the policy "error", bad boxes are in `log.faults` and not in here.
    """
    kept = [
        checked
        for raw in image.boxes
        if (checked := _check_box(raw, image, height=height, width=width, log=log)) is not None
    ]
    return CheckedBoxes(
        boxes=np.array([box.xyxy for box in kept], np.float64).reshape(-1, 4),
        bbox=np.array([box.xywh for box in kept], np.float64).reshape(-1, 4),
        labels=np.array([box.label for box in kept], np.int32),
        iscrowd=np.array([box.iscrowd for box in kept], np.bool_),
        area=np.array([box.area for box in kept], np.float64),
        annotation_id=np.array([box.annotation_id for box in kept], np.int64),
        rotated=np.array([box.rotated or () for box in kept], np.float64).reshape(-1, 5),
    )


def _check_box(
    raw: RawBox, image: RawImage, *, height: int, width: int, log: ImportLog
) -> RawBox | None:
    """Return the box, the clipped box, or None; the log knows why."""

    def fault(kind: str, message: str) -> Fault:
        text = f"{raw.where}: {message}" if raw.where else message
        return Fault(kind, text, image.file_name, image.image_id, raw.annotation_id)

    numbers = raw.rotated or raw.xyxy
    shown = "rotated (" if raw.rotated else "XYXY ("
    shown += ", ".join(f"{value:g}" for value in numbers) + ")"
    if raw.problem is not None:
        return log.bad_box(fault(*raw.problem))
    x0, y0, x1, y1 = raw.xyxy
    if not all(math.isfinite(value) for value in numbers):
        return log.bad_box(fault(NOT_FINITE, f"{shown} holds NaN or infinity"))
    sides = (x1 - x0, y1 - y0)
    if raw.rotated:  # that are not 0 as float32 either
        sides = tuple(np.asarray(raw.rotated[2:4], np.float32).tolist())
    if min(sides) <= 0:
        message = f"{shown} has width {sides[0]:g}, height {sides[1]:g}"
        return log.bad_box(fault(ZERO_SIZE, message))
    inside = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    overhang = max(-x0, -y0, x1 - width, y1 - height)
    limits = f"the image of {width} x {height} pixels"
    if _is_empty(inside):
        kind = OUTSIDE if overhang > 0 else ZERO_SIZE
        return log.bad_box(fault(kind, f"{shown} leaves nothing within {limits}"))
    cut = (inside[0], inside[1], inside[2] - inside[0], inside[3] - inside[1])
    if raw.rotated:
        return replace(raw, xyxy=inside, xywh=cut)
    if overhang <= 0:
        return raw
    if overhang <= ROUNDING_PX:
        log.counts["rounded_boxes"] += 1
        return replace(raw, xyxy=inside)
    problem = fault(OUTSIDE, f"{shown} sticks out of {limits} by {overhang:g} px")
    if log.options.on_bad_box != "clip":
        return log.bad_box(problem)
    log.clipped_box(problem)
    share = cut[2] * cut[3] / ((x1 - x0) * (y1 - y0))
    area = raw.area * share
    if not math.isfinite(area):  # of a box so large that its area was infinite
        area = cut[2] * cut[3]
    return replace(raw, xyxy=inside, xywh=cut, area=area)


def _is_empty(xyxy: tuple[float, float, float, float]) -> bool:
    """Whether nothing is left of a box once it is stored as float32."""
    x0, y0, x1, y1 = np.asarray(xyxy, np.float32)
    return bool(x1 <= x0 or y1 <= y0)
