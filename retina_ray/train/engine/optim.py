"""The optimizer with its parameter groups, and gradient clipping."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from retina_ray.config import ConfigError
from retina_ray.model.norms import PerLevelBatchNorm2d

if TYPE_CHECKING:
    from retina_ray.config import OptimizerConfig


_NORMS = (
    nn.modules.batchnorm._BatchNorm,  # 1d to 3d, and synchronized
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    PerLevelBatchNorm2d,
)


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, batch_size: int
) -> torch.optim.Optimizer:
    """Make SGD or AdamW over the parameters of a model with `requires_grad`.

    The update is one fused kernel, on a CPU as on a GPU. It takes a number on the device that says
    whether to update at all, so a gradient that is not finite can be passed over without a wait.

    `batch_size`, the images of a step over all workers, is for the linear rule ("Accurate, Large
    Minibatch SGD", Goyal et al. 2017, section 2.1).

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
        optimizer = torch.optim.SGD(
            groups,
            lr=lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=True,
        )
        _start_momenta(optimizer)
        return optimizer
    return torch.optim.AdamW(
        groups, lr=lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )


def _start_momenta(optimizer: torch.optim.SGD) -> None:
    """Begin with momenta of 0, which the first step turns into the gradient, as without them.

    PyTorch makes them in the first step, and where that one is passed over it leaves them as
    memory that nobody has written to, for the second step to build on.
    """
    for group in optimizer.param_groups:
        if group["momentum"] > 0:
            for parameter in group["params"]:
                buffer = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                optimizer.state[parameter]["momentum_buffer"] = buffer


def parameter_groups(
    model: nn.Module, config: OptimizerConfig, *, lr: float
) -> list[dict[str, Any]]:
    """Group trained parameters by learning rate and weight decay, as few groups as possible.

    The rules are detectron2's: parameters of normalization layers take `weight_decay_norm`; then
    every parameter named `bias`, of normalization layers too, takes `bias_lr_factor` and, where it
    is set, `weight_decay_bias`. (detectron2 overlooks the shared weight of its head's per-level
    batch norm; here it is a normalization layer as well.)

    Returns:
        Groups `{"params": [...], "lr": ..., "weight_decay": ...}` for a torch optimizer, in the
        order in which their first parameters appear; one that two modules share appears once.
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


def clip_gradients(parameters: Iterable[Tensor], config: OptimizerConfig) -> Tensor:
    """Limit the gradients in place, without waiting for the device.

    `value` limits each number to [-threshold, threshold]. `norm` scales all gradients by one factor
    so that the norm of all of them together is at most the threshold, as everybody expects;
    detectron2's `norm` clips each parameter by its own norm. With a gradient scaler, unscale first.

    Returns:
        The norm of all gradients together before clipping, a scalar on the device: of the type
        `clip_norm_type` where that clips, else the Euclidean one. It is finite only if every
        gradient is (clipping by value would hide an infinite one).
    """
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    by_norm = config.clip == "norm"
    norm = get_total_norm(gradients, norm_type=config.clip_norm_type if by_norm else 2.0)
    if by_norm:
        clip_grads_with_norm_(trained, config.clip_threshold, norm)
    elif config.clip == "value":
        clip_grad_value_(trained, clip_value=config.clip_threshold)
    return norm


def update_if_finite(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Make a step of a fused optimizer where a scalar bool on the device says so, without a wait.

    It takes the two attributes that `torch.amp.GradScaler` gives it. Elsewhere weights and state
    stay as they are.
    """
    optimizer.found_inf = finite.logical_not().float()  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]
