"""Each box learnt by one anchor, the one that fits it best; and who has an anchor that two claim.

Shapes: N images, M boxes, A anchors a cell, R anchors in all, H and W cells of a level, C claims.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from retina_ray.config import MatcherConfig
from retina_ray.ops.boxes import at_least_float32, box_iou
from retina_ray.ops.matcher import MatchResult, num_used

# IoUs computed at once: on a CPU a few rows that stay in its cache, on a GPU enough to fill it.
_BLOCK_CPU = 2**20
_BLOCK_GPU = 2**24


class AnchorClaims:
    """Settles which box has an anchor when several claim it: that with the largest IoU.

    Of equal IoUs the first box has it. Claims may be handed in part by part, the boxes in
    ascending order; each costs time by the number of claims, not of anchors. The outcome depends
    neither on the order within a part nor on the device, and no call waits for a GPU.
    """

    def __init__(
        self, num_images: int, num_anchors: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Start without claims; `dtype` is that of the IoUs."""
        # One column more: there, claims that fail are written, as their number is not known.
        shape = (num_images, num_anchors + 1)
        self._iou = torch.zeros(shape, dtype=dtype, device=device)
        self._box = torch.zeros(shape, dtype=torch.int64, device=device)

    def add(self, anchors: Tensor, boxes: Tensor, iou: Tensor) -> None:
        """Hand in claims of boxes that come after, or are, the last ones of earlier calls.

        All are (N, C): the anchor claimed, the box that claims it, their IoU; one of 0 counts for
        nothing.
        """
        before = self._iou.gather(1, anchors)
        self._iou.scatter_reduce_(1, anchors, iou, "amax")
        won = (iou > before) & (iou == self._iou.gather(1, anchors))
        anchors = anchors.where(won, self._iou.shape[1] - 1)
        self._box.scatter_(1, anchors, torch.iinfo(torch.int64).max)
        self._box.scatter_reduce_(1, anchors, boxes, "amin")

    def result(self) -> tuple[Tensor, Tensor]:
        """(N, R) the box that has each anchor, 0 for none; (N, R) bool, whether one has it."""
        claimed = self._iou[:, :-1] > 0
        return self._box[:, :-1].where(claimed, 0), claimed


_DEFAULT = MatcherConfig()


class BestAnchorMatcher:
    """One anchor a box: that with the box's largest IoU, the first one of equals.

    It is positive however small the IoU, except for one of 0: a box outside all anchors claims
    none. Where two boxes share their best anchor, that with the larger IoU has it and the other
    one stays without. The other anchors are ignored from `ignore_iou` on (with any box), as they
    would be good answers too, and background below.
    """

    def __init__(self, ignore_iou: float = _DEFAULT.high) -> None:
        """Take the IoU from which an anchor that is not positive is ignored.

        Raises:
            ValueError: unless 0 <= ignore_iou <= 1.
        """
        if not 0 <= ignore_iou <= 1:
            raise ValueError(f"ignore_iou: expected a value in [0, 1], got {ignore_iou}")
        self.ignore_iou = float(ignore_iou)

    @torch.no_grad()
    def match_grid(
        self,
        boxes: Tensor,
        anchors: Sequence[Tensor],
        grid_sizes: Sequence[tuple[int, int]],
    ) -> MatchResult:
        """As `Matcher.match_grid`, for anchors in any order."""
        del grid_sizes
        boxes = at_least_float32(boxes)
        flat_anchors = torch.cat([at_least_float32(level) for level in anchors])
        if boxes.device.type == "cpu" and len(boxes):
            # Looking at the padding costs no wait here, and saves most of the work.
            groups = [image[:, : num_used(image[0])] for image in boxes.split(1)]
        else:
            groups = [boxes]
        parts = [self._match(group, flat_anchors) for group in groups]
        return MatchResult(
            torch.cat([part.index for part in parts]),
            torch.cat([part.positive for part in parts]),
            torch.cat([part.ignored for part in parts]),
        )

    def _match(self, boxes: Tensor, anchors: Tensor) -> MatchResult:
        """Match boxes (n, m, 4) with anchors (R, 4)."""
        num_images, num_boxes = boxes.shape[:2]
        num_anchors = len(anchors)
        largest = anchors.new_zeros(
            num_images, num_anchors, dtype=torch.promote_types(boxes.dtype, anchors.dtype)
        )
        claims = AnchorClaims(num_images, num_anchors, dtype=largest.dtype, device=boxes.device)
        block = _BLOCK_CPU if boxes.device.type == "cpu" else _BLOCK_GPU
        step = max(1, block // max(1, num_images * num_anchors))
        for start in range(0, num_boxes if largest.numel() else 0, step):
            rows = boxes[:, start : start + step]
            iou = box_iou(rows.reshape(-1, 4), anchors).view(*rows.shape[:2], num_anchors)
            torch.maximum(largest, iou.amax(1), out=largest)
            best, best_anchor = iou.max(-1)
            numbers = torch.arange(start, start + rows.shape[1], device=boxes.device)
            claims.add(best_anchor, numbers.expand_as(best), best)
        index, positive = claims.result()
        ignored = (largest >= self.ignore_iou) & (largest > 0) & ~positive
        return MatchResult(index, positive, ignored)
