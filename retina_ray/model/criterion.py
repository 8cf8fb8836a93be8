"""The training loss: assign anchors to boxes, then class loss and box loss over a normalizer.

Shapes: N images, M boxes, A anchors a cell, K classes, R anchors in all, P positive anchors; D
numbers make a box: 4, or 5 with an angle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from retina_ray.config import ConfigError, ExperimentConfig, LossConfig
from retina_ray.model.assignment import Assigner, Assignment, assign, make_matcher
from retina_ray.model.box_pairs import BoxPairs, all_rows, positive_rows
from retina_ray.model.coders import make_coder
from retina_ray.ops.boxes import paired_iou
from retina_ray.ops.class_terms import ClassLoss
from retina_ray.ops.focal import pyramid_class_loss
from retina_ray.ops.losses import ciou_loss, diou_loss, giou_loss, smooth_l1_loss
from retina_ray.ops.postprocess import Coder
from retina_ray.ops.rotated.boxes import paired_rotated_iou
from retina_ray.structures import HeadOutputs, Targets

_DEFAULT = LossConfig()

BoxLoss = Literal["smooth_l1", "giou", "diou", "ciou"]
Normalizer = Literal["ema", "batch"]

_IOU_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


class RetinaNetCriterion(nn.Module):
    """Class loss over all anchors and box loss over the positive ones, both over a normalizer.

    The normalizer is the number of positive anchors of a step over *all* workers, at least 1,
    smoothed over the steps or not. As DDP averages gradients over W workers, each worker's loss is
    its sum times W over the normalizer: the average is then what one worker would compute for the
    union of the batches.

    The smoothed normalizer is the buffer `normalizer`: on the device, in the state dict, the same
    on every worker. In evaluation mode it is used and not changed, and workers do not wait for each
    other (they may evaluate different numbers of batches).

    A call makes no tensor of size N * R * K beyond the gradient, and never waits for a GPU (but for
    rotated boxes, whose exact overlap is computed only for the pairs that come near each other).
    """

    normalizer: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        matcher: Assigner,
        coder: Coder,
        cls_loss: ClassLoss = _DEFAULT.cls_loss,
        focal_alpha: float | Tensor = _DEFAULT.focal_alpha,
        focal_gamma: float | Tensor = _DEFAULT.focal_gamma,
        box_loss: BoxLoss = _DEFAULT.box_loss,
        smooth_l1_beta: float = _DEFAULT.smooth_l1_beta,
        box_loss_weight: float = _DEFAULT.box_loss_weight,
        normalizer: Normalizer = _DEFAULT.normalizer,
        normalizer_momentum: float = _DEFAULT.normalizer_momentum,
        normalizer_initial: float = _DEFAULT.normalizer_initial,
        compile_loss: bool = False,
    ) -> None:
        """Take the settings of `retina_ray.config.LossConfig` under the same names.

        The matcher decides which anchors learn which box, the coder turns boxes into regression
        targets, and deltas into boxes; `compile_loss` lets torch.compile make one loop of the class
        loss.

        Raises:
            ValueError: `cls_loss`, `box_loss` or `normalizer` is none of the known ones.
        """
        super().__init__()
        for name, value, known in (
            ("cls_loss", cls_loss, get_args(ClassLoss)),
            ("box_loss", box_loss, get_args(BoxLoss)),
            ("normalizer", normalizer, get_args(Normalizer)),
        ):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        self.num_classes = num_classes
        self.matcher = matcher
        self.coder = coder
        self.cls_loss: ClassLoss = cls_loss
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.box_loss = box_loss
        self.smooth_l1_beta = smooth_l1_beta
        self.box_loss_weight = box_loss_weight
        self.is_smoothed = normalizer == "ema"
        self.normalizer_momentum = normalizer_momentum
        self.compile_loss = compile_loss
        self.register_buffer("normalizer", torch.tensor(float(normalizer_initial)))

    @classmethod
    def from_config(cls, config: ExperimentConfig) -> RetinaNetCriterion:
        """The criterion that `config.model`, `.matcher`, `.loss` and `.train.compile` describe.

        Raises:
            ConfigError: if the number of classes has not been taken from the data set yet.
        """
        num_classes = config.model.num_classes
        if num_classes is None:
            raise ConfigError(
                [("model.num_classes", "null: set it to the data set's number of classes first")]
            )
        loss = config.loss
        return cls(
            num_classes=num_classes,
            matcher=make_matcher(config.matcher),
            coder=make_coder(config.model),
            cls_loss=loss.cls_loss,
            focal_alpha=loss.focal_alpha,
            focal_gamma=loss.focal_gamma,
            box_loss=loss.box_loss,
            smooth_l1_beta=loss.smooth_l1_beta,
            box_loss_weight=loss.box_loss_weight,
            normalizer=loss.normalizer,
            normalizer_momentum=loss.normalizer_momentum,
            normalizer_initial=loss.normalizer_initial,
            compile_loss=config.train.compile != "none",
        )

    def forward(self, outputs: HeadOutputs, targets: Targets) -> dict[str, Tensor]:
        """Loss of a batch; in training mode, also the next value of the normalizer.

        Images without boxes are all background.

        Returns:
            `loss_cls` and `loss_box_reg`, float32 scalars that carry gradients.

        Raises:
            ValueError: if targets and outputs do not fit each other, or (seen on the CPU only) a
                label is K or more.
        """
        assignment = self.assign(outputs, targets)
        return self.losses(outputs, assignment, self.loss_scale(assignment.positive.sum()))

    def losses(
        self, outputs: HeadOutputs, assignment: Assignment, scale: Tensor
    ) -> dict[str, Tensor]:
        """Loss of a batch whose anchors are assigned and whose share of the step is known.

        With `assign_to` and `loss_scale` this is `forward` in parts: a step that takes several
        batches one after the other needs the number of positives of all of them before the first
        loss. Returns as `forward`.
        """
        pairs = self._pairs(outputs, assignment)
        loss_cls = pyramid_class_loss(
            outputs.logits,
            assignment.labels,
            self._quality(pairs, assignment),
            num_classes=self.num_classes,
            kind=self.cls_loss,
            alpha=self.focal_alpha,
            gamma=self.focal_gamma,
            compiled=self.compile_loss,
        )
        return {
            "loss_cls": loss_cls * scale,
            "loss_box_reg": self._box_loss_sum(pairs) * (scale * self.box_loss_weight),
        }

    def assign(self, outputs: HeadOutputs, targets: Targets) -> Assignment:
        """What each anchor is to learn; see `retina_ray.model.assignment.assign`."""
        grid_sizes = [(level.shape[2], level.shape[3]) for level in outputs.logits]
        return self.assign_to(outputs.anchors, grid_sizes, targets)

    def assign_to(
        self, anchors: Sequence[Tensor], grid_sizes: Sequence[tuple[int, int]], targets: Targets
    ) -> Assignment:
        """The same before there are any outputs: only anchors and targets take part in it."""
        return assign(
            anchors, grid_sizes, targets, matcher=self.matcher, num_classes=self.num_classes
        )

    @torch.no_grad()
    def loss_scale(self, num_positive: Tensor) -> Tensor:
        """Workers over normalizer, the factor on the sums of a step; in training, moves it on.

        `num_positive` is the scalar number of positive anchors of this worker in the step.
        """
        num_positive = num_positive.to(self.normalizer.dtype, copy=True)  # reduced in place
        num_workers = 1
        if dist.is_available() and dist.is_initialized():
            num_workers = dist.get_world_size()
        if self.training:
            if num_workers > 1:
                dist.all_reduce(num_positive)
            num_positive = num_positive.clamp(min=1)
            momentum = self.normalizer_momentum if self.is_smoothed else 0.0
            self.normalizer.mul_(momentum).add_(num_positive, alpha=1 - momentum)
        elif not self.is_smoothed:
            return 1 / num_positive.clamp(min=1)
        return num_workers / self.normalizer

    def _pairs(self, outputs: HeadOutputs, assignment: Assignment) -> BoxPairs:
        """Deltas, anchors and true boxes of the positive anchors.

        On the CPU the positive rows are gathered. On a GPU their number is not known without
        waiting for it, so all rows take part, and the others get a pair without loss and gradient;
        rotated boxes have waited already.
        """
        is_rotated = assignment.boxes.shape[-1] == 5
        if is_rotated or assignment.positive.device.type == "cpu":
            return positive_rows(outputs, assignment)
        return all_rows(outputs, assignment)

    @torch.no_grad()
    def _quality(self, pairs: BoxPairs, assignment: Assignment) -> Tensor | None:
        """IoU (N, R) of the predicted with the true boxes; None where no loss looks at it."""
        if self.cls_loss == "focal":
            return None
        predicted = self.coder.decode(pairs.deltas, pairs.anchors)
        overlap = paired_iou if predicted.shape[-1] == 4 else paired_rotated_iou
        return pairs.as_table(overlap(predicted, pairs.boxes), assignment.labels.shape)

    def _box_loss_sum(self, pairs: BoxPairs) -> Tensor:
        if self.box_loss == "smooth_l1":
            target = self.coder.encode(pairs.anchors, pairs.boxes)
            return smooth_l1_loss(pairs.deltas, target, self.smooth_l1_beta)
        predicted = self.coder.decode(pairs.deltas, pairs.anchors)
        return _IOU_LOSSES[self.box_loss](predicted, pairs.boxes)
