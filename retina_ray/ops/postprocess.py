"""From head outputs to detections (Focal Loss paper, arXiv:1708.02002, section 4, "Inference").

Shapes: N images, A anchors a cell, K classes, H and W cells of a level, C candidates, D detections.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from retina_ray.ops.box_coder import BoxCoder
from retina_ray.ops.boxes import clip_boxes, is_proper
from retina_ray.structures import Detections, HeadOutputs

__all__ = ["select_detections"]


@torch.no_grad()
def select_detections(
    outputs: HeadOutputs,
    image_sizes: Tensor,
    *,
    coder: BoxCoder,
    score_threshold: float = 0.05,
    topk_per_level: int = 1000,
    nms_threshold: float = 0.5,
    max_detections: int = 100,
) -> list[Detections]:
    """Choose the detections of each image.

    Per level, the best `topk_per_level` (anchor, class) pairs whose score is above the threshold
    are decoded and clipped to the image; boxes of which nothing is left are dropped. Over all
    levels, class by class, a box goes when it overlaps a better one by more than the NMS threshold.
    The best `max_detections` remain.

    Scores are float32 sigmoids whatever the type of the logits. A NaN logit is below any threshold
    and a box with a NaN is dropped, so neither yields a detection. Equal scores keep their order,
    so the same outputs always give the same detections.

    Args:
        outputs: of the model, for N images.
        image_sizes: (N, 2) height and width of each image without padding, in pixels.
        coder: what turns deltas into boxes.
        score_threshold: scores must be above this.
        topk_per_level: pairs that a level may contribute.
        nms_threshold: largest IoU of two detections of one class.
        max_detections: at most this many an image.

    Returns:
        One `Detections` an image, best first, in pixels of the image as the model saw it.

    Raises:
        ValueError: if a limit is below 1, a threshold outside [0, 1], or the sizes do not fit.
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
        boxes = clip_boxes(boxes, image_size)
        kept = is_proper(boxes)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        best = batched_nms(boxes, scores, labels, nms_threshold)[:max_detections]
        results.append(Detections(boxes[best], scores[best], labels[best]))
    return results


def _candidates(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    coder: BoxCoder,
    score_threshold: float,
    topk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of one level of one image, decoded.

    Args:
        logits: (A * K, H, W).
        deltas: (A * 4, H, W).
        anchors: (H * W * A, 4).
        coder: what turns deltas into boxes.
        score_threshold: scores must be above this.
        topk: largest number of pairs.

    Returns:
        Boxes (C, 4), scores (C,) from high to low, labels (C,); C <= topk.
    """
    num_cells = logits.shape[1] * logits.shape[2]
    num_anchors = deltas.shape[0] // 4
    num_classes = logits.shape[0] // num_anchors
    flat = logits.flatten()
    index = (flat > _logit_below(score_threshold)).nonzero().squeeze(1)
    scores = flat[index].float().sigmoid()
    above = scores > score_threshold
    index, scores = index[above], scores[above]
    if len(scores) > topk:
        reachable = scores >= scores.topk(topk).values[-1]
        index, scores = index[reachable], scores[reachable]
    scores, order = scores.sort(descending=True, stable=True)
    scores, index = scores[:topk], index[order[:topk]]

    channel, cell = index // num_cells, index % num_cells
    anchor, label = channel // num_classes, channel % num_classes
    chosen = deltas.reshape(num_anchors, 4, num_cells)[anchor, :, cell]
    boxes = coder.decode(chosen.float(), anchors[cell * num_anchors + anchor])
    return boxes, scores, label


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
    """Raise a ValueError that names everything that is wrong."""
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
