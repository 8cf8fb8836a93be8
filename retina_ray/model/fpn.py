"""Feature pyramid network (Lin et al. 2017) with RetinaNet's extra levels P6 and P7.

Shapes: N images; P_l has a stride of 2**l pixels and H_l x W_l cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from retina_ray.model.norms import NormName, make_norm

TOP_BACKBONE_LEVEL = 5


class FPN(nn.Module):
    """Top-down pathway over C_l, and strided convolutions for the levels above P5.

    Feature Pyramid Networks, section 3: a 1x1 lateral convolution on each C_l, the coarser map
    up-sampled to the nearest neighbour and merged, a 3x3 output convolution on each merged map.
    Focal Loss paper, section 4, footnote 2: P6 is a 3x3 convolution of stride 2 on C5, P7 a ReLU
    and the same on P6. The maps of any image size fit: up-sampling goes to the size of the finer
    map, not by a factor of two.

    `in_channels` has the channels of C_l by level, `min_level` (2 or more) to 5; `max_level` is 5
    to 7. Norms come after lateral and output convolutions, which then have no bias; P6 and P7 have
    none. `fuse` is of lateral and up-sampled map, `top_input` what P6 is computed from.

    Raises:
        ValueError: levels out of range or missing in `in_channels`.
    """

    def __init__(
        self,
        in_channels: Mapping[int, int],
        *,
        out_channels: int = 256,
        min_level: int = 3,
        max_level: int = 7,
        norm: NormName = "none",
        fuse: Literal["sum", "avg"] = "sum",
        top_input: Literal["c5", "p5"] = "c5",
    ) -> None:
        super().__init__()
        merged = range(min_level, TOP_BACKBONE_LEVEL + 1)
        if not 2 <= min_level <= TOP_BACKBONE_LEVEL <= max_level <= 7:
            raise ValueError(
                f"levels {min_level} to {max_level}: expected min_level 2 to 5, max_level 5 to 7"
            )
        if missing := [level for level in merged if level not in in_channels]:
            raise ValueError(f"in_channels has levels {sorted(in_channels)}, needs also {missing}")
        self.levels = tuple(range(min_level, max_level + 1))
        self.out_channels = out_channels
        self.fuse = fuse
        self.top_input = top_input
        self.laterals = nn.ModuleDict(
            {f"p{n}": ConvNorm(in_channels[n], out_channels, 1, norm=norm) for n in merged}
        )
        self.outputs = nn.ModuleDict(
            {f"p{n}": ConvNorm(out_channels, out_channels, 3, norm=norm) for n in merged}
        )
        self.extra = nn.ModuleDict()
        channels = in_channels[TOP_BACKBONE_LEVEL] if top_input == "c5" else out_channels
        for level in range(TOP_BACKBONE_LEVEL + 1, max_level + 1):
            conv = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)
            _init_conv(conv)
            self.extra[f"p{level}"] = conv
            channels = out_channels

    def forward(self, features: Mapping[int, Tensor]) -> list[Tensor]:
        """C_l by level, (N, in_channels[l], H_l, W_l), to P_l, (N, out_channels, H_l, W_l).

        P_l go from fine to coarse; above 5, H_l = ceil(H_(l-1) / 2).
        """
        outputs: list[Tensor] = []
        merged: Tensor | None = None
        for level in range(TOP_BACKBONE_LEVEL, self.levels[0] - 1, -1):
            lateral = self.laterals[f"p{level}"](features[level])
            merged = lateral if merged is None else self._merge(lateral, merged)
            outputs.insert(0, self.outputs[f"p{level}"](merged))
        top = features[TOP_BACKBONE_LEVEL] if self.top_input == "c5" else outputs[-1]
        for index, conv in enumerate(self.extra.values()):
            top = conv(F.relu(top) if index else top)
            outputs.append(top)
        return outputs

    def _merge(self, lateral: Tensor, coarser: Tensor) -> Tensor:
        merged = lateral + F.interpolate(coarser, size=lateral.shape[-2:], mode="nearest")
        return merged / 2 if self.fuse == "avg" else merged


class ConvNorm(nn.Module):
    """A convolution that keeps the size, and its norm; a bias only where there is no norm."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, norm: NormName = "none"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            padding=kernel_size // 2,
            bias=norm == "none",
        )
        self.norm = make_norm(norm, out_channels)
        _init_conv(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H, W)."""
        return self.norm(self.conv(x))


def _init_conv(conv: nn.Conv2d) -> None:
    """Caffe2's XavierFill: uniform with variance 1 / fan-in, bias 0 (as detectron2's FPN)."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
