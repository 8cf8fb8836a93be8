"""What a sweep refuses before anything is read or started."""

import pytest

from retina_ray.config import ConfigError, ExperimentConfig, with_overrides
from retina_ray.sweep.launch import prepare_sweep
from retina_ray.sweep.space import Choice, Uniform

RATES = {"optimizer.lr": Uniform(0.001, 0.01)}


@pytest.mark.parametrize(
    ("overrides", "space"),
    [
        ({"train.async_validation": True}, RATES),
        ({}, {**RATES, "train.async_validation": Choice(False, True)}),
    ],
)
def test_trials_validate_themselves(tmp_path, overrides, space):
    config = with_overrides(ExperimentConfig(), overrides)
    with pytest.raises(ConfigError, match=r"train\.async_validation.*steer the sweep"):
        prepare_sweep(config, space, name="s", storage=str(tmp_path), num_samples=2)
    assert list(tmp_path.iterdir()) == []
