"""The training loss: assign anchors to boxes, then focal loss and box loss over a normaliser.

Apart from the model, so that a model is a function of images only and the loss can be studied and
changed by itself.

Shapes: N images, M boxes, A anchors a cell, K classes, R anchors in all, P positive anchors.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from retina_ray.config import ConfigError, ExperimentConfig
from retina_ray.ops.box_coder import BoxCoder
from retina_ray.ops.boxes import is_proper
from retina_ray.ops.focal import pyramid_focal_loss
from retina_ray.ops.losses import ciou_loss, diou_loss, giou_loss, smooth_l1_loss
from retina_ray.ops.matcher import Matcher
from retina_ray.structures import HeadOutputs, Targets

__all__ = ["RetinaNetCriterion"]

BoxLoss = Literal["smooth_l1", "giou", "diou", "ciou"]
Normalizer = Literal["ema", "batch"]


class RetinaNetCriterion(nn.Module):
    """Focal loss over all anchors and box loss over the positive ones, both over a normaliser.

    The normaliser is the number of positive anchors of a step over *all* workers, at least 1,
    smoothed over the steps or not. As DDP averages gradients over W workers, each worker's loss is
    its sum times W over the normaliser: the average is then what one worker would compute for the
    union of the batches.

    The smoothed normaliser is the buffer `normalizer`: on the device, in the state dict, the same
    on every worker. In evaluation mode it is used and not changed, and workers do not wait for each
    other (they may evaluate different numbers of batches).

    A call makes no tensor of size N * R * K beyond the gradient, and never waits for a GPU.
    """

    normalizer: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        matcher: Matcher,
        coder: BoxCoder,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        box_loss: BoxLoss = "smooth_l1",
        smooth_l1_beta: float = 0.1,
        box_loss_weight: float = 1.0,
        normalizer: Normalizer = "ema",
        normalizer_momentum: float = 0.9,
        normalizer_initial: float = 100.0,
    ) -> None:
        """Make a criterion.

        Args:
            num_classes: K.
            matcher: decides which anchors learn which box.
            coder: turns boxes into regression targets, and deltas into boxes.
            focal_alpha: weight of the positives in the focal loss; negative for no weighting.
            focal_gamma: focusing exponent of the focal loss.
            box_loss: smooth-L1 on deltas, or GIoU, DIoU or CIoU on decoded boxes.
            smooth_l1_beta: where smooth-L1 turns linear, in deltas; 0 is L1.
            box_loss_weight: factor on the box loss.
            normalizer: smoothed over the steps ("ema", as detectron2) or of the step ("batch").
            normalizer_momentum: weight of the past in the smoothing.
            normalizer_initial: number of positives that the smoothing starts from.

        Raises:
            ValueError: if `box_loss` or `normalizer` is none of the above.
        """
        super().__init__()
        for name, value, known in (
            ("box_loss", box_loss, get_args(BoxLoss)),
            ("normalizer", normalizer, get_args(Normalizer)),
        ):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        self.num_classes = num_classes
        self.matcher = matcher
        self.coder = coder
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.box_loss = box_loss
        self.smooth_l1_beta = smooth_l1_beta
        self.box_loss_weight = box_loss_weight
        self.is_smoothed = normalizer == "ema"
        self.normalizer_momentum = normalizer_momentum
        self.register_buffer("normalizer", torch.tensor(float(normalizer_initial)))

    @classmethod
    def from_config(cls, config: ExperimentConfig) -> RetinaNetCriterion:
        """The criterion that `config.model`, `config.matcher` and `config.loss` describe.

        Raises:
            ConfigError: if the number of classes has not been taken from the data set yet.
        """
        num_classes = config.model.num_classes
        if num_classes is None:
            raise ConfigError(
                [("model.num_classes", "null: set it to the data set's number of classes first")]
            )
        matching, loss = config.matcher, config.loss
        return cls(
            num_classes=num_classes,
            matcher=Matcher(matching.low, matching.high, matching.allow_low_quality),
            coder=BoxCoder(config.model.box_weights),
            focal_alpha=loss.focal_alpha,
            focal_gamma=loss.focal_gamma,
            box_loss=loss.box_loss,
            smooth_l1_beta=loss.smooth_l1_beta,
            box_loss_weight=loss.box_loss_weight,
            normalizer=loss.normalizer,
            normalizer_momentum=loss.normalizer_momentum,
            normalizer_initial=loss.normalizer_initial,
        )

    def forward(self, outputs: HeadOutputs, targets: Targets) -> dict[str, Tensor]:
        """Loss of a batch; in training mode, also the next value of the normaliser.

        Args:
            outputs: of the model.
            targets: true boxes on the same device; images without boxes are all background.

        Returns:
            `loss_cls` and `loss_box_reg`, float32 scalars that carry gradients.

        Raises:
            ValueError: if targets and outputs do not fit each other, or (seen on the CPU only) a
                label is K or more.
        """
        labels, matched_boxes = self.assign(outputs.anchors, targets)
        positive = (labels >= 0) & (labels != self.num_classes)
        scale = self._loss_scale(positive)
        loss_cls = pyramid_focal_loss(
            outputs.logits,
            labels,
            num_classes=self.num_classes,
            alpha=self.focal_alpha,
            gamma=self.focal_gamma,
        )
        loss_box_reg = self._box_loss_sum(outputs, matched_boxes, positive)
        return {
            "loss_cls": loss_cls * scale,
            "loss_box_reg": loss_box_reg * (scale * self.box_loss_weight),
        }

    @torch.no_grad()
    def assign(self, anchors: list[Tensor], targets: Targets) -> tuple[Tensor, Tensor]:
        """What each anchor is to learn.

        Padding, and boxes without area or with a NaN or an infinity, match nothing.

        Args:
            anchors: per level (R_l, 4).
            targets: true boxes of N images.

        Returns:
            Labels (N, R) int64: 0 to K-1 for positive anchors, K for background, -1 for ignored
            ones; and the boxes (N, R, 4) float32 to be learnt, of no meaning unless positive.
        """
        flat_anchors = torch.cat(anchors)
        boxes = targets.boxes.to(flat_anchors.dtype)
        on_cpu = targets.labels.device.type == "cpu"
        if on_cpu and bool((targets.labels >= self.num_classes).any()):
            raise ValueError(
                f"targets: label {int(targets.labels.max())} found, expected 0 to "
                f"{self.num_classes - 1} (-1 for padding); is model.num_classes that of the data?"
            )
        usable = (targets.labels >= 0) & is_proper(boxes)
        boxes = boxes.masked_fill(~usable[..., None], 0.0)
        match = self.matcher.match_boxes(boxes, flat_anchors)
        if boxes.shape[1] == 0:
            labels = torch.full_like(match.index, self.num_classes)
            return labels, boxes.new_zeros(*labels.shape, 4)
        labels = targets.labels.gather(1, match.index)
        labels = labels.where(match.positive, self.num_classes).masked_fill(match.ignored, -1)
        return labels, boxes.gather(1, match.index[..., None].expand(-1, -1, 4))

    @torch.no_grad()
    def _loss_scale(self, positive: Tensor) -> Tensor:
        """Workers over normaliser, a scalar; in training mode, updates the normaliser."""
        num_positive = positive.sum().to(self.normalizer.dtype)
        num_workers = 1
        if dist.is_available() and dist.is_initialized():
            num_workers = dist.get_world_size()
        if self.training:
            if num_workers > 1:
                dist.all_reduce(num_positive)
            num_positive.clamp_(min=1)
            momentum = self.normalizer_momentum if self.is_smoothed else 0.0
            self.normalizer.mul_(momentum).add_(num_positive, alpha=1 - momentum)
        elif not self.is_smoothed:
            return 1 / num_positive.clamp_(min=1)
        return num_workers / self.normalizer

    def _box_loss_sum(
        self, outputs: HeadOutputs, matched_boxes: Tensor, positive: Tensor
    ) -> Tensor:
        """Sum of the box loss over the positive anchors.

        On the CPU the positive rows are gathered. On a GPU their number is not known without
        waiting for it, so all rows take part, and the others get a pair without loss and gradient.

        Args:
            outputs: of the model.
            matched_boxes: (N, R, 4).
            positive: (N, R) bool.
        """
        deltas = _rows_of_anchors(outputs.deltas)
        anchors = torch.cat(outputs.anchors).expand_as(deltas)
        if positive.device.type == "cpu":
            return self._paired_box_loss(
                deltas[positive], anchors[positive], matched_boxes[positive]
            )
        return self._paired_box_loss(
            *_neutralise(deltas, anchors, matched_boxes, positive[..., None])
        )

    def _paired_box_loss(self, deltas: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Sum of the box loss over rows: deltas, anchors and true boxes, (..., 4) each."""
        if self.box_loss == "smooth_l1":
            target = self.coder.encode(anchors, boxes)
            return smooth_l1_loss(deltas, target, self.smooth_l1_beta)
        iou_losses = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}
        return iou_losses[self.box_loss](self.coder.decode(deltas, anchors), boxes)


def _rows_of_anchors(deltas: list[Tensor]) -> Tensor:
    """Bring (N, A * 4, H, W) of each level into the order of the anchors: (N, R, 4)."""
    rows = []
    for level in deltas:
        num_images, channels, height, width = level.shape
        by_anchor = level.reshape(num_images, channels // 4, 4, height, width)
        rows.append(by_anchor.permute(0, 3, 4, 1, 2).flatten(1, 3))
    return torch.cat(rows, 1)


def _neutralise(
    deltas: Tensor, anchors: Tensor, boxes: Tensor, positive: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Replace the rows (N, R, 4) that are not positive by a perfect prediction, exactly loss 0.

    The stand-in anchor [-1, 1] x [-1, 1] is decoded from deltas of 0 without rounding.
    """
    unit = anchors.new_ones(4)
    unit[:2] = -1
    return (
        deltas.where(positive, 0.0),
        anchors.where(positive, unit),
        boxes.where(positive, unit),
    )
