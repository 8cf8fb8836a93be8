"""One experiment, and which of its settings are read."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from pydantic import model_validator

from retina_ray.config.base import OPERATIONAL, ReadWhen, Section
from retina_ray.config.combinations import impossible_combinations
from retina_ray.config.data import DataConfig, InputConfig
from retina_ray.config.loss import LossConfig, MatcherConfig
from retina_ray.config.model import ModelConfig
from retina_ray.config.optimization import OptimizerConfig, ScheduleConfig
from retina_ray.config.run import InferenceConfig, TrackingConfig, TrainConfig
from retina_ray.errors import ConfigError
from retina_ray.overrides import config_fields


class ExperimentConfig(Section):
    """One experiment, complete."""

    model: ModelConfig = ModelConfig()
    matcher: MatcherConfig = MatcherConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    input: InputConfig = InputConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    inference: InferenceConfig = InferenceConfig()
    tracking: Annotated[TrackingConfig, OPERATIONAL] = TrackingConfig()

    @model_validator(mode="after")
    def _combinations(self) -> ExperimentConfig:
        """Refuse combinations that no run could carry out, all of them at once."""
        if faults := list(impossible_combinations(self)):
            raise ConfigError(faults)
        return self


@cache
def reading_rules() -> dict[str, tuple[ReadWhen, ...]]:
    """What stands beside the settings that are not always read; dotted path to rules."""
    rules = {
        path: tuple(note for note in field.metadata if isinstance(note, ReadWhen))
        for path, field in config_fields(ExperimentConfig).items()
    }
    return {path: notes for path, notes in rules.items() if notes}


def idle_paths(config: ExperimentConfig) -> set[str]:
    """Dotted paths of the settings and sections that nothing reads in this configuration."""
    return {
        path
        for path, rules in reading_rules().items()
        if not any(rule.holds(config) for rule in rules)
    }
