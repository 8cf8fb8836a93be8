"""Adaptive Training Sample Selection (ATSS, arXiv:1912.02424, algorithm 1).

Shapes: N images, M boxes, A anchors a cell, R anchors in all, H and W cells of a level, C
candidates of a box over all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from retina_ray.config import MatcherConfig
from retina_ray.ops.best_anchor import AnchorClaims
from retina_ray.ops.boxes import at_least_float32, paired_iou
from retina_ray.ops.matcher import MatchResult

# A positive anchor's centre lies this far inside its box, in pixels (the authors' code; the paper
# says "inside").
_MIN_INSIDE_PX = 0.01

# Candidates looked at together: on a CPU a few MiB a temporary, on a GPU enough to fill it.
_BLOCK_CPU = 2**18
_BLOCK_GPU = 2**22


class _Level(NamedTuple):
    """A grid of cells: their centres in pixels, x (W,) and y (H,); the row of its first anchor."""

    x: Tensor
    y: Tensor
    num_anchors: int
    first: int

    def num_nearest(self, topk: int) -> int:
        """The cells that a box has for candidates."""
        return min(topk, len(self.x) * len(self.y))

    def window(self, topk: int) -> int:
        """The cells that are looked at to find them."""
        return min(topk, len(self.x)) * min(topk, len(self.y))


_DEFAULT = MatcherConfig()


class AtssMatcher:
    """Gives each box an IoU threshold of its own, from the statistics of the anchors around it.

    For each box (line numbers of the paper's algorithm 1): on every level, the anchors of the
    `topk` cells whose centres are nearest to the box's centre are its candidates (lines 3 to 6).
    The threshold is the mean plus the standard deviation of the candidates' IoUs with the box
    (lines 7 to 10). Candidates are positive whose IoU reaches the threshold and whose centre lies
    inside the box (lines 11 to 15). An anchor that several boxes take goes to the one with the
    largest IoU. All other anchors are background; none is ignored.

    The paper has one anchor a cell. With A of them, `topk` counts cells, so topk * A anchors a
    level are candidates, as in the authors' code (mmdetection takes topk anchors instead, of those
    at one place whichever come first). As there too, the standard deviation is the unbiased one,
    and a box with no candidate inside it, or none above its threshold, stays without positives. Of
    cells at the same distance, the first ones are taken.
    """

    def __init__(self, topk: int = _DEFAULT.atss_topk) -> None:
        """Take k of the paper, which finds 7 to 17 to be much the same.

        Raises:
            ValueError: it is below 1.
        """
        if topk < 1:
            raise ValueError(f"topk: expected at least 1, got {topk}")
        self.topk = int(topk)

    @torch.no_grad()
    def match_grid(
        self,
        boxes: Tensor,
        anchors: Sequence[Tensor],
        grid_sizes: Sequence[tuple[int, int]],
    ) -> MatchResult:
        """As `Matcher.match_grid`; but the anchors of a cell need only share their centre.

        Raises:
            ValueError: the anchors of a level are not a multiple of its cells.
        """
        boxes = at_least_float32(boxes)
        levels = _levels(anchors, grid_sizes)
        flat_anchors = torch.cat([at_least_float32(level) for level in anchors])
        claims = AnchorClaims(
            len(boxes),
            len(flat_anchors),
            dtype=torch.promote_types(boxes.dtype, flat_anchors.dtype),
            device=boxes.device,
        )
        step = self._boxes_at_once(len(boxes), levels, boxes.device)
        for start in range(0, boxes.shape[1] if levels and len(boxes) else 0, step):
            block = boxes[:, start : start + step]
            candidates, iou = self._positives(block, flat_anchors, levels)
            numbers = torch.arange(start, start + block.shape[1], device=boxes.device)
            claims.add(
                candidates.flatten(1),
                numbers[:, None].expand(candidates.shape).flatten(1),
                iou.flatten(1),
            )
        index, positive = claims.result()
        return MatchResult(index, positive, torch.zeros_like(positive))

    def _boxes_at_once(self, num_images: int, levels: list[_Level], device: torch.device) -> int:
        """Boxes of each image in a block."""
        block = _BLOCK_CPU if device.type == "cpu" else _BLOCK_GPU
        num_candidates = sum(level.num_nearest(self.topk) * level.num_anchors for level in levels)
        widest = max((level.window(self.topk) for level in levels), default=0)
        return max(1, block // max(1, num_images * max(num_candidates, widest)))

    def _positives(
        self, boxes: Tensor, anchors: Tensor, levels: list[_Level]
    ) -> tuple[Tensor, Tensor]:
        """Candidates (N, m, C) of the boxes (N, m, 4), and their IoU, 0 unless positive."""
        parts = [self._candidates(boxes, level) for level in levels]
        candidates, inside = (torch.cat(tensors, -1) for tensors in zip(*parts, strict=True))
        iou = paired_iou(boxes[:, :, None], anchors[candidates])
        # A single candidate has no spread.
        std, mean = torch.std_mean(
            iou, -1, correction=min(1, candidates.shape[-1] - 1), keepdim=True
        )
        # A NaN in the box makes the threshold a NaN, which nothing reaches.
        return candidates, iou.where((iou >= mean + std) & inside, 0.0)

    def _candidates(self, boxes: Tensor, level: _Level) -> tuple[Tensor, Tensor]:
        """A level's candidates (N, m, C_l), and whether their centres lie inside the box.

        The k nearest cells are among those that lie in the k nearest rows and the k nearest
        columns: in any other column, k cells of the same row are nearer. So at most k * k cells a
        box are compared, not the whole grid.
        """
        x0, y0, x1, y1 = boxes[..., None].unbind(-2)  # (N, m, 1) each
        to_x, to_y = (level.x - (x0 + x1) / 2).square(), (level.y - (y0 + y1) / 2).square()
        columns = _smallest(to_x, self.topk).sort(-1).values
        rows = _smallest(to_y, self.topk).sort(-1).values
        to_x, to_y = to_x.gather(-1, columns), to_y.gather(-1, rows)
        window = (to_y[..., :, None] + to_x[..., None, :]).flatten(-2)
        nearest = _smallest(window, self.topk)
        width = columns.shape[-1]
        row = rows.gather(-1, nearest.div(width, rounding_mode="floor"))
        column = columns.gather(-1, nearest % width)

        x, y = level.x[column], level.y[row]
        inside = torch.minimum(torch.minimum(x - x0, x1 - x), torch.minimum(y - y0, y1 - y))
        of_cell = torch.arange(level.num_anchors, device=boxes.device)
        cell = row * len(level.x) + column
        candidates = level.first + cell[..., None] * level.num_anchors + of_cell
        inside = (inside > _MIN_INSIDE_PX)[..., None].expand_as(candidates)
        return candidates.flatten(-2), inside.flatten(-2)


def _smallest(values: Tensor, count: int) -> Tensor:
    """Indices of the `count` smallest values of the last axis; unlike topk, of equals the first."""
    return torch.sort(values, dim=-1, stable=True).indices[..., :count]


def _levels(anchors: Sequence[Tensor], grid_sizes: Sequence[tuple[int, int]]) -> list[_Level]:
    levels, first = [], 0
    for i, (rows, (height, width)) in enumerate(zip(anchors, grid_sizes, strict=True)):
        num_cells = height * width
        if len(rows) % max(1, num_cells) or (len(rows) and not num_cells):
            raise ValueError(
                f"anchors of level {i}: expected a multiple of its {height} x {width} cells, "
                f"got {len(rows)}"
            )
        if len(rows):
            num_anchors = len(rows) // num_cells
            cells = at_least_float32(rows[::num_anchors])  # the first anchor of each cell
            x = (cells[:width, 0] + cells[:width, 2]) / 2
            y = (cells[::width, 1] + cells[::width, 3]) / 2
            levels.append(_Level(x, y, num_anchors, first))
        first += len(rows)
    return levels
