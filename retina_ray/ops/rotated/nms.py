"""Non-maximum suppression of rotated boxes, class by class.

Shapes: D boxes, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from retina_ray.ops.boxes import at_least_float32
from retina_ray.ops.rotated.boxes import enclosing_boxes, is_proper_rotated, paired_rotated_iou

# Rows of the table of pairs made at once, and exact overlaps computed at once.
_ROWS_CPU, _PAIRS_CPU = 256, 2**14
_ROWS_GPU, _PAIRS_GPU = 4096, 2**21


@torch.no_grad()
def batched_rotated_nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Drop boxes (D, 5) whose IoU with a better one kept of their class is above a threshold.

    Of equal scores the first comes first. A box without area, or with a NaN or an infinity,
    overlaps nothing and is kept.

    Only pairs of one class whose enclosing boxes allow an IoU above the threshold are computed. To
    list them and to decide in order, a CUDA device is waited for a few times.

    Returns:
        Indices of the kept boxes, int64, best first.
    """
    by_score = scores.argsort(descending=True, stable=True)
    # Class by class, best first within each: a pair's first box is the better one.
    by_class = labels[by_score].argsort(stable=True)
    order = by_score[by_class]
    kept_in_order = _greedy(len(order), _conflicts(boxes[order], labels[order], threshold))
    kept = torch.empty_like(kept_in_order, device=boxes.device)
    kept[by_class] = kept_in_order.to(boxes.device)
    return by_score[kept]


def _conflicts(boxes: Tensor, labels: Tensor, threshold: float) -> list[Tensor]:
    """Pairs i < j of one class with an IoU above the threshold: (2, P) on the CPU, ascending i.

    Boxes and labels are sorted by class.
    """
    num_rows, num_pairs = (
        (_ROWS_CPU, _PAIRS_CPU) if boxes.device.type == "cpu" else (_ROWS_GPU, _PAIRS_GPU)
    )
    found = []
    for pairs in _plausible(boxes, labels, threshold, num_rows):
        for part in pairs.split(num_pairs, dim=1):
            iou = paired_rotated_iou(boxes[part[0]], boxes[part[1]])
            found.append(part[:, iou > threshold].cpu())
    return found


def _plausible(boxes: Tensor, labels: Tensor, threshold: float, num_rows: int) -> Iterator[Tensor]:
    """Pairs i < j (2, P) of one class that can have an IoU above the threshold, some rows at once.

    The shared area is at most that of the enclosing boxes, and at most the smaller box.
    """
    boxes = at_least_float32(boxes)
    area = boxes[:, 2] * boxes[:, 3]
    # NaN compares as False with everything.
    area = torch.where(is_proper_rotated(boxes), area, float("nan"))
    x, y = boxes[:, 0], boxes[:, 1]
    # Of boxes moved to the origin: half sides keep the digits that coordinates of the image lose.
    dx, dy = enclosing_boxes(torch.cat((0 * boxes[:, :2], boxes[:, 2:]), 1))[:, 2:].unbind(1)
    class_ends = torch.searchsorted(labels, labels, right=True).tolist()
    position = torch.arange(len(boxes), device=boxes.device)
    for start in range(0, len(boxes), num_rows):
        stop = min(start + num_rows, len(boxes))
        # Rows need no columns beyond the end of the last one's class.
        i, j = slice(start, stop), slice(start, class_ends[stop - 1])
        shared = _sides(x[i, None], dx[i, None], x[j], dx[j])
        shared.mul_(_sides(y[i, None], dy[i, None], y[j], dy[j]))
        shared = torch.minimum(shared, torch.minimum(area[i, None], area[j]))
        # shared / union > threshold, with room for rounding.
        bound = (area[i, None] + area[j]).sub_(shared).mul_(0.999 * threshold)
        wanted = (shared >= bound).logical_and_(shared > 0)
        wanted.logical_and_(labels[i, None] == labels[j])
        wanted.logical_and_(position[i, None] < position[j])
        yield wanted.nonzero().t() + start


def _sides(center_a: Tensor, half_a: Tensor, center_b: Tensor, half_b: Tensor) -> Tensor:
    """Length that intervals share, given by their centres and half lengths."""
    reach = (half_a + half_b).sub_((center_a - center_b).abs_())
    return torch.minimum(reach, 2 * torch.minimum(half_a, half_b)).clamp_(min=0)


def _greedy(num_boxes: int, conflicts: list[Tensor]) -> Tensor:
    """(D,) bool on the CPU: decide each box when all better ones of its class are decided."""
    kept = torch.ones(num_boxes, dtype=torch.bool)
    if not conflicts:
        return kept
    better, worse = torch.cat(conflicts, 1)
    sources, counts = better.unique_consecutive(return_counts=True)
    for source, targets in zip(sources.tolist(), worse.split(counts.tolist()), strict=True):
        if kept[source]:
            kept[targets] = False
    return kept
