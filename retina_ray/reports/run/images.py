"""A run's page: images with true boxes and detections, and what is wrong in each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retina_ray.evaluation.errors import Verdict
from retina_ray.reports.dataset.images import Album, box_corners
from retina_ray.reports.html.colors import VERDICTS
from retina_ray.reports.html.overlay import Box, ShownImage, make_overlay
from retina_ray.reports.run.analysis import RunAnalysis

_CAUSES = {
    Verdict.CLASS: "{true} taken for {name}",
    Verdict.LOCATION: "{name} in the wrong place",
    Verdict.BOTH: "{name} of the wrong class and place",
    Verdict.DUPLICATE: "{name} found twice",
    Verdict.BACKGROUND: "{name} on background",
}
_MAX_CAUSES = 8  # that a caption spells out


@dataclass(frozen=True)
class JudgedImage:
    """An image with its true boxes and detections, and what is wrong with them in words."""

    image: ShownImage
    summary: str
    causes: str
    file_name: str
    image_id: int


def judged_images(
    analysis: RunAnalysis, album: Album, chosen: Sequence[int]
) -> Iterator[JudgedImage]:
    """Images of the validation set, by their number in the analysis, with what is found there."""
    image_ids = analysis.errors.matching.scene.image_ids
    position_of = {image_id: at for at, image_id in enumerate(album.split.image_ids.tolist())}
    scores = analysis.images
    for image in chosen:
        position = position_of[int(image_ids[image])]
        shot = album.stored(position)
        boxes, causes = _judge(analysis, image)
        right, wrong = int(scores.right[image]), int(scores.wrong[image])
        total = right + int(scores.lost[image])
        summary = f"F1 {scores.f1[image]:.2f}: {right} of {total} box{'es' * (total != 1)} found"
        summary += f", {wrong} detection{'s' * (wrong != 1)} wrong" if wrong else ""
        yield JudgedImage(
            ShownImage(shot.jpeg, make_overlay(boxes, shot.width, shot.height), shot.problem),
            summary,
            _cause_words(causes),
            album.split.file_names[position].as_py(),
            int(album.split.image_ids[position]),
        )


def _judge(analysis: RunAnalysis, image: int) -> tuple[list[Box], list[str]]:
    """The boxes of an image with their styles, and what is wrong, a few words for each error."""
    matching, scores = analysis.errors.matching, analysis.images
    scene, names = matching.scene, matching.scene.names
    found, true = scene.found_in(image), scene.true_in(image)
    boxes, causes = [], []
    found_corners = _corners(scene.found_box[found])
    for row, at in enumerate(range(found.start, found.stop)):
        kind = Verdict(int(scores.verdict[at])).name.lower()
        if kind not in VERDICTS:
            continue
        name, score = names[scene.found_label[at]], scene.found_score[at]
        cause = _cause(analysis, at)
        causes += [cause] if cause else []
        other = kind in ("class", "both", "background")
        overlap = (matching.other_iou if other else matching.same_iou)[at]
        words = f"{name} {score:.2f}: {cause or 'right'}, IoU {_floor(overlap)}"
        label = f"{name} {score:.2f}"
        boxes.append(Box(found_corners[row], f"v-{kind}", words, label, first=kind != "right"))
    corners = _corners(scene.true_box[true])
    for row, at in enumerate(range(true.start, true.stop)):
        name = names[scene.true_label[at]]
        if scene.crowd[at]:
            boxes.append(Box(corners[row], "true", f"{name}: crowd region", below=True))
        elif _is_lost(analysis, at):
            words = f"{name}: not found"
            boxes.append(Box(corners[row], "v-lost lost", words, f"{name} not found", first=True))
            causes += [f"{name} missed"] if scores.missed[at] else []
        else:
            boxes.append(Box(corners[row], "true", f"{name}: found", below=True))
    return boxes, causes


def _is_lost(analysis: RunAnalysis, at: int) -> bool:
    """Whether no detection above the threshold found a true box."""
    found_by = int(analysis.errors.matching.found_by[at])
    return found_by < 0 or analysis.images.verdict[found_by] != Verdict.RIGHT


def _cause(analysis: RunAnalysis, at: int) -> str:
    """What is wrong with a detection, in few words; empty where nothing is."""
    scene = analysis.errors.matching.scene
    name = scene.names[scene.found_label[at]]
    target = int(analysis.errors.target[at])
    true = scene.names[scene.true_label[target]] if target >= 0 else ""
    words = _CAUSES.get(Verdict(int(analysis.images.verdict[at])), "")
    return words.format(name=name, true=true)


def _cause_words(causes: Sequence[str]) -> str:
    """What is wrong in an image, each kind of error with its number."""
    if not causes:
        return "Nothing is wrong."
    counts = Counter(causes).most_common()
    parts = [f"{count} x {cause}" if count > 1 else cause for cause, count in counts]
    more = len(parts) - _MAX_CAUSES
    listed = "; ".join(parts[:_MAX_CAUSES]) + (f"; and {more} more" if more > 0 else "")
    return f"{listed}."


def _floor(iou: float) -> str:
    """An overlap of 0.499 is below the threshold, and must not read as 0.50."""
    return f"{math.floor(100 * iou) / 100:.2f}"


def _corners(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(M, 4, 2) corners of XYWH or rotated boxes."""
    if boxes.shape[1] == 4:
        boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return box_corners(boxes)
