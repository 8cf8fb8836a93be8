"""Every setting of an experiment, in frozen pydantic models: a config is a value.

It is built by a recipe (a Python function), changed by `with_overrides`, stored beside every run as
JSON, and never changed while a run is on. A setting is added in one place, its section: with
default, limits, unit, what null means, and `ReadWhen` where another setting switches it off.
"""

from retina_ray.config.data import AugmentConfig, DataConfig, InputConfig, SyntheticConfig
from retina_ray.config.experiment import ExperimentConfig, idle_paths, reading_rules
from retina_ray.config.loss import LossConfig, MatcherConfig
from retina_ray.config.model import AnchorConfig, ModelConfig
from retina_ray.config.optimization import OptimizerConfig, ScheduleConfig
from retina_ray.config.run import InferenceConfig, TrackingConfig, TrainConfig
from retina_ray.errors import ConfigError
from retina_ray.overrides import from_json, with_overrides

__all__ = [
    "AnchorConfig",
    "AugmentConfig",
    "ConfigError",
    "DataConfig",
    "ExperimentConfig",
    "InferenceConfig",
    "InputConfig",
    "LossConfig",
    "MatcherConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "SyntheticConfig",
    "TrackingConfig",
    "TrainConfig",
    "from_json",
    "idle_paths",
    "reading_rules",
    "with_overrides",
]
