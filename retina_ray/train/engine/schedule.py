"""The learning rate over a run: warm-up times steps, or warm-up times half a cosine.

Each part is a pure function of the step, so a resumed run needs nothing but its step.
"""

from __future__ import annotations

import math
from bisect import bisect_right

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from retina_ray.config import ConfigError, ScheduleConfig


def lr_factor(step: int, num_steps: int, config: ScheduleConfig) -> float:
    """The factor on the learning rate at a step (detectron2's WarmupMultiStepLR, WarmupCosineLR).

    The warm-up multiplies the rest of the schedule, which starts at step 0 too: it may outlast a
    milestone. A milestone's step, `round(fraction * num_steps)`, is the first with the lower rate;
    the cosine is (1 + cos(pi * step / num_steps)) / 2 ("SGDR", Loshchilov and Hutter 2017,
    equation 5, without restarts).

    detectron2's later WarmupParamScheduler leads a linear warm-up straight to the rate that the
    schedule has where the warm-up ends, and holds a constant one still. With milestones that is the
    same unless one lies within the warm-up. Under a cosine it is a little lower: by at most 0.0024
    of the full rate where the linear warm-up takes a twentieth of the run.

    Steps go from 0 to `num_steps` - 1.
    """
    warmup = _warmup_factor(step, config)
    if config.name == "cosine":
        return warmup * 0.5 * (1.0 + math.cos(math.pi * step / num_steps))
    milestones = [round(fraction * num_steps) for fraction in config.milestones]
    return warmup * config.gamma ** bisect_right(milestones, step)


def _warmup_factor(step: int, config: ScheduleConfig) -> float:
    # "Accurate, Large Minibatch SGD", Goyal et al. 2017, section 2.2.
    if step >= config.warmup_steps:
        return 1.0
    if config.warmup == "constant":
        return config.warmup_factor
    progress = step / config.warmup_steps
    return config.warmup_factor * (1 - progress) + progress


def build_schedule(
    optimizer: torch.optim.Optimizer, config: ScheduleConfig, num_steps: int
) -> LRScheduler:
    """Make the scheduler; call its `step()` after each step of the optimizer.

    Every parameter group keeps its own rate and takes the same factor. The state holds plain
    numbers only, so it loads with `weights_only=True`.

    Raises:
        ConfigError: the run would end before its warm-up.
    """
    if config.warmup_steps >= num_steps:
        message = (
            f"{config.warmup_steps} steps of warm-up, but the run has only {num_steps}: set it "
            f"below {num_steps} (a tenth of the run is plenty), or train longer (train.epochs)"
        )
        raise ConfigError([("schedule.warmup_steps", message)])
    return LambdaLR(optimizer, lambda step: lr_factor(step, num_steps, config))
