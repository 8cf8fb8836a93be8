"""What is learnt: which anchors learn which box, and by which loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from retina_ray.config.base import (
    BelowOne,
    Bool,
    Count,
    Float,
    Fraction,
    NonNegative,
    Positive,
    ReadWhen,
    Section,
)


class MatcherConfig(Section):
    """Which anchors learn which box."""

    method: Literal["iou", "best", "atss"] = "iou"
    """iou: IoU >= high positive, [low, high) ignored, < low background (the paper). best: only each
    box's best anchor is positive, others with IoU >= high are ignored. atss: a threshold of its own
    for each box (Adaptive Training Sample Selection, arXiv:1912.02424)."""
    low: Annotated[Fraction, ReadWhen("matcher.method", "iou")] = 0.4
    high: Annotated[Fraction, ReadWhen("matcher.method", "iou", "best")] = 0.5
    allow_low_quality: Annotated[Bool, ReadWhen("matcher.method", "iou")] = True
    """Also mark each box's best anchor(s) positive, however small the IoU (never one of 0)."""
    atss_topk: Annotated[Count, ReadWhen("matcher.method", "atss")] = 9
    """Candidates of a box on each level, those whose centres are nearest."""


class LossConfig(Section):
    """Classification loss and box loss, both summed and divided by the normalizer."""

    cls_loss: Literal["focal", "quality_focal", "varifocal"] = "focal"
    """focal: arXiv:1708.02002. The others learn the IoU of the predicted box as the score of a
    positive anchor: quality focal loss (arXiv:2006.04388), varifocal loss (arXiv:2008.13367)."""
    focal_alpha: Annotated[
        Float, Field(ge=-1, le=1), ReadWhen("loss.cls_loss", "focal", "varifocal")
    ] = 0.25
    """focal: weight of positives against negatives; -1 switches the weighting off. varifocal:
    weight of negatives (its paper takes 0.75)."""
    focal_gamma: NonNegative = 2.0
    """Focusing exponent; beta in the paper of quality focal loss."""
    box_loss: Literal["smooth_l1", "giou", "diou", "ciou"] = "smooth_l1"
    smooth_l1_beta: Annotated[NonNegative, ReadWhen("loss.box_loss", "smooth_l1")] = 0.1
    """Where smooth-L1 turns from quadratic to linear; 0 is plain L1 (detectron2's recipes)."""
    box_loss_weight: Positive = 1.0
    normalizer: Literal["ema", "batch"] = "ema"
    """What the losses are divided by: the positives over all workers, smoothed or of this batch."""
    normalizer_momentum: Annotated[BelowOne, ReadWhen("loss.normalizer", "ema")] = 0.9
    normalizer_initial: Annotated[Positive, ReadWhen("loss.normalizer", "ema")] = 100.0
