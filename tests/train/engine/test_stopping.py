"""Plateaus and time budgets, by hand."""

import math

import pytest
import torch

from retina_ray.train.engine.stopping import Plateau, TimeBudget, agree_on_stop


def rounds_until_plateau(scores, rounds, min_gain=0.0):
    plateau = Plateau(rounds, min_gain=min_gain)
    for number, ap in enumerate(scores, 1):
        plateau.add(ap)
        if plateau.is_reached:
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
def test_plateaus(scores, rounds, min_gain, expected):
    assert rounds_until_plateau(scores, rounds, min_gain) == expected


def test_a_plateau_is_carried_on():
    plateau = Plateau(2, min_gain=0.0)
    plateau.add(0.5)
    plateau.add(0.4)
    again = Plateau(2, min_gain=0.0)
    again.load_state_dict(plateau.state_dict())
    again.add(0.5)
    assert again.is_reached
    assert not plateau.is_reached


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
