"""From head outputs to detections (Focal Loss paper, arXiv:1708.02002, section 4, "Inference").

Shapes: N images, A anchors a cell, K classes, H and W cells of a level, C candidates; D numbers
make a box, 4 or 5.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torchvision.ops import nms

from retina_ray.config import InferenceConfig
from retina_ray.ops.boxes import clip_boxes, is_proper
from retina_ray.ops.rotated.boxes import is_proper_rotated
from retina_ray.ops.rotated.nms import batched_rotated_nms
from retina_ray.structures import Detections, HeadOutputs

_DEFAULT = InferenceConfig()


class Coder(Protocol):
    """What turns boxes (..., D) into deltas (..., D) from reference boxes, and back."""

    def encode(self, reference: Tensor, target: Tensor) -> Tensor:
        """Deltas that lead from the reference boxes to the target boxes."""
        ...

    def decode(self, deltas: Tensor, reference: Tensor) -> Tensor:
        """Boxes that the deltas lead to."""
        ...


@torch.no_grad()
def select_detections(
    outputs: HeadOutputs,
    image_sizes: Tensor,
    *,
    coder: Coder,
    score_threshold: float = _DEFAULT.score_threshold,
    topk_per_level: int = _DEFAULT.topk_per_level,
    nms_threshold: float = _DEFAULT.nms_threshold,
    max_detections: int = _DEFAULT.max_detections,
) -> list[Detections]:
    """Choose the detections of each image.

    Per level, the best `topk_per_level` (anchor, class) pairs whose score is above the threshold
    are decoded and clipped to the image; boxes of which nothing is left are dropped. Over all
    levels, class by class, a box goes when it overlaps a better one by more than the NMS threshold.
    The best `max_detections` remain. Rotated boxes are not clipped: they may reach outside.

    Scores are float32 sigmoids whatever the type of the logits. A NaN logit is below any threshold
    and a box with a NaN is dropped, so neither yields a detection. Equal scores keep their order
    (level, cell, anchor, class), so the same outputs always give the same detections, whatever
    their memory format.

    The sizes (N, 2) are height and width of each image without padding, in pixels.

    Returns:
        One `Detections` an image, best first, in pixels of the image as the model saw it.

    Raises:
        ValueError: a limit is below 1, a threshold outside [0, 1], or the sizes do not fit.
    """
    _check(outputs, image_sizes, score_threshold, topk_per_level, nms_threshold, max_detections)
    results = []
    for i, image_size in enumerate(image_sizes):
        levels = [
            _candidates(
                level_logits[i], level_deltas[i], anchors, coder, score_threshold, topk_per_level
            )
            for level_logits, level_deltas, anchors in zip(
                outputs.logits, outputs.deltas, outputs.anchors, strict=True
            )
        ]
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*levels, strict=True))
        if boxes.shape[-1] == 4:
            boxes = clip_boxes(boxes, image_size)
            kept = is_proper(boxes)
        else:
            kept = is_proper_rotated(boxes)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        best = _suppress(boxes, scores, labels, nms_threshold, max_detections)
        results.append(Detections(boxes[best], scores[best], labels[best]))
    return results


def _candidates(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    coder: Coder,
    score_threshold: float,
    topk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of one level of one image, decoded: at most `topk`, from high to low.

    Of (A * K, H, W), (A * D, H, W) and (H * W * A, D): boxes (C, D), scores (C,), labels (C,).
    """
    box_dim = anchors.shape[-1]
    num_anchors = deltas.shape[0] // box_dim
    num_classes = logits.shape[0] // num_anchors
    lowest = _logit_below(score_threshold)
    cell, anchor, label, scores = _promising(logits, num_anchors, lowest, topk)
    index = (cell * num_anchors + anchor) * num_classes + label
    index, scores = index[scores > score_threshold], scores[scores > score_threshold]
    if len(scores) > topk:
        reachable = scores >= scores.topk(topk).values[-1]
        index, scores = index[reachable], scores[reachable]
    index, order = index.sort()
    scores, order = scores[order].sort(descending=True, stable=True)
    scores, index = scores[:topk], index[order[:topk]]

    row, label = index // num_classes, index % num_classes
    cell, anchor = row // num_anchors, row % num_anchors
    y, x = cell // logits.shape[2], cell % logits.shape[2]
    chosen = deltas.unflatten(0, (num_anchors, box_dim))[anchor, :, y, x]
    return coder.decode(chosen.float(), anchors[row]), scores, label


