"""The optimizer with its parameter groups, and gradient clipping."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from retina_ray.config import ConfigError
from retina_ray.model.norms import PerLevelBatchNorm2d

if TYPE_CHECKING:
    from retina_ray.config import OptimizerConfig

__all__ = ["build_optimizer", "clip_gradients", "parameter_groups"]

_NORMS = (
    nn.modules.batchnorm._BatchNorm,  # 1d to 3d, and synchronised
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    PerLevelBatchNorm2d,
)


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, batch_size: int
) -> torch.optim.Optimizer:
    """Make SGD or AdamW over the parameters of a model that are trained.

    Args:
        model: parameters without `requires_grad` are left out.
        config: the `optimizer` section.
        batch_size: images a step over all workers, for the linear rule ("Accurate, Large Minibatch
            SGD", Goyal et al. 2017, section 2.1).

    Raises:
        ConfigError: no parameter is trained.
    """
    lr = config.lr
    if config.lr_batch_size is not None:
        lr *= batch_size / config.lr_batch_size
    groups = parameter_groups(model, config, lr=lr)
    if not groups:
        raise ConfigError("the model has no parameter with requires_grad: nothing can be trained")
    if config.name == "sgd":
        return torch.optim.SGD(
            groups,
            lr=lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
    return torch.optim.AdamW(groups, lr=lr, betas=config.betas, weight_decay=config.weight_decay)


def parameter_groups(
    model: nn.Module, config: OptimizerConfig, *, lr: float
) -> list[dict[str, Any]]:
    """Group trained parameters by learning rate and weight decay, as few groups as possible.

    The rules are detectron2's: parameters of normalisation layers take `weight_decay_norm`; then
    every parameter named `bias`, of normalisation layers too, takes `bias_lr_factor` and, where it
    is set, `weight_decay_bias`. (detectron2 overlooks the shared weight of its head's per-level
    batch norm; here it is a normalisation layer as well.)

    Args:
        model: the model; a parameter that two modules share appears once.
        config: the `optimizer` section.
        lr: the learning rate, scaled already.

    Returns:
        Groups `{"params": [...], "lr": ..., "weight_decay": ...}` for a torch optimizer, in the
        order in which their first parameters appear.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        is_norm = isinstance(module, _NORMS)
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            decay = config.weight_decay_norm if is_norm else config.weight_decay
            factor = 1.0
            if name == "bias":
                factor = config.bias_lr_factor
                if config.weight_decay_bias is not None:
                    decay = config.weight_decay_bias
            groups.setdefault((lr * factor, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def clip_gradients(parameters: Iterable[Tensor], config: OptimizerConfig) -> Tensor | None:
    """Limit the gradients in place, without waiting for the device.

    `value` limits each number to [-threshold, threshold]. `norm` scales all gradients by one factor
    so that the norm of all of them together is at most the threshold, as everybody expects;
    detectron2's `norm` clips each parameter by its own norm. With a gradient scaler, unscale first.

    Args:
        parameters: those without a gradient are passed over.
        config: the `optimizer` section.

    Returns:
        For `norm`, the norm before clipping, a scalar on the device; else None.
    """
    if config.clip == "norm":
        return clip_grad_norm_(
            parameters, max_norm=config.clip_threshold, norm_type=config.clip_norm_type
        )
    if config.clip == "value":
        clip_grad_value_(parameters, clip_value=config.clip_threshold)
    return None
