"""Normalization layers: frozen, per-batch, synchronized, per-level and group normalization.

Shapes: N images, C channels, H and W cells.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

BatchNormName = Literal["bn", "sync_bn"]
NormName = Literal["none", "frozen_bn", "bn", "sync_bn", "gn"]

NUM_GROUPS = 32
"""Groups of group normalization (Wu and He 2018, section 4: 32 is their default)."""


def make_norm(name: NormName, num_channels: int) -> nn.Module:
    """Build a normalization layer; `none` gives an `nn.Identity`, which has no state.

    Raises:
        ValueError: an unknown name, or channels that do not divide into the groups.
    """
    match name:
        case "none":
            return nn.Identity()
        case "frozen_bn":
            return FrozenBatchNorm2d(num_channels)
        case "bn":
            return nn.BatchNorm2d(num_channels)
        case "sync_bn":
            return SyncBatchNorm2d(num_channels)
        case "gn":
            if num_channels % NUM_GROUPS:
                raise ValueError(
                    f"{num_channels} channels do not divide into group norm's {NUM_GROUPS} "
                    f"groups: choose a multiple of {NUM_GROUPS}, or another norm"
                )
            return GroupNorm(NUM_GROUPS, num_channels)
    raise ValueError(f"unknown norm {name!r}: expected none, frozen_bn, bn, sync_bn or gn")


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` that also takes a single value in each group.

    `F.group_norm` refuses that, in evaluation too; it is what a coarse level of one small image
    has. The output is then the bias.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class FrozenBatchNorm2d(nn.Module):
    """Batch normalization with fixed statistics and a fixed affine map.

    All four tensors are buffers, so they are saved but neither trained nor counted as parameters.
    They carry the names of `nn.BatchNorm2d`, so weights of the one load into the other. The output
    keeps the type of the input: under autocast the feature maps stay in the short type.

    Until weights are loaded it changes nothing: the variance starts at 1 - eps, as detectron2's.
    """

    eps = 1e-5
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(num_channels))
        self.register_buffer("bias", torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels) - self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        if not x.requires_grad:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        # F.batch_norm would keep x for the gradient of its weight, which nobody asks for here:
        # an affine map keeps nothing of the size of x.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return _affine(x, scale, self.bias - self.running_mean * scale)

    def extra_repr(self) -> str:
        """Channels and eps for `print(model)`."""
        return f"{self.weight.numel()}, eps={self.eps}"


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.SyncBatchNorm` that also runs on CPUs.

    PyTorch's refuses CPU tensors as soon as a process group exists, which is what a training run
    on a laptop has; and `DistributedDataParallel` refuses models on a CPU with a layer of that
    type, so this is none.
    """

    process_group = None
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (N, C, H, W); in training, by the statistics over all processes."""
        if input.device.type != "cpu":
            return nn.SyncBatchNorm.forward(self, input)  # pyright: ignore[reportArgumentType]
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        mean, variance, count = _moments_over_processes(input)
        self._update(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = (variance + self.eps).rsqrt().float()
        shift = -mean.float() * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        return _affine(input, scale, shift)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics; the variance is the unbiased one, as in PyTorch."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean.float(), self.momentum)
        self.running_var.lerp_(variance.float(), self.momentum)
        self.num_batches_tracked += 1


class PerLevelBatchNorm2d(nn.Module):
    """Batch normalization for a layer that all pyramid levels share.

    Each level has its own statistics, because features of different levels differ in scale and one
    running mean would fit none of them in evaluation; the affine map is shared, as the convolution
    before it is ("Rethinking 'Batch' in BatchNorm", Wu and Johnson 2021, section 5.2; detectron2's
    head does the same).
    head does the same). With `sync_bn` they are over all workers.
    """

    def __init__(self, num_channels: int, *, num_levels: int, name: BatchNormName = "bn") -> None:
        super().__init__()
        norm = SyncBatchNorm2d if name == "sync_bn" else nn.BatchNorm2d
        self.levels = nn.ModuleList(norm(num_channels, affine=False) for _ in range(num_levels))
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Normalize (N, C, H, W) with the statistics of the level at that index."""
        return _affine(self.levels[level](x), self.weight, self.bias)


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`x * scale + shift` by channel in one kernel, in the type of x."""
    # Cast by hand: autocast does not touch addcmul's operands of one type, but would widen mixed.
    scale, shift = scale.to(x.dtype), shift.to(x.dtype)
    return torch.addcmul(shift.view(1, -1, 1, 1), x, scale.view(1, -1, 1, 1))


def _moments_over_processes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and number of values a channel (1,), over all processes.

    In float64, where E[x^2] - E[x]^2 loses nothing that float32 holds.
    """
    values = x.double()
    count = torch.full((1,), values.numel() // x.shape[1], dtype=torch.float64)
    sums = all_reduce(torch.cat([values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), count]))
    mean, mean_square = (sums[:-1] / sums[-1:]).chunk(2)
    return mean, (mean_square - mean.square()).clamp(min=0), sums[-1:].detach()
