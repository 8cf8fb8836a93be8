"""A run that goes on with another number of workers, or from another place than a step's end."""

import pytest
from builders import assert_same_weights, run_here, small_config

from retina_ray.config import TrainConfig
from retina_ray.train.checkpoint.load import load_meta
from retina_ray.train.errors import RunStoppedError
from retina_ray.train.recovery import elastic


def test_the_number_of_workers_as_ray_train_takes_it():
    assert elastic.workers(TrainConfig(num_workers=4)) == 4
    assert elastic.workers(TrainConfig(num_workers=4, min_workers=4)) == 4
    assert elastic.workers(TrainConfig(num_workers=4, min_workers=1)) == (1, 4)


def part(spec, *, num_workers, stop_at_step=None):
    """What one worker of a group does from the last checkpoint on, and the kinds of its rows."""
    kinds, stop = [], []

    def on_row(row):
        kinds.append(row.kind)
        if row.step + 1 == stop_at_step:
            stop.append("told to")

    run_here(
        spec,
        num_workers=num_workers,
        on_row=on_row,
        stop_reason=lambda: stop[0] if stop else None,
    )
    return kinds


def test_one_worker_takes_the_place_of_two_and_validates_what_they_left(harness):
    whole = harness.spec(small_config(**{"train.accumulate": 2}), "whole")
    assert part(whole, num_workers=1) == (["train"] * 4 + ["val"] * 2) * 2

    spec = harness.spec(small_config(**{"train.num_workers": 2, "train.min_workers": 1}))
    assert not spec.validates_first()
    for step in (1, 2):
        with pytest.raises(RunStoppedError):
            part(spec, num_workers=1, stop_at_step=step)
        assert spec.start_step() == step
    assert spec.validates_first(), "the epoch's two steps are done, its evaluation is not"
    assert part(spec, num_workers=1) == ["val"] * 2 + ["train"] * 4 + ["val"] * 2
    assert not spec.validates_first()
    metrics = [load_meta(one.checkpoints.last).metrics for one in (spec, whole)]
    assert metrics[0] == metrics[1]
    assert_same_weights(spec, whole)
