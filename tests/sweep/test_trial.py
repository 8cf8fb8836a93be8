"""A trial's run, as it starts and as it goes on."""

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from builders import save_checkpoint

from retina_ray.config import ExperimentConfig, ModelConfig, TrainConfig
from retina_ray.sweep import trial
from retina_ray.sweep.collect import _best, _history
from retina_ray.sweep.plan import SweepPlan
from retina_ray.sweep.space import Choice
from retina_ray.sweep.trial import last_evaluation, prepare_trial
from retina_ray.train.checkpoint.format import Checkpoint, CheckpointMeta
from retina_ray.train.recovery.failures import FailureNote
from retina_ray.train.recovery.preemption import StopSigns


@pytest.fixture
def plan(tmp_path):
    return SweepPlan(
        name="losses",
        uri=str(tmp_path / "losses"),
        config=ExperimentConfig(
            model=ModelConfig(num_classes=1), train=TrainConfig(epochs=2, keep_checkpoints=2)
        ),
        space={"loss.focal_gamma": Choice(2.0, 1.0)},
        train_uri="train",
        val_uri="val",
        num_samples=2,
    )


@pytest.fixture
def prepare(plan):
    return lambda: prepare_trial(
        plan, {"loss.focal_gamma": "1.0"}, trial_id="trial_01", run_id="losses-x"
    )


def keep(spec, step, metric, *, metrics_step=None):
    """A checkpoint of a run with four steps an epoch."""
    meta = CheckpointMeta(
        step,
        step // 4,
        [(1, "cell")],
        "fingerprint",
        metrics={"val/AP": metric},
        metrics_step=metrics_step or step,
    )
    weights = {"weight": torch.full((3,), float(step))}
    checkpoint = Checkpoint(weights, {"rng": torch.zeros(2)}, spec.config, meta)
    save_checkpoint(spec.checkpoints, checkpoint, metric=metric)


def test_a_new_trial_has_its_values_and_nothing_to_go_on_from(prepare):
    spec = prepare()
    assert spec.config.loss.focal_gamma == 1.0
    assert (spec.name, spec.run_id, spec.group) == ("losses-trial_01", "losses-x", "losses")
    stored = (Path(spec.run_uri) / "config.json").read_text()
    assert ExperimentConfig.model_validate_json(stored) == spec.config
    assert spec.start_step() == 0
    assert sorted(path.name for path in Path(spec.run_uri).iterdir()) == ["config.json"]


def test_a_trial_goes_on_from_its_last_checkpoint_that_can_be_read(prepare, caplog):
    for step, metric in ((4, 0.1), (8, 0.2)):
        keep(prepare(), step, metric)
    assert prepare().start_step() == 8
    assert caplog.text == ""
    path = Path(prepare().checkpoints.last) / "state.pt"
    path.write_bytes(path.read_bytes()[:-9])
    spec = prepare()
    assert spec.start_step() == 4
    assert spec.checkpoints.index.best.metric == 0.1
    assert "step-00000008: this checkpoint cannot be read" in caplog.text
    assert "the steps from 4 on again" in caplog.text


def test_what_a_trial_found_at_its_end_is_not_lost(prepare):
    spec = prepare()
    assert last_evaluation(spec) is None
    keep(spec, 4, 0.1)
    assert last_evaluation(spec) is None, "it goes on, and reports again"
    keep(spec, 8, 0.1, metrics_step=4)
    assert last_evaluation(spec) is None, "its last evaluation is still to do"
    keep(spec, 8, 0.3)
    assert last_evaluation(spec) == {"val/AP": 0.3, "epoch": 2, "step": 8}


def test_the_history_of_a_trial_that_was_killed_while_it_wrote(prepare):
    spec = prepare()
    assert _history(spec.run_uri) == []
    lines = [
        {"step": 4, "metrics": {"train/loss": 2.5}},
        {"step": 4, "metrics": {"val/AP": 0.25, "train/epoch": 1.0}},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    Path(spec.run_uri, "metrics.jsonl").write_text(text + '{"step": 8, "metr')
    (record,) = _history(spec.run_uri)
    assert record == {"AP": 0.25, "train/epoch": 1.0, "epoch": 1, "step": 4, "loss": 2.5}


def test_a_trial_is_shown_with_the_evaluation_of_the_checkpoint_that_it_offers(prepare):
    spec = prepare()
    history = [{"step": step, "AP": ap} for step, ap in ((4, 0.2), (8, 0.1), (12, 0.3))]
    assert _best([], spec.checkpoints) == {}
    assert _best(history, spec.checkpoints) == history[2]  # nothing was kept
    keep(spec, 4, 0.2)
    keep(spec, 8, 0.1)
    assert _best(history, spec.checkpoints) == history[0]  # it died before it kept the third


def test_a_trial_that_goes_on_leaves_no_reason_of_its_failure(prepare):
    note = FailureNote(prepare().run_uri)
    note.write("its process died")
    prepare()
    assert note.read() is None


def test_workers_of_a_stopped_trial_are_asked_to_end_and_waited_for(tmp_path, monkeypatch):
    closed, reasons = threading.Event(), []
    monkeypatch.setattr(trial, "_closed", closed)
    monkeypatch.setattr(trial, "_told", threading.Event())

    def work():
        with StopSigns(str(tmp_path)) as signs:
            while signs.reason() is None:
                time.sleep(0.01)
            reasons.append(signs.reason())
        closed.set()

    worker = threading.Thread(target=work)
    worker.start()
    trial._end_workers(str(tmp_path))
    assert closed.is_set()  # also where the note came to nothing: the test would stand still
    assert reasons == ["told to end: Ray Tune stopped the trial"]
    worker.join()
    assert not list(tmp_path.iterdir())  # a trial that is resumed is not told again
    trial._end_workers(str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()  # who has ended is not asked
