"""What travels between the packages: batches of images, targets, head outputs, detections.

Shapes: N images, M boxes (padded), A anchors a cell, K classes, R anchors in all, D detections,
H and W pixels, B numbers that make a box. Boxes are float32 in absolute pixels: XYXY with
`0 <= x0 < x1 <= W` (B = 4), or rotated as (x_center, y_center, width, height, angle), the angle in
degrees counter-clockwise, and then not bound to the image (B = 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageBatch:
    """Images of different sizes in one tensor, padded at the right and the bottom.

    Attributes:
        pixels: (N, 3, H, W) uint8 RGB; what the padding holds does not matter.
        sizes: (N, 2) int64, the (height, width) of each image before padding, in pixels.
    """

    pixels: Tensor
    sizes: Tensor

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> ImageBatch:
        """Copy to a device."""
        return ImageBatch(
            self.pixels.to(device, non_blocking=non_blocking),
            self.sizes.to(device, non_blocking=non_blocking),
        )

    def __len__(self) -> int:
        return self.pixels.shape[0]


@dataclass(frozen=True)
class Targets:
    """True boxes of a batch, padded to the largest number of boxes in it.

    Attributes:
        boxes: (N, M, B) float32 in pixels of the resized image; padding rows are zero.
        labels: (N, M) int64, 0 to K-1; -1 marks padding. M may be 0.
    """

    boxes: Tensor
    labels: Tensor

    @classmethod
    def from_lists(
        cls, boxes: Sequence[Tensor], labels: Sequence[Tensor], *, box_dim: int | None = None
    ) -> Targets:
        """Pad per-image boxes (M_i, B) and labels (M_i,) to one tensor each.

        Args:
            boxes: of each image; B is 4, or 5 for rotated boxes, the same for all.
            labels: of each image, 0 to K-1.
            box_dim: B; None takes it from the boxes, and 4 where there are none.

        Raises:
            ValueError: boxes of another B.
        """
        dims = {b.shape[1] for b in boxes if b.ndim == 2 and len(b)}
        if box_dim is None:
            box_dim = min(dims, default=4)
        if dims - {box_dim}:
            raise ValueError(f"boxes of {sorted(dims)} numbers: expected {box_dim} everywhere")
        num_boxes = max((len(b) for b in boxes), default=0)
        padded = torch.zeros(len(boxes), num_boxes, box_dim)
        padded_labels = torch.full((len(boxes), num_boxes), -1, dtype=torch.int64)
        for i, (b, label) in enumerate(zip(boxes, labels, strict=True)):
            padded[i, : len(b)] = b.reshape(-1, box_dim)
            padded_labels[i, : len(b)] = label
        return cls(padded, padded_labels)

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Targets:
        """Copy to a device."""
        return Targets(
            self.boxes.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
        )

    def __len__(self) -> int:
        return self.boxes.shape[0]


@dataclass(frozen=True)
class HeadOutputs:
    """What the model says of a batch, level by level from fine to coarse, as the head left it.

    Attributes:
        logits: per level (N, A*K, H_l, W_l); channel a*K + k.
        deltas: per level (N, A*B, H_l, W_l); channel a*B + (dx, dy, dw, dh), and the turn fifth.
        anchors: per level (H_l*W_l*A, B) float32, row (y*W_l + x)*A + a.
    """

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first.

    Attributes:
        boxes: (D, B) float32.
        scores: (D,) float32 in [0, 1].
        labels: (D,) int64, 0 to K-1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> Detections:
        """Copy to a device."""
        return Detections(self.boxes.to(device), self.scores.to(device), self.labels.to(device))

    def __len__(self) -> int:
        return self.boxes.shape[0]


@dataclass(frozen=True)
class Batch:
    """A ready batch as it leaves the data pipeline.

    Attributes:
        images: with their sizes after resizing.
        targets: boxes in pixels of the resized images; empty in evaluation.
        image_ids: the data set's ids, in the order of the images; N entries.
        original_sizes: (height, width) of each image in the data set; N entries.
        plan_index: the row of the run's plan that this batch is.
        bad_images: one (file_name, reason) for each image that could not be decoded and was
            replaced by the plan's rule.
    """

    images: ImageBatch
    targets: Targets
    image_ids: list[int]
    original_sizes: list[tuple[int, int]]
    plan_index: int
    bad_images: list[tuple[str, str]] = field(default_factory=list)

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Batch:
        """Copy the tensors to a device."""
        return Batch(
            self.images.to(device, non_blocking=non_blocking),
            self.targets.to(device, non_blocking=non_blocking),
            self.image_ids,
            self.original_sizes,
            self.plan_index,
            self.bad_images,
        )
