"""The pairs that the box loss compares: what an anchor predicts, and what it is to learn.

Shapes: N images, A anchors a cell, R anchors in all, P positive anchors, H and W cells of a level;
D numbers make a box.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retina_ray.model.assignment import Assignment
from retina_ray.structures import HeadOutputs


@dataclass(frozen=True)
class BoxPairs:
    """Rows of deltas with their anchors and true boxes, (..., D) each.

    `place` has (images, anchors), each (P,) int64, of the rows (P, D); None: all rows (N, R, D).
    """

    deltas: Tensor  # these carry the gradient
    anchors: Tensor
    boxes: Tensor
    place: tuple[Tensor, Tensor] | None

    def as_table(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Bring a value a row into (N, R); 0 where there is no row."""
        if self.place is None:
            return values
        return values.new_zeros(shape).index_put_(self.place, values)


def positive_rows(outputs: HeadOutputs, assignment: Assignment) -> BoxPairs:
    """The rows of the positive anchors only; waits for the device to learn how many there are."""
    images, rows = assignment.positive.nonzero(as_tuple=True)
    box_dim = assignment.boxes.shape[-1]
    bounds = [0]
    for level in outputs.anchors:
        bounds.append(bounds[-1] + len(level))
    deltas, order = [], []
    for i, level in enumerate(outputs.deltas):
        on_level = ((rows >= bounds[i]) & (rows < bounds[i + 1])).nonzero().squeeze(1)
        order.append(on_level)
        num_anchors, width = level.shape[1] // box_dim, level.shape[3]
        row = rows[on_level] - bounds[i]
        anchor = row % num_anchors
        y, x = row // num_anchors // width, row // num_anchors % width
        # Also for no rows: the head must be part of the graph in every step.
        maps = level.unflatten(1, (num_anchors, box_dim))
        deltas.append(maps[images[on_level], anchor, :, y, x])
    place = torch.cat(order)
    images, rows = images[place], rows[place]
    return BoxPairs(
        torch.cat(deltas),
        torch.cat(outputs.anchors)[rows],
        assignment.boxes[images, assignment.index[images, rows]],
        (images, rows),
    )


def all_rows(outputs: HeadOutputs, assignment: Assignment) -> BoxPairs:
    """All rows (N, R, D); those of other anchors are a perfect prediction, of loss exactly 0.

    The stand-in anchor [-1, 1] x [-1, 1] is decoded from deltas of 0 without rounding.
    """
    positive = assignment.positive[..., None]
    deltas = _rows_of_anchors(outputs.deltas, assignment.boxes.shape[-1])
    anchors = torch.cat(outputs.anchors).expand_as(deltas)
    unit = anchors.new_ones(anchors.shape[-1])
    unit[:2] = -1
    return BoxPairs(
        deltas.where(positive, 0.0),
        anchors.where(positive, unit),
        assignment.matched_boxes().where(positive, unit),
        None,
    )


def _rows_of_anchors(deltas: list[Tensor], box_dim: int) -> Tensor:
    """Bring (N, A * D, H, W) of each level into the order of the anchors: (N, R, D)."""
    rows = []
    for level in deltas:
        by_anchor = level.unflatten(1, (-1, box_dim))
        rows.append(by_anchor.permute(0, 3, 4, 1, 2).flatten(1, 3))
    return torch.cat(rows, 1)
