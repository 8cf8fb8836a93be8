"""RetinaNet, from uint8 images to logits, box deltas and anchors (Focal Loss paper, 1708.02002).

Shapes: N images, H and W pixels (padded), A anchors a cell, K classes, H_l x W_l cells of level l.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from retina_ray.config import ConfigError, ModelConfig
from retina_ray.model.backbone import ResNetBackbone
from retina_ray.model.fpn import FPN
from retina_ray.model.head import RetinaNetHead
from retina_ray.ops.anchors import AnchorGenerator
from retina_ray.ops.rotated.anchors import RotatedAnchorGenerator
from retina_ray.structures import HeadOutputs, ImageBatch

logger = logging.getLogger(__name__)

_DEFAULT = ModelConfig()


class RetinaNet(nn.Module):
    """Backbone, pyramid, head and anchors; the loss is `RetinaNetCriterion`, apart.

    The output is the same in training and in evaluation.

    The pixel statistics are buffers, so they follow the model to its device, but not persistent:
    the config that lies beside every checkpoint holds them, and a second copy in the weights could
    silently overrule a value that was set on purpose.

    Attributes:
        size_divisibility: pad images to a multiple of this, so that no level up to P5 has a cell
            that is partly outside; other sizes work as well.

    Raises:
        ValueError: the parts do not have the same number of levels, or of anchors a cell.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        backbone: ResNetBackbone,
        fpn: FPN,
        head: RetinaNetHead,
        anchors: AnchorGenerator,
        pixel_mean: Sequence[float] = _DEFAULT.pixel_mean,
        pixel_std: Sequence[float] = _DEFAULT.pixel_std,
    ) -> None:
        super().__init__()
        levels = {
            "fpn": len(fpn.levels),
            "head": head.num_levels,
            "anchors": len(anchors.cell_anchors),
        }
        if len(set(levels.values())) != 1:
            raise ValueError(f"the parts have different numbers of levels: {levels}")
        if wrong := [len(a) for a in anchors.cell_anchors if len(a) != head.num_anchors]:
            raise ValueError(f"{wrong[0]} anchors a cell for a head of {head.num_anchors}")
        self.backbone = backbone
        self.fpn = fpn
        self.head = head
        self.anchors = anchors
        self.num_classes = head.num_classes
        self.size_divisibility = 32
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, config: ModelConfig) -> RetinaNet:
        """Build the model that a config describes, with random weights.

        Loading is left to the caller, so that whoever has a checkpoint needs neither a network nor
        the file that training once started from: `load_backbone(model.backbone,
        config.backbone_weights)` starts a training.

        Raises:
            ConfigError: `num_classes` is null, or anchors are still to be fitted.
        """
        if config.num_classes is None:
            message = "null: take it from the data set's class names before building the model"
            raise ConfigError([("model.num_classes", message)])
        if config.anchors.fit != "none":
            message = (
                f'"{config.anchors.fit}": anchors are fitted to the data set before the model is '
                "built; a finished run's config.json has the numbers"
            )
            raise ConfigError([("model.anchors.fit", message)])
        backbone = ResNetBackbone(
            config.backbone,
            norm=config.backbone_norm,
            freeze_stages=config.freeze_stages,
            stride_in_1x1=config.backbone_stride_in_1x1,
        )
        _warn_of_random_weights(config)
        fpn = FPN(
            backbone.channels,
            out_channels=config.fpn_channels,
            min_level=config.min_level,
            max_level=config.max_level,
            norm=config.fpn_norm,
            fuse=config.fpn_fuse,
            top_input=config.top_input,
        )
        head = RetinaNetHead(
            config.fpn_channels,
            num_levels=len(config.levels),
            num_anchors=config.num_anchors,
            num_classes=config.num_classes,
            num_convs=config.head_num_convs,
            channels=config.head_channels,
            norm=config.head_norm,
            prior_prob=config.prior_prob,
            box_dim=config.box_dim,
        )
        is_rotated = config.box_type == "rotated"
        generator = RotatedAnchorGenerator if is_rotated else AnchorGenerator
        return cls(
            backbone=backbone,
            fpn=fpn,
            head=head,
            anchors=generator.from_config(config),
            pixel_mean=config.pixel_mean,
            pixel_std=config.pixel_std,
        )

    def forward(self, images: ImageBatch) -> HeadOutputs:
        """Logits, deltas and anchors by level, the first two in the type that autocast gives."""
        features = self.fpn(self.backbone(self.normalize(images)))
        logits, deltas = self.head(features)
        sizes = [(x.shape[-2], x.shape[-1]) for x in features]
        return HeadOutputs(logits, deltas, self.anchors(sizes))

    def normalize(self, images: ImageBatch) -> Tensor:
        """Subtract the mean, divide by the standard deviation, then set the padding to 0.

        In this order the padding is the mean colour to the network, whatever the batch holds
        there, as in detectron2 and torchvision.

        Returns (N, 3, H, W) float32, in the memory format of the pixels.
        """
        x = (images.pixels.to(torch.float32) - self.pixel_mean) / self.pixel_std
        height, width = x.shape[-2:]
        sizes = images.sizes.view(-1, 1, 2)
        rows = torch.arange(height, device=x.device) >= sizes[..., 0]  # (N, H)
        columns = torch.arange(width, device=x.device) >= sizes[..., 1]  # (N, W)
        padding = rows[:, None, :, None] | columns[:, None, None, :]
        return x.masked_fill_(padding, 0)  # in place: the other one loses channels_last


def _warn_of_random_weights(config: ModelConfig) -> None:
    """Say so where a training from random weights cannot learn well."""
    if config.backbone_weights is not None:
        return
    hindrances = []
    if config.backbone_norm == "frozen_bn":
        hindrances.append("backbone_norm 'frozen_bn' does not normalize")
    if config.freeze_stages:
        hindrances.append(f"freeze_stages {config.freeze_stages} keeps random weights as they are")
    if hindrances:
        logger.warning(
            "model.backbone_weights is null, so training starts the backbone from random weights, "
            "and %s: it will not learn well. Set model.backbone_weights, or model.backbone_norm "
            "to 'gn' or 'bn' and model.freeze_stages to 0.",
            " and ".join(hindrances),
        )
