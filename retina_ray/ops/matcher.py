"""Which anchors learn which box (Focal Loss paper, arXiv:1708.02002, section 4, "Anchors").

Shapes: N images, M boxes, R anchors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retina_ray.ops.boxes import box_iou

__all__ = ["MatchResult", "Matcher"]

# IoUs computed at once. On a CPU a few rows that stay in its cache; on a GPU as many as three
# temporaries of 64 MiB allow, to launch few kernels.
_BLOCK_CPU = 2**20
_BLOCK_GPU = 2**24


class MatchResult(NamedTuple):
    """What an anchor is to learn; anchors neither positive nor ignored are background.

    Attributes:
        index: (..., R) int64, the box with the largest IoU; of no meaning for background.
        positive: (..., R) bool, learns class and place of its box.
        ignored: (..., R) bool, has no part in any loss.
    """

    index: Tensor
    positive: Tensor
    ignored: Tensor


class Matcher:
    """Compares each anchor's largest IoU with two thresholds.

    Positive from `high` on, ignored in [low, high), background below `low`. With
    `allow_low_quality`, every box also makes those anchors positive that reach the box's own
    largest IoU, ties included (Faster R-CNN, arXiv:1506.01497, section 3.1.2, condition i), so that
    no box stays without an anchor. As in Detectron, such an anchor learns the box with which *it*
    overlaps most, which need not be the one that made it positive.

    An anchor that overlaps no box (IoU 0) is always background, whatever the thresholds: a box
    outside all anchors claims none. No call waits for a GPU.
    """

    def __init__(self, low: float = 0.4, high: float = 0.5, allow_low_quality: bool = True) -> None:
        """Make a matcher.

        Args:
            low: IoU below which an anchor is background.
            high: IoU from which an anchor is positive.
            allow_low_quality: whether each box's best anchors are positive below `high` too.

        Raises:
            ValueError: unless 0 <= low <= high <= 1.
        """
        if not 0 <= low <= high <= 1:
            raise ValueError(f"thresholds: expected 0 <= low <= high <= 1, got {low=}, {high=}")
        self.low = float(low)
        self.high = float(high)
        self.allow_low_quality = bool(allow_low_quality)

    def __call__(self, iou: Tensor, *, valid: Tensor | None = None) -> MatchResult:
        """Match anchors by a table of overlaps.

        Args:
            iou: (..., M, R); M or R may be 0. Rows that are zero or negative throughout (padding)
                match nothing.
            valid: (..., M) bool; False marks rows to leave out.

        Returns:
            A result of shape (..., R).
        """
        if valid is not None:
            iou = iou.masked_fill(~valid[..., None], -1.0)
        return self._decide(*self._reduce(iou))

    @torch.no_grad()
    def match_boxes(self, boxes: Tensor, anchors: Tensor) -> MatchResult:
        """Match anchors to the boxes of a batch without holding all N * M * R overlaps at once.

        Args:
            boxes: (N, M, 4); boxes without area (padding) match nothing.
            anchors: (R, 4).

        Returns:
            A result of shape (N, R).
        """
        num_images, num_boxes = boxes.shape[:2]
        if num_images == 0:
            return self(boxes.new_zeros(0, num_boxes, len(anchors)))
        on_cpu = boxes.device.type == "cpu"
        block = _BLOCK_CPU if on_cpu else _BLOCK_GPU
        rows_at_once = max(1, block // max(1, len(anchors)))
        if on_cpu:  # looking at the padding costs no wait here, and saves most of the work
            groups = [image[:, : _num_used(image[0])] for image in boxes.split(1)]
        else:
            groups = boxes.split(max(1, rows_at_once // max(1, num_boxes)))
        parts = [self._reduce_in_blocks(group, anchors, rows_at_once) for group in groups]
        best, index, claimed = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return self._decide(best, index, claimed)

    def _reduce_in_blocks(
        self, boxes: Tensor, anchors: Tensor, rows_at_once: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `_reduce` of the IoUs of boxes (n, m, 4), in blocks of boxes for all n images."""
        num_images, num_boxes = boxes.shape[:2]
        step = max(1, rows_at_once // num_images)
        best, index, claimed = self._reduce(anchors.new_zeros(num_images, 0, len(anchors)))
        for start in range(0, num_boxes, step):
            rows = boxes[:, start : start + step]
            iou = box_iou(rows.reshape(-1, 4), anchors).view(*rows.shape[:2], len(anchors))
            block_best, block_index, block_claimed = self._reduce(iou)
            # Strictly better only: of equal boxes the first one stays.
            better = block_best > best
            best = torch.where(better, block_best, best)
            index = torch.where(better, block_index + start, index)
            claimed = claimed | block_claimed
        return best, index, claimed

    def _reduce(self, iou: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Largest IoU of each anchor, its box, whether it is the best of a box; (..., R) each."""
        shape = (*iou.shape[:-2], iou.shape[-1])
        if iou.numel() == 0:
            return (
                iou.new_zeros(shape),
                torch.zeros(shape, dtype=torch.int64, device=iou.device),
                torch.zeros(shape, dtype=torch.bool, device=iou.device),
            )
        best, index = iou.max(-2)
        if not self.allow_low_quality:
            return best, index, torch.zeros_like(index, dtype=torch.bool)
        best_of_box = iou.amax(-1, keepdim=True)
        # A box that overlaps nothing claims nothing: no IoU equals 2.
        best_of_box = best_of_box.masked_fill(best_of_box <= 0, 2.0)
        return best, index, (iou == best_of_box).any(-2)

    def _decide(self, best: Tensor, index: Tensor, claimed: Tensor) -> MatchResult:
        """Apply the thresholds."""
        overlaps = best > 0
        positive = ((best >= self.high) & overlaps) | claimed
        return MatchResult(index, positive, (best >= self.low) & overlaps & ~positive)


def _num_used(boxes: Tensor) -> int:
    """How many of the boxes (M, 4) are left when those without extent are cut off at the end."""
    used = (boxes[:, 2:] > boxes[:, :2]).all(-1).nonzero()
    return int(used[-1]) + 1 if len(used) else 0