def _promising(
    logits: Tensor, num_anchors: int, lowest: float, topk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the pairs among which the best `topk` of those with a logit above `lowest` are.

    Most anchors have none: one pass takes each anchor's largest logit, and only those anchors are
    looked into. Where that leaves more than `topk` anchors, as many pairs score at least as high as
    the last of the best `topk` of them, and nothing below is looked into either.

    Returns:
        Cell y * W + x, anchor, class and score, (C,) each, in no order.
    """
    if logits.is_contiguous():
        maps = logits.view(num_anchors, -1, logits.shape[1] * logits.shape[2])  # (A, K, H * W)
        highest = maps.amax(1).float()
    else:
        maps = logits.permute(1, 2, 0).flatten(0, 1).unflatten(1, (num_anchors, -1))  # (H*W, A, K)
        highest = maps.amax(2).float()
    # Not "greater", so that a NaN does not hide the other classes.
    looked_into = ~(highest <= lowest)
    least_score = 0.0
    if int(looked_into.sum()) > topk:
        ranked = highest.masked_fill(highest.isnan(), -math.inf).flatten()
        least_score = _scores(ranked.topk(topk).values[-1])  # by score: rounding makes some equal
        looked_into &= ~(_scores(highest) < least_score)
    if logits.is_contiguous():
        anchor, cell = looked_into.nonzero(as_tuple=True)
        rows = maps[anchor, :, cell]
    else:
        cell, anchor = looked_into.nonzero(as_tuple=True)
        rows = maps[cell, anchor]
    scores = _scores(rows)
    found, label = ((rows > lowest) & (scores >= least_score)).nonzero(as_tuple=True)
    return cell[found], anchor[found], label, scores[found, label]


def _suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, limit: int
) -> Tensor:
    """Class-wise non-maximum suppression; the indices of the best `limit` boxes that remain.

    Whether a box remains depends on better ones only, so it starts with the best few, and goes on
    with more only where too few of them remain.
    """
    order = scores.sort(descending=True, stable=True).indices
    count = 4 * limit
    while True:
        best = order[:count]
        if boxes.shape[-1] == 4:
            kept = _nms(boxes[best], scores[best], labels[best], threshold)
        else:
            kept = batched_rotated_nms(boxes[best], scores[best], labels[best], threshold)
        if len(kept) >= limit or count >= len(order):
            return best[kept[:limit]]
        count *= 4


def _nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Class-wise suppression of sorted boxes, in one call for all classes.

    Each class is moved to a place of its own; in float64, so that no coordinate loses a digit.
    """
    if len(boxes) == 0:
        return labels
    boxes = boxes.double()
    apart = labels.to(boxes)[:, None] * (boxes.amax() + 1)
    return nms(boxes + apart, scores.double(), threshold)


def _scores(logits: Tensor) -> Tensor:
    """Float32 sigmoids, equal for equal logits.

    `torch.sigmoid` is not: on a CPU, what is left over of a tensor after whole vectors of numbers
    goes another way, and comes out a unit in the last place larger or smaller now and then.
    """
    return logits.float().neg().exp_().add_(1).reciprocal_()


def _logit_below(score: float) -> float:
    """A logit somewhat below that of the score: a first sieve that spares most of the sigmoids.

    The slack covers the rounding of the logit to bfloat16; the score itself decides afterwards.
    """
    if score <= 0:
        return -math.inf
    if score >= 1:
        return math.inf
    logit = math.log(score / (1 - score))
    return logit - 0.05 - 0.01 * abs(logit)


def _check(
    outputs: HeadOutputs,
    image_sizes: Tensor,
    score_threshold: float,
    topk_per_level: int,
    nms_threshold: float,
    max_detections: int,
) -> None:
    faults = []
    for name, share in (("score_threshold", score_threshold), ("nms_threshold", nms_threshold)):
        if not 0 <= share <= 1:
            faults.append(f"{name}: expected a value in [0, 1], got {share}")
    for name, count in (("topk_per_level", topk_per_level), ("max_detections", max_detections)):
        if count < 1:
            faults.append(f"{name}: expected at least 1, got {count}")
    num_images = outputs.logits[0].shape[0] if outputs.logits else 0
    if tuple(image_sizes.shape) != (num_images, 2):
        faults.append(
            f"image_sizes: expected (height, width) of {num_images} images, a tensor "
            f"({num_images}, 2), got {tuple(image_sizes.shape)}"
        )
    if faults:
        raise ValueError("select_detections: " + "; ".join(faults))
