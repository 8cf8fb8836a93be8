"""RetinaNet's head: two small subnets that all pyramid levels share.

Shapes: N images, A anchors a cell, K classes, H_l x W_l cells of level l.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from retina_ray.config import ModelConfig
from retina_ray.model.norms import NormName, PerLevelBatchNorm2d, make_norm

_DEFAULT = ModelConfig()


class RetinaNetHead(nn.Module):
    """Class scores and box deltas for every anchor (Focal Loss paper, section 4).

    Two towers of the same form and with parameters of their own, each `num_convs` times 3x3
    convolution, norm, ReLU, then a 3x3 convolution to A*K logits or A*D deltas.

    Initialised as in section 4.1: weights from a normal of standard deviation 0.01, biases 0, and
    the bias of the class scores at -log((1 - p) / p), so that every anchor starts with a score of
    about p = `prior_prob` and the many negatives do not swamp the first steps.

    Batch norms have statistics per level and share weight and bias over the levels; group norm is
    shared. Without `channels`, the towers have those of the pyramid; `num_convs` 0 predicts from it
    directly. `box_dim` is D: 4, or 5 for boxes with an angle.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        num_levels: int,
        num_anchors: int,
        num_classes: int,
        num_convs: int = _DEFAULT.head_num_convs,
        channels: int | None = None,
        norm: NormName = "none",
        prior_prob: float = _DEFAULT.prior_prob,
        box_dim: int = 4,
    ) -> None:
        super().__init__()
        if not 0 < prior_prob < 1:
            raise ValueError(f"prior_prob is {prior_prob}: expected a number between 0 and 1")
        channels = channels or in_channels
        self.num_levels = num_levels
        self.num_anchors = num_anchors
        self.num_classes = num_classes
        self.num_convs = num_convs
        self.cls_tower, self.box_tower = (
            _Tower(in_channels, channels, num_convs=num_convs, num_levels=num_levels, norm=norm)
            for _ in range(2)
        )
        last = channels if num_convs else in_channels
        self.cls_score = nn.Conv2d(last, num_anchors * num_classes, 3, padding=1)
        self.box_pred = nn.Conv2d(last, num_anchors * box_dim, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        assert self.cls_score.bias is not None
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predict from (N, in_channels, H_l, W_l) of each level, from fine to coarse.

        Returns:
            Logits, per level (N, A*K, H_l, W_l) with channel a*K + k, and deltas, per level
            (N, A*D, H_l, W_l) with channel a*D + (dx, dy, dw, dh[, da]).

        Raises:
            ValueError: the number of levels is not the head's.
        """
        if len(features) != self.num_levels:
            raise ValueError(f"{len(features)} feature maps for a head of {self.num_levels} levels")
        logits = [self.cls_score(self.cls_tower(x, level)) for level, x in enumerate(features)]
        deltas = [self.box_pred(self.box_tower(x, level)) for level, x in enumerate(features)]
        return logits, deltas


class _Tower(nn.Module):
    """`num_convs` times 3x3 convolution, norm, ReLU."""

    def __init__(
        self, in_channels: int, channels: int, *, num_convs: int, num_levels: int, norm: NormName
    ) -> None:
        super().__init__()
        inputs = [in_channels, *[channels] * num_convs][:num_convs]
        # The convolutions keep their bias under a norm, as detectron2's do: weights map one to one.
        self.convs = nn.ModuleList(nn.Conv2d(n, channels, 3, padding=1) for n in inputs)
        self.norms = nn.ModuleList(_tower_norm(norm, channels, num_levels) for _ in inputs)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """(N, in_channels, H, W) to (N, channels, H, W) for the level at that index."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(x)
            x = norm(x, level) if isinstance(norm, PerLevelBatchNorm2d) else norm(x)
            x = F.relu(x)
        return x


def _tower_norm(norm: NormName, channels: int, num_levels: int) -> nn.Module:
    if norm == "bn" or norm == "sync_bn":
        return PerLevelBatchNorm2d(channels, num_levels=num_levels, name=norm)
    return make_norm(norm, channels)
