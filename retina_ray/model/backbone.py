"""ResNet and ResNeXt trunks that give the feature maps C2 to C5.

Shapes: N images, H and W pixels; C_l is the map of level l with a stride of 2**l pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, list_models
from torchvision.models.resnet import Bottleneck, ResNet

from retina_ray.model.norms import NormName, make_norm

_FAMILIES = ("resnet", "resnext", "wide_resnet")


class ResNetBackbone(nn.Module):
    """torchvision's ResNet without its classifier, with a choice of norm and frozen stages.

    Parameter names are torchvision's (`conv1`, `bn1`, `layer1` to `layer4`), so its ImageNet
    weights load as they are. From scratch, convolutions start with Kaiming's normal, fan-out
    ("Delving Deep into Rectifiers", He et al. 2015, equation 14).

    `freeze_stages` have no gradient, counted from the stem: 0 none, 1 the stem, 2 the stem and
    layer1, up to 5, all. Their batch norms stay in evaluation mode. `stride_in_1x1` puts the stride
    of a bottleneck in its first 1x1 convolution, as MSRA's original weights have it (and
    detectron2's model zoo, which started from them); torchvision has it in the 3x3.

    Raises:
        ValueError: a name that is no ResNet of torchvision's, `freeze_stages` out of range, or
            `stride_in_1x1` for a ResNet without bottlenecks.
    """

    def __init__(
        self,
        name: str,
        *,
        norm: NormName = "frozen_bn",
        freeze_stages: int = 0,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= freeze_stages <= 5:
            raise ValueError(f"freeze_stages is {freeze_stages}: expected 0 (none) to 5 (all)")
        known = [n for n in list_models(torchvision.models) if n.startswith(_FAMILIES)]
        if name not in known:
            raise ValueError(f"{name} is not one of torchvision's ResNets: {', '.join(known)}")
        trunk = get_model(name, weights=None, num_classes=1, norm_layer=partial(make_norm, norm))
        assert isinstance(trunk, ResNet)
        self.name = name
        levels = (2, 3, 4, 5)
        self.channels: Mapping[int, int] = {n: trunk.inplanes // 2 ** (5 - n) for n in levels}
        self.conv1 = trunk.conv1
        self.bn1 = trunk.bn1
        self.relu = trunk.relu
        self.maxpool = trunk.maxpool
        self.layer1 = trunk.layer1
        self.layer2 = trunk.layer2
        self.layer3 = trunk.layer3
        self.layer4 = trunk.layer4
        self.stride_in_1x1 = stride_in_1x1
        if stride_in_1x1:
            self._move_strides()
        self.freeze_stages = freeze_stages
        for module in self._frozen():
            module.requires_grad_(False)
        self.train()

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """Normalized RGB (N, 3, H, W) to C_l by level, (N, channels[l], H / 2**l, W / 2**l).

        Any H and W; what does not divide is rounded up.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features = {2: self.layer1(x)}
        features[3] = self.layer2(features[2])
        features[4] = self.layer3(features[3])
        features[5] = self.layer4(features[4])
        return features

    def train(self, mode: bool = True) -> ResNetBackbone:
        """Set the mode; frozen stages stay in evaluation mode, so their statistics do not move."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        stem = [self.conv1, self.bn1] if self.freeze_stages else []
        stages = [self.layer1, self.layer2, self.layer3, self.layer4]
        return [*stem, *stages[: max(self.freeze_stages - 1, 0)]]

    def _move_strides(self) -> None:
        """Give each bottleneck's first convolution the stride of its second."""
        blocks = [m for m in self.modules() if isinstance(m, Bottleneck)]
        if not blocks:
            raise ValueError(
                f"stride_in_1x1 has no meaning for {self.name}, whose blocks have no 1x1 "
                "convolution to put the stride in: set it to False"
            )
        for block in blocks:
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
