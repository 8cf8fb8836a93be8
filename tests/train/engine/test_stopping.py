"""Early stopping and time budgets, by hand."""

import math

import pytest
import torch

from retina_ray.train.engine.stopping import EarlyStopping, TimeBudget, agree_on_stop


def validations_until_the_stop(scores, rounds, min_gain=0.0):
    stopping = EarlyStopping(rounds, min_gain=min_gain)
    for number, ap in enumerate(scores, 1):
        stopping.add(ap)
        if stopping.is_due:
            return number
    return None


@pytest.mark.parametrize(
    ("scores", "rounds", "min_gain", "expected"),
    [
        ([0.1, 0.2, 0.2, 0.19, 0.3], 2, 0.0, 4),  # as good is not better
        ([0.1, 0.2, 0.2, 0.3, 0.3], 2, 0.0, None),  # a gain starts the count anew
        ([0.1, 0.15, 0.23, 0.3], 2, 0.12, None),  # 0.15 < 0.22, 0.23 > 0.22: small gains add up
        ([0.1, 0.15, 0.2, 0.21], 2, 0.12, 3),
        ([math.nan, None, 0.1], 2, 0.0, 2),
        ([0.0, 0.0], 1, 0.0, 2),  # the first is a gain, whatever it is
        ([0.1] * 9, None, 0.0, None),
    ],
)
def test_early_stopping(scores, rounds, min_gain, expected):
    assert validations_until_the_stop(scores, rounds, min_gain) == expected


def test_early_stopping_is_resumed():
    stopping = EarlyStopping(2, min_gain=0.0)
    stopping.add(0.5)
    stopping.add(0.4)
    again = EarlyStopping(2, min_gain=0.0)
    again.load_state_dict(stopping.state_dict())
    again.add(0.5)
    assert again.is_due
    assert not stopping.is_due


def test_the_time_adds_up_over_the_parts_of_a_run():
    budget = TimeBudget(1.0)
    assert budget.elapsed_s == 0.0
    budget.elapsed_s = 3599.5
    assert not budget.is_spent
    budget.start()
    assert 3599.5 <= budget.elapsed_s < 3600
    budget.elapsed_s = 3600.0
    assert budget.is_spent
    unlimited = TimeBudget(None)
    unlimited.elapsed_s = 1e12
    assert not unlimited.is_spent


def test_one_worker_agrees_with_itself():
    cpu = torch.device("cpu")
    assert agree_on_stop(None, is_over=False, device=cpu) == (None, False)
    assert agree_on_stop(None, is_over=True, device=cpu) == (None, True)
    assert agree_on_stop("told so", is_over=True, device=cpu) == ("told so", False)
