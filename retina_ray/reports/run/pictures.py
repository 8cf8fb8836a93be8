"""A run's page: images with true boxes and detections, and what is wrong in each."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Sequence
from html import escape

import numpy as np
import torch
from numpy.typing import NDArray

from retina_ray.evaluation.errors import Verdict
from retina_ray.ops.rotated.boxes import rotated_corners
from retina_ray.reports.dataset.pictures import Album
from retina_ray.reports.run.analysis import RunAnalysis
from retina_ray.reports.run.overlay import JudgedBox, judged_overlay

KINDS = {
    Verdict.RIGHT: "right",
    Verdict.CLASS: "class",
    Verdict.LOCATION: "location",
    Verdict.BOTH: "both",
    Verdict.DUPLICATE: "duplicate",
    Verdict.BACKGROUND: "background",
}
"""Styles of detections by what they are."""

_MAX_CAUSES = 8  # that a caption spells out


def worst_images(analysis: RunAnalysis, album: Album, number: int) -> str:
    """The images with the lowest F1."""
    chosen = analysis.images.worst(number)
    if not chosen:
        return "<p>No image has an error at this threshold.</p>"
    intro = (
        f"<p>{_the_images(len(chosen))} with the lowest F1 (of boxes found and detections that are "
        f"right), at IoU 0.5 and scores from {analysis.images.score_threshold:.2f} on, the "
        "threshold with the best F1 over all. Among equals, those with more errors come first. "
        "Look for what they share: a size, a class, a kind of picture, or mistakes of the "
        "annotation, which show here as well.</p>"
    )
    return intro + colour_key() + _figures(analysis, album, chosen)


def best_images(analysis: RunAnalysis, album: Album, number: int) -> str:
    """The images with the highest F1."""
    chosen = analysis.images.best(number)
    if not chosen:
        return "<p>No image has a box that was found at this threshold.</p>"
    intro = (
        f"<p>{_the_images(len(chosen))} with the highest F1; among equals, those with more boxes "
        "found.</p>"
    )
    return intro + _figures(analysis, album, chosen)


def _the_images(number: int) -> str:
    return "The image" if number == 1 else f"The {number} images"


def colour_key() -> str:
    """What the colours in the pictures mean."""
    words = {
        "right": "right",
        "location": "wrong place",
        "class": "wrong class",
        "both": "wrong class and place",
        "duplicate": "found twice",
        "background": "on background",
    }
    items = "".join(f'<span><i class="v-{name}"></i>{text}</span>' for name, text in words.items())
    return (
        f'<p class="verdicts">{items}<span><i class="v-lost lost"></i>box not found</span>'
        '<span><i class="true"></i>box found</span></p>'
    )


def _figures(analysis: RunAnalysis, album: Album, chosen: Sequence[int]) -> str:
    scene = analysis.errors.matching.scene
    position = {image_id: at for at, image_id in enumerate(album.split.image_ids.tolist())}
    figures = "".join(
        _figure(analysis, album, image, position[int(scene.image_ids[image])]) for image in chosen
    )
    return f'<div class="judged">{figures}</div>'


def _figure(analysis: RunAnalysis, album: Album, image: int, position: int) -> str:
    shot, split = album.stored(position), album.split
    file_name = split.file_names[position].as_py()
    boxes, causes = _judge(analysis, image)
    if shot.problem:
        picture = f'<div class="none">{escape(shot.problem)}</div>'
    else:
        data = base64.b64encode(shot.jpeg).decode()
        picture = (
            f'<img alt="" width="{shot.width}" height="{shot.height}" loading="lazy" '
            f'src="data:image/jpeg;base64,{data}">'
            f"{judged_overlay(boxes, width=shot.width, height=shot.height)}"
        )
    scores = analysis.images
    right, wrong = int(scores.right[image]), int(scores.wrong[image])
    total = right + int(scores.lost[image])
    summary = f"F1 {scores.f1[image]:.2f}: {right} of {total} box{'es' * (total != 1)} found"
    summary += f", {wrong} detection{'s' * (wrong != 1)} wrong" if wrong else ""
    return (
        f'<figure><div class="frame">{picture}</div>'
        f"<figcaption><b>{escape(summary)}</b><br>{escape(_cause_words(causes))}<br>"
        f"{escape(file_name)}, id {split.image_ids[position]}</figcaption></figure>"
    )


def _judge(analysis: RunAnalysis, image: int) -> tuple[list[JudgedBox], list[str]]:
    """The boxes of an image with their styles, and what is wrong, a few words for each error."""
    matching, scores = analysis.errors.matching, analysis.images
    scene, names = matching.scene, matching.scene.names
    found, true = scene.found_in(image), scene.true_in(image)
    boxes, causes = [], []
    found_corners = _corners(scene.found_box[found])
    for row, at in enumerate(range(found.start, found.stop)):
        if (kind := KINDS.get(Verdict(int(scores.verdict[at])))) is None:
            continue
        name, score = names[scene.found_label[at]], scene.found_score[at]
        cause = _cause(analysis, at)
        causes += [cause] if cause else []
        other = kind in ("class", "both", "background")
        overlap = (matching.other_iou if other else matching.same_iou)[at]
        words = f"{name} {score:.2f}: {cause or 'right'}, IoU {_floor(overlap)}"
        boxes.append(JudgedBox(found_corners[row], kind, f"{name} {score:.2f}", words))
    corners = _corners(scene.true_box[true])
    for row, at in enumerate(range(true.start, true.stop)):
        name = names[scene.true_label[at]]
        if scene.crowd[at]:
            boxes.append(JudgedBox(corners[row], "true", "", f"{name}: crowd region"))
        elif _is_lost(analysis, at):
            boxes.append(JudgedBox(corners[row], "lost", f"{name} not found", f"{name}: not found"))
            causes += [f"{name} missed"] if scores.missed[at] else []
        else:
            boxes.append(JudgedBox(corners[row], "true", "", f"{name}: found"))
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
    match Verdict(int(analysis.images.verdict[at])):
        case Verdict.CLASS:
            return f"{scene.names[scene.true_label[target]]} taken for {name}"
        case Verdict.LOCATION:
            return f"{name} in the wrong place"
        case Verdict.BOTH:
            return f"{name} of the wrong class and place"
        case Verdict.DUPLICATE:
            return f"{name} found twice"
        case Verdict.BACKGROUND:
            return f"{name} on background"
    return ""


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
    if boxes.shape[1] == 5:
        return rotated_corners(torch.as_tensor(boxes, dtype=torch.float64)).numpy()
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]
    ends = np.concatenate([low, high], axis=1)
    return ends[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
