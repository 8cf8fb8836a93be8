"""The schedule against detectron2's definitions, worked out by hand."""

import math
from itertools import product

import pytest
import torch

from retina_ray.config import ConfigError, ScheduleConfig
from retina_ray.train.engine.schedule import build_schedule, lr_factor


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.001), (500, 0.001 * 0.5 + 0.5), (59_999, 1.0), (60_000, 0.1), (80_000, 0.01)],
)
def test_multistep_of_detectron2s_1x(step, expected):
    assert lr_factor(step, 90_000, ScheduleConfig()) == pytest.approx(expected, rel=1e-12)


def _plain(step, num_steps, *, name, warmup, length, factor, gamma, milestones):
    """detectron2's WarmupMultiStepLR and WarmupCosineLR in their plainest form."""
    if name == "cosine":
        value = (1 + math.cos(math.pi * step / num_steps)) / 2
    else:
        value = 1.0
        for milestone in milestones:
            if step >= milestone:
                value *= gamma
    if step < length:
        value *= factor if warmup == "constant" else factor + (1 - factor) * step / length
    return value


@pytest.mark.parametrize("length", [0, 1, 8, 20, 35, 39])
@pytest.mark.parametrize("factor", [0.0, 0.001, 1.0])
def test_every_step_of_both_schedules_with_both_warmups(length, factor):
    # 10 and 30 of 40 steps: a warm-up of 20 outlasts the first milestone, one of 35 both.
    for name, warmup in product(("multistep", "cosine"), ("linear", "constant")):
        config = ScheduleConfig(
            name=name,
            milestones=(0.25, 0.75),
            gamma=0.2,
            warmup=warmup,
            warmup_steps=length,
            warmup_factor=factor,
        )
        options = {"name": name, "warmup": warmup, "length": length, "factor": factor}
        expected = [_plain(s, 40, **options, gamma=0.2, milestones=(10, 30)) for s in range(40)]
        assert [lr_factor(s, 40, config) for s in range(40)] == pytest.approx(expected, rel=1e-12)
        optimizer = _optimizer()
        rates = _rates(optimizer, build_schedule(optimizer, config, 40), 40)
        assert rates == [pytest.approx([e, 2 * e], rel=1e-12) for e in expected]


def test_milestones_are_rounded_to_steps():
    config = ScheduleConfig(milestones=(0.25, 0.74), gamma=0.5, warmup_steps=0)
    # 0.25 * 7 = 1.75 -> 2, 0.74 * 7 = 5.18 -> 5
    factors = [lr_factor(step, 7, config) for step in range(7)]
    assert factors == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def _optimizer() -> torch.optim.SGD:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 2.0)]
    return torch.optim.SGD(groups, lr=1.0)


def _rates(optimizer, schedule, num_steps):
    rates = []
    for _ in range(num_steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("num_steps", [1, 10])
def test_warmup_that_fills_the_run_is_refused(num_steps):
    with pytest.raises(ConfigError, match=f"only {num_steps}: set it below {num_steps}") as error:
        build_schedule(_optimizer(), ScheduleConfig(warmup_steps=10), num_steps)
    assert error.value.faults[0][0] == "schedule.warmup_steps"
    assert "10 steps of warm-up" in str(error.value)
