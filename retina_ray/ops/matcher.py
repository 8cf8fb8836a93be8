"""Which anchors learn which box (Focal Loss paper, arXiv:1708.02002, section 4, "Anchors").

Shapes: N images, M boxes, R anchors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retina_ray.config import MatcherConfig
from retina_ray.ops.boxes import box_iou
from retina_ray.ops.grid_iou import (
    GridAxes,
    grid_axes,
    grid_overlap,
    in_row_order,
    is_grid,
    usable_boxes,
)

# IoUs computed at once. On a CPU a few rows that stay in its cache; on a GPU as many as three
# temporaries of 64 MiB allow, to launch few kernels.
_BLOCK_CPU = 2**20
_BLOCK_GPU = 2**24


@dataclass(frozen=True)
class MatchResult:
    """What each anchor (..., R) is to learn; neither positive nor ignored ones are background."""

    index: Tensor  # int64, the box with the largest IoU; of no meaning unless positive
    positive: Tensor  # bool, learns class and place of its box
    ignored: Tensor  # bool, has no part in any loss


_DEFAULT = MatcherConfig()


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

    def __init__(
        self,
        low: float = _DEFAULT.low,
        high: float = _DEFAULT.high,
        allow_low_quality: bool = _DEFAULT.allow_low_quality,
    ) -> None:
        """Take two IoUs, and whether each box's best anchors are positive below `high` too.

        Raises:
            ValueError: unless 0 <= low <= high <= 1.
        """
        if not 0 <= low <= high <= 1:
            raise ValueError(f"thresholds: expected 0 <= low <= high <= 1, got {low=}, {high=}")
        self.low = float(low)
        self.high = float(high)
        self.allow_low_quality = bool(allow_low_quality)

    def __call__(self, iou: Tensor) -> MatchResult:
        """Match anchors (..., R) by a table of overlaps (..., M, R); M or R may be 0.

        Rows that are zero or negative throughout (padding) match nothing.
        """
        return self._decide(*self._reduce(iou))

    @torch.no_grad()
    def match_grid(
        self,
        boxes: Tensor,
        anchors: Sequence[Tensor],
        grid_sizes: Sequence[tuple[int, int]],
    ) -> MatchResult:
        """Match the anchors of a pyramid to the boxes of a batch.

        The same as `match_boxes` to the last bit, and several times faster, since anchors of a
        grid overlap a box in x by column and in y by row.

        Args:
            boxes: (N, M, 4); those without area or with a NaN (padding) match nothing.
            anchors: per level (H * W * A, 4), row (y * W + x) * A + a, as `AnchorGenerator` makes
                them: all anchors of a column share their x, all of a row their y. On a CPU, where
                looking costs little, others are matched one by one.
            grid_sizes: per level, (H, W).
        """
        boxes = usable_boxes(boxes)
        levels = list(zip(anchors, grid_sizes, strict=True))
        on_cpu = boxes.device.type == "cpu"
        if on_cpu and not all(len(a) == 0 or is_grid(a, h, w) for a, (h, w) in levels):
            return self.match_boxes(boxes, torch.cat(list(anchors)))
        axes = [grid_axes(level, h, w) for level, (h, w) in levels]
        if on_cpu:
            tables = [self._reduce_windows(image, axes) for image in boxes]
            parts = [torch.stack(tensors) for tensors in zip(*tables, strict=True)]
        else:
            num_anchors = sum(len(level) for level in anchors)
            parts = self._reduce_in_blocks(
                boxes, num_anchors, _BLOCK_GPU, lambda rows: _whole_table(rows, axes)
            )
        if len(boxes) == 0:
            return self(boxes.new_zeros(0, 0, sum(len(level) for level in anchors)))
        return self._decide(*(in_row_order(part, axes) for part in parts))

    @torch.no_grad()
    def match_boxes(
        self,
        boxes: Tensor,
        anchors: Tensor,
        *,
        iou: Callable[[Tensor, Tensor], Tensor] = box_iou,
    ) -> MatchResult:
        """Match any anchors (R, D) to boxes (N, M, D), without all N * M * R overlaps at once.

        Rows of zeros (padding) match nothing; `iou` makes an (M, R) table.
        """
        num_images, num_boxes = boxes.shape[:2]
        if num_images == 0:
            return self(boxes.new_zeros(0, num_boxes, len(anchors)))

        def table(rows: Tensor) -> Tensor:
            flat = iou(rows.flatten(0, 1), anchors)
            return flat.view(*rows.shape[:2], len(anchors))

        if boxes.device.type == "cpu":  # looking at the padding costs no wait, and saves its work
            groups = [image[:, : num_used(image[0])] for image in boxes.split(1)]
            block = _BLOCK_CPU
        else:
            block = _BLOCK_GPU
            groups = boxes.split(max(1, block // max(1, len(anchors) * num_boxes)))
        tables = [self._reduce_in_blocks(group, len(anchors), block, table) for group in groups]
        return self._decide(*(torch.cat(tensors) for tensors in zip(*tables, strict=True)))

    def _reduce_windows(self, boxes: Tensor, axes: list[GridAxes]) -> tuple[Tensor, Tensor, Tensor]:
        """As `_reduce` for the boxes (M, 4) of one image, in grid order.

        Each box is compared only with the window of each level that it overlaps: elsewhere its IoU
        is 0, which changes nothing.
        """
        counts = [a.area.numel() for a in axes]
        best, index, claimed = self._reduce(boxes.new_zeros(0, sum(counts)))
        parts = zip(best.split(counts), index.split(counts), claimed.split(counts), strict=True)
        levels = [
            [part.view(a.area.shape) for part in level]
            for level, a in zip(parts, axes, strict=True)
        ]
        overlaps = [grid_overlap(boxes, a) for a in axes]
        windows = [overlap.windows() for overlap in overlaps]
        for m in range(len(boxes)):
            found = []
            for level, overlap in enumerate(overlaps):
                rows, columns = windows[level][m]
                if rows.start == rows.stop or columns.start == columns.stop:
                    continue
                part = (slice(None), rows, columns)
                iou = overlap.window_iou(m, rows, columns)
                level_best = levels[level][0][part]
                # Strictly better only: of equal boxes the first one stays.
                levels[level][1][part].masked_fill_(iou > level_best, m)
                torch.maximum(level_best, iou, out=level_best)
                if self.allow_low_quality:
                    found.append((float(iou.max()), iou, levels[level][2][part]))
            best_of_box = max((most for most, _, _ in found), default=0.0)
            for most, iou, level_claimed in found:
                if most == best_of_box and most > 0:
                    level_claimed |= iou == best_of_box
        return best, index, claimed

    def _reduce_in_blocks(
        self,
        boxes: Tensor,
        num_anchors: int,
        block: int,
        table: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `_reduce` of all boxes (N, M, D), in blocks of at most so many IoUs, or N * R.

        `table` makes IoUs (N, m, R) of boxes (N, m, D).
        """
        num_images, num_boxes = boxes.shape[:2]
        step = max(1, block // max(1, num_anchors * num_images))
        best, index, claimed = self._reduce(boxes.new_zeros(num_images, 0, num_anchors))
        for start in range(0, num_boxes, step):
            iou = table(boxes[:, start : start + step])
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
        overlaps = best > 0
        positive = ((best >= self.high) & overlaps) | claimed
        return MatchResult(index, positive, (best >= self.low) & overlaps & ~positive)


def _whole_table(boxes: Tensor, axes: list[GridAxes]) -> Tensor:
    """IoUs (N, m, R) of boxes (N, m, 4) with all anchors, in grid order."""
    return torch.cat([grid_overlap(boxes, a).iou().flatten(-3) for a in axes], -1)


def num_used(boxes: Tensor) -> int:
    """How many of the boxes (M, D) are left when rows of zeros are cut off at the end."""
    used = (boxes != 0).any(-1).nonzero()
    return int(used[-1]) + 1 if len(used) else 0
