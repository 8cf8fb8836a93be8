"""Whom we compare with: torchvision's RetinaNet, and detectron2's where it is installed.

Each peer's own methods are called on the raw outputs of a head, with as much around them as its own
forward does, and without the network. The anchors are ours, handed in, so that all have the same.

Shapes: N images, H and W cells of a level, A anchors a cell, K classes, R anchors in all, M boxes.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.ops import box_iou

from retina_ray.structures import Detections, HeadOutputs, Targets


def rows_of_anchors(levels: list[Tensor], per_anchor: int) -> list[Tensor]:
    """Per level (N, A * D, H, W) as (N, H * W * A, D), copied: as both peers' forwards begin."""
    rows = []
    for level in levels:
        num_images, _, height, width = level.shape
        level = level.view(num_images, -1, per_anchor, height, width).permute(0, 3, 4, 1, 2)
        rows.append(level.reshape(num_images, -1, per_anchor))
    return rows


class Torchvision:
    """`torchvision.models.detection.RetinaNet` with its defaults, but 100 detections an image."""

    name = "torchvision"

    def __init__(self, num_classes: int, device: torch.device) -> None:
        """Make the model around a backbone that is never called.

        Args:
            num_classes: K.
            device: of what it will be given.
        """
        backbone: Any = nn.Identity()
        backbone.out_channels = 8
        self._num_classes = num_classes
        self._model = RetinaNet(backbone, num_classes, detections_per_img=100).to(device).eval()

    @staticmethod
    def targets(targets: Targets) -> list[dict[str, Tensor]]:
        """As it wants them; all images have the same number of boxes."""
        pairs = zip(targets.boxes, targets.labels, strict=True)
        return [{"boxes": boxes, "labels": labels} for boxes, labels in pairs]

    def loss(self, outputs: HeadOutputs, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """What its heads do to the raw maps, then assignment and losses."""
        anchors = [torch.cat(outputs.anchors)] * len(targets)
        return self._model.compute_loss(targets, self._head_outputs(outputs), anchors)

    def assign(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Labels (N, R) and boxes (N, R, 4), numbered as ours; the matching is `compute_loss`'s."""
        flat, labels, boxes = torch.cat(anchors), [], []
        for target in targets:
            if target["boxes"].numel() == 0:
                labels.append(torch.full((len(flat),), self._num_classes, device=flat.device))
                boxes.append(torch.zeros_like(flat))
                continue
            matcher = self._model.proposal_matcher
            matched = matcher(box_iou(target["boxes"], flat))
            owner = matched.clamp(min=0)
            label = target["labels"][owner]
            label[matched == matcher.BELOW_LOW_THRESHOLD] = self._num_classes
            label[matched == matcher.BETWEEN_THRESHOLDS] = -1
            labels.append(label)
            boxes.append(target["boxes"][owner])
        return torch.stack(labels), torch.stack(boxes)

    @torch.no_grad()
    def split(self, outputs: HeadOutputs) -> dict[str, list[Tensor]]:
        """The head's outputs by level in rows of anchors, as its forward hands them on."""
        counts = [len(level) for level in outputs.anchors]
        rows = self._head_outputs(outputs)
        return {name: list(values.split(counts, 1)) for name, values in rows.items()}

    @torch.no_grad()
    def detections(
        self, split: dict[str, list[Tensor]], anchors: list[Tensor], size: tuple[int, int]
    ) -> list[Detections]:
        """Detections of images of one size (height, width), from what `split` gave."""
        num_images = len(split["cls_logits"][0])
        found = self._model.postprocess_detections(
            split, [anchors] * num_images, [size] * num_images
        )
        return [Detections(image["boxes"], image["scores"], image["labels"]) for image in found]

    def _head_outputs(self, outputs: HeadOutputs) -> dict[str, Tensor]:
        """As the forward of its heads ends."""
        return {
            "cls_logits": torch.cat(rows_of_anchors(outputs.logits, self._num_classes), 1),
            "bbox_regression": torch.cat(rows_of_anchors(outputs.deltas, 4), 1),
        }


class Detectron2:
    """detectron2's `RetinaNet` with the defaults of its model zoo (L1 on deltas)."""

    name = "detectron2"

    def __init__(self, num_classes: int, device: torch.device) -> None:
        """Make the model around a backbone and a head that are never called.

        Args:
            num_classes: K.
            device: of what it will be given.

        Raises:
            ModuleNotFoundError: detectron2 is not installed.
        """
        self._structures: Any = importlib.import_module("detectron2.structures")
        self._events: Any = importlib.import_module("detectron2.utils.events")
        regression: Any = importlib.import_module("detectron2.modeling.box_regression")
        matching: Any = importlib.import_module("detectron2.modeling.matcher")
        architecture: Any = importlib.import_module("detectron2.modeling.meta_arch.retinanet")
        self._num_classes = num_classes
        self._model = architecture.RetinaNet(
            backbone=nn.Identity(),
            head=nn.Identity(),
            head_in_features=[],
            anchor_generator=nn.Identity(),
            box2box_transform=regression.Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
            anchor_matcher=matching.Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
            num_classes=num_classes,
            pixel_mean=[0.0, 0.0, 0.0],
            pixel_std=[1.0, 1.0, 1.0],
        ).to(device)

    @staticmethod
    def is_installed() -> bool:
        """Whether it can be imported."""
        return importlib.util.find_spec("detectron2") is not None

    def targets(self, targets: Targets) -> list[Any]:
        """As it wants them; the size of the image is of no meaning here."""
        instances = []
        for boxes, labels in zip(targets.boxes, targets.labels, strict=True):
            image = self._structures.Instances((1, 1))
            image.gt_boxes, image.gt_classes = self._structures.Boxes(boxes), labels
            instances.append(image)
        return instances

    def loss(self, outputs: HeadOutputs, targets: list[Any]) -> dict[str, Tensor]:
        """What its training forward does from the raw maps on."""
        logits = rows_of_anchors(outputs.logits, self._num_classes)
        deltas = rows_of_anchors(outputs.deltas, 4)
        anchors = [self._structures.Boxes(level) for level in outputs.anchors]
        labels, boxes = self._model.label_anchors(anchors, targets)
        with self._events.EventStorage():
            return self._model.losses(anchors, logits, labels, deltas, boxes)

    def assign(self, anchors: list[Tensor], targets: list[Any]) -> tuple[Tensor, Tensor]:
        """Labels (N, R) and boxes (N, R, 4), numbered as ours."""
        levels = [self._structures.Boxes(level) for level in anchors]
        labels, boxes = self._model.label_anchors(levels, targets)
        return torch.stack(labels), torch.stack(boxes)
