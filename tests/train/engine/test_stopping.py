"""Early stopping, by hand; test_loop_control.py has runs that stop early or are over time."""

import math

import pytest

from retina_ray.train.engine.stopping import EarlyStopping


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
    stopping, dues = EarlyStopping(rounds, min_gain=min_gain), []
    for ap in scores:
        stopping.add(ap)
        dues.append(stopping.is_due)
    assert (dues.index(True) + 1 if any(dues) else None) == expected
