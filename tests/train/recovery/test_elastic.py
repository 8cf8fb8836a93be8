"""A run that goes on with another number of workers, or from another place than a step's end."""

import pytest
import torch
from builders import small_config

from retina_ray.config import TrainConfig
from retina_ray.data.loading.local_stream import iterate
from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.errors import RunStoppedError
from retina_ray.train.recovery import elastic
from retina_ray.train.run.worker import run_worker
from retina_ray.train.spec import RunInputs


def test_the_number_of_workers_as_ray_train_takes_it():
    assert elastic.workers(TrainConfig(num_workers=4)) == 4
    assert elastic.workers(TrainConfig(num_workers=4, min_workers=4)) == 4
    assert elastic.workers(TrainConfig(num_workers=4, min_workers=1)) == (1, 4)


def part(spec, *, num_workers, stop_at_step=None):
    """What one worker of a group does from the last checkpoint on, and the kinds of its rows."""
    inputs, start = RunInputs.open(spec, num_workers), spec.start_step()
    rows = inputs.plan.worker_rows(0, start, validate_first=spec.validates_first())
    kinds, stop = [], []

    def batches():
        for planned in iterate(rows, inputs.loader):
            kinds.append(planned.kind)
            if planned.step + 1 == stop_at_step:
                stop.append("told to")
            yield planned

    run_worker(
        spec,
        inputs,
        batches(),
        start_step=start,
        device=torch.device("cpu"),
        report=lambda metrics, uri: None,
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
    ours, theirs = (load_checkpoint(one.checkpoints.last) for one in (spec, whole))
    assert ours.meta.metrics == theirs.meta.metrics
    for name, tensor in theirs.model.items():
        assert torch.equal(ours.model[name], tensor), name
