"""Which anchors learn which box, class included: from matches to labels.

Shapes: N images, M boxes, R anchors in all, K classes; D numbers make a box, 4 or 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from retina_ray.config import MatcherConfig
from retina_ray.ops.atss import AtssMatcher
from retina_ray.ops.best_anchor import BestAnchorMatcher
from retina_ray.ops.boxes import is_proper
from retina_ray.ops.matcher import Matcher, MatchResult
from retina_ray.ops.rotated.boxes import is_proper_rotated, rotated_iou
from retina_ray.structures import Targets


class Assigner(Protocol):
    """What compares boxes with the anchors of a pyramid: `Matcher`, and its alternatives."""

    def match_grid(
        self,
        boxes: Tensor,
        anchors: Sequence[Tensor],
        grid_sizes: Sequence[tuple[int, int]],
    ) -> MatchResult:
        """Match anchors, per level (H * W * A, 4), to boxes (N, M, 4); zeros match nothing."""
        ...


@dataclass(frozen=True)
class Assignment:
    """What each anchor is to learn; M is at least 1."""

    labels: Tensor  # (N, R) int64: 0 to K-1 if positive, K for background, -1 if ignored
    index: Tensor  # (N, R) int64, which of the boxes; of no meaning unless positive
    positive: Tensor  # (N, R) bool
    boxes: Tensor  # (N, M, D)

    def matched_boxes(self) -> Tensor:
        """The box (N, R, D) that each anchor is to learn; of no meaning unless positive."""
        index = self.index[..., None].expand(-1, -1, self.boxes.shape[-1])
        return self.boxes.gather(1, index)


def make_matcher(config: MatcherConfig) -> Assigner:
    """The assigner that `config.method` names."""
    if config.method == "atss":
        return AtssMatcher(config.atss_topk)
    if config.method == "best":
        return BestAnchorMatcher(config.high)
    return Matcher(config.low, config.high, config.allow_low_quality)


@torch.no_grad()
def assign(
    anchors: Sequence[Tensor],
    grid_sizes: Sequence[tuple[int, int]],
    targets: Targets,
    *,
    matcher: Assigner,
    num_classes: int,
) -> Assignment:
    """Label every anchor, per level (H * W * A, D), by the true boxes of N images.

    Padding, and boxes without area or with a NaN or an infinity, match nothing. For rotated boxes
    the matcher must be a `Matcher`. The result is on the device of the targets, without a wait for
    it (rotated boxes: one, see `rotated_iou`).

    Raises:
        ValueError: boxes are of another kind than the anchors, or (seen on the CPU only, where
            looking costs no wait) a label is K or more.
        TypeError: a matcher that does not know rotated boxes.
    """
    box_dim = anchors[0].shape[-1]
    boxes, labels = targets.boxes.to(anchors[0].dtype), targets.labels
    if boxes.shape[-1] != box_dim:
        raise ValueError(
            f"targets: boxes of {boxes.shape[-1]} numbers for a model with boxes of {box_dim}; is "
            "model.box_type that of the data?"
        )
    if labels.device.type == "cpu":
        _check_labels(labels, num_classes)
    if boxes.shape[1] == 0:  # one row of padding, for the gathers below
        boxes = boxes.new_zeros(len(boxes), 1, box_dim)
        labels = labels.new_full((len(boxes), 1), -1)
    is_usable = is_proper if box_dim == 4 else is_proper_rotated
    usable = (labels >= 0) & is_usable(boxes)
    boxes = boxes.masked_fill(~usable[..., None], 0.0)
    if box_dim == 4:
        match = matcher.match_grid(boxes, anchors, grid_sizes)
    elif isinstance(matcher, Matcher):
        match = matcher.match_boxes(boxes, torch.cat(list(anchors)), iou=rotated_iou)
    else:
        raise TypeError(f"{type(matcher).__name__} does not match rotated boxes: use Matcher")
    of_anchor = labels.gather(1, match.index).where(match.positive, num_classes)
    return Assignment(of_anchor.masked_fill(match.ignored, -1), match.index, match.positive, boxes)


def _check_labels(labels: Tensor, num_classes: int) -> None:
    wrong = labels >= num_classes
    if bool(wrong.any()):
        image, box = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"targets: image {image} of the batch, box {box}: label {int(labels[image, box])}, "
            f"expected 0 to {num_classes - 1} (-1 for padding); is model.num_classes that of the "
            "data?"
        )
