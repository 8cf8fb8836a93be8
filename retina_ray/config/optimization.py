"""How weights move: the optimizer and the learning rate over the run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from retina_ray.config.base import (
    BelowOne,
    Bool,
    Count,
    Float,
    Fraction,
    Int,
    NonNegative,
    Positive,
    ReadWhen,
    Section,
)

MULTISTEP = ReadWhen("schedule.name", "multistep")
WITH_WARMUP = ReadWhen("schedule.warmup_steps")


class OptimizerConfig(Section):
    """SGD or AdamW with the parameter groups of detectron2, and gradient clipping."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.01
    """Learning rate of the global batch `lr_batch_size`."""
    lr_batch_size: Count | None = None
    """Set: the rate is scaled by batch_size / lr_batch_size (linear rule); null: taken as it is."""
    momentum: Annotated[BelowOne, ReadWhen("optimizer.name", "sgd")] = 0.9
    nesterov: Annotated[Bool, ReadWhen("optimizer.name", "sgd")] = False
    betas: Annotated[tuple[BelowOne, BelowOne], ReadWhen("optimizer.name", "adamw")] = (0.9, 0.999)
    weight_decay: NonNegative = 1e-4
    weight_decay_norm: NonNegative = 0.0
    """For the parameters of normalization layers."""
    weight_decay_bias: NonNegative | None = None
    """For biases; null: as `weight_decay`."""
    bias_lr_factor: Positive = 1.0
    """Factor on the learning rate of biases."""
    clip: Literal["none", "value", "norm"] = "value"
    clip_threshold: Annotated[Positive, ReadWhen("optimizer.clip", "value", "norm")] = 1.0
    clip_norm_type: Annotated[Positive, ReadWhen("optimizer.clip", "norm")] = 2.0


class ScheduleConfig(Section):
    """Learning rate over the run: warm-up, then steps or a half cosine, as detectron2 has them."""

    name: Literal["multistep", "cosine"] = "multistep"
    milestones: Annotated[tuple[Annotated[Float, Field(gt=0, lt=1)], ...], MULTISTEP] = (
        2 / 3,
        8 / 9,
    )
    """Where the rate is multiplied by `gamma`, as fractions of the run."""
    gamma: Annotated[Float, Field(gt=0, le=1), MULTISTEP] = 0.1
    warmup: Annotated[Literal["linear", "constant"], WITH_WARMUP] = "linear"
    warmup_steps: Annotated[Int, Field(ge=0)] = 1000
    warmup_factor: Annotated[Fraction, WITH_WARMUP] = 0.001
    """Share of the rate at step 0."""
