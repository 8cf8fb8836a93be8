"""Validation beside the training: same weights, same figures, always taken in at the same steps."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from builders import Killed, small_config

from retina_ray.config import ConfigError
from retina_ray.evaluation.predictions_file import PREDICTIONS_FILE, predictions_from_parquet
from retina_ray.train.checkpoint.index import CheckpointIndex, Entry
from retina_ray.train.checkpoint.load import load_checkpoint, load_meta
from retina_ray.train.engine import loop
from retina_ray.train.errors import RunStoppedError
from retina_ray.train.run.async_validation import AsyncValidation, ValidationError, validate
from retina_ray.train.run.launch import result_of
from retina_ray.train.run.resources import ClusterSize, Footprint
from retina_ray.train.tracking.metrics_file import MetricsFile, read_metrics

ASYNC = {"train.async_validation": True}
EMA = {"train.ema_decay": 0.5}


def config_of(**overrides):
    return small_config(**{"train.epochs": 3, "tracking.num_pictures": 2, **overrides})


@pytest.fixture
def pool():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def in_thread(pool, spec, *, ran=None, timeout_s=60.0):
    """Rounds in a thread of this process, as a Ray task makes them elsewhere."""

    def submit(uri):
        if ran is not None:
            ran.append(uri.rpartition("/")[2])
        return pool.submit(validate, spec, uri)

    return AsyncValidation(submit, timeout_s=timeout_s)


def rounds(harness, name):
    """(step, at, figures) of each evaluation in the record, in its order."""
    lines = read_metrics(harness.root / name / "metrics.jsonl")
    return [
        (r["step"], r.get("at"), {k: v for k, v in r["metrics"].items() if k.startswith("val/")})
        for r in lines
        if "val/AP" in r["metrics"]
    ]


def losses(harness, name):
    lines = read_metrics(harness.root / name / "metrics.jsonl")
    return [r["metrics"]["train/loss"] for r in lines if "train/loss" in r["metrics"]]


def assert_same_end(harness, one, other):
    a, b = (load_checkpoint(str(harness.root / name)) for name in (one, other))
    assert a.meta.step == b.meta.step
    for name, tensor in a.model.items():
        assert torch.equal(tensor, b.model[name]), name
    for name, tensor in (a.ema or {}).items():
        assert torch.equal(tensor, b.ema[name]), name


def test_weights_and_figures_are_those_of_a_run_that_validates_itself(harness, pool):
    inline = harness.spec(config_of(**EMA), "inline")
    harness.run(inline)
    beside = harness.spec(config_of(**ASYNC, **EMA), "beside")
    ran = []
    harness.run(beside, validation=in_thread(pool, beside, ran=ran))
    assert_same_end(harness, "inline", "beside")
    assert losses(harness, "inline") == losses(harness, "beside")
    expected, found = rounds(harness, "inline"), rounds(harness, "beside")
    assert [(step, figures) for step, _, figures in found] == [
        (step, figures) for step, _, figures in expected
    ]
    assert [at for _, at, _ in found] == [4, 6, 6]  # each when the next one was due, or at the end
    assert ran == ["step-00000002", "step-00000004", "step-00000006"]
    results = [result_of(spec) for spec in (inline, beside)]
    for one, other in (
        (results[0].metrics, results[1].metrics),
        (results[0].best_metrics, results[1].best_metrics),
    ):
        assert {k: v for k, v in other.items() if k.startswith("val/")} == one
    assert results[0].best.rpartition("/")[2] == results[1].best.rpartition("/")[2]
    assert load_meta(results[1].last).metrics_step == 6
    kept = [
        predictions_from_parquet((harness.root / name / PREDICTIONS_FILE).read_bytes(), name)
        for name in ("inline", "beside")
    ]
    assert kept[0] == kept[1]
    assert sorted(p.name for p in (harness.root / "beside" / "pictures").iterdir()) == sorted(
        p.name for p in (harness.root / "inline" / "pictures").iterdir()
    )
    assert beside.checkpoints.index.pending is None


def test_the_steps_go_on_while_a_round_is_under_way(harness, pool):
    spec = harness.spec(config_of(**ASYNC))
    begun, may_end = threading.Event(), threading.Event()
    seen = []

    def submit(uri):
        begun.set()

        def work():
            assert may_end.wait(60)
            return validate(spec, uri)

        return pool.submit(work)

    def note_row(step):
        if step == 3:  # a step after the first round was begun, a step before the second is due
            assert begun.wait(60)
            seen.append((rounds(harness, "run"), spec.checkpoints.index.pending))
            may_end.set()

    harness.run(spec, validation=AsyncValidation(submit, timeout_s=60), on_row=note_row)
    assert seen == [([], Entry("step-00000002", 2))]
    assert [step for step, _, _ in rounds(harness, "run")] == [2, 4, 6]


@pytest.mark.parametrize("killed_after", [3, 4])
def test_a_killed_run_evaluates_again_what_it_had_not_taken_in(harness, pool, killed_after):
    # An epoch is 2 rows; a checkpoint after every step.
    changes = {**ASYNC, "train.checkpoint_every_steps": 1, **EMA}
    whole = harness.spec(config_of(**changes), "whole")
    harness.run(whole, validation=in_thread(pool, whole))
    broken = harness.spec(config_of(**changes), "broken")
    with pytest.raises(Killed):
        harness.run(broken, stop_after_rows=killed_after, validation=in_thread(pool, broken))
    assert broken.start_step() == killed_after
    pending = broken.checkpoints.index.pending
    assert pending.step == killed_after - killed_after % 2
    ran = []
    harness.run(broken, validation=in_thread(pool, broken, ran=ran))
    assert ran[0] == pending.name
    assert_same_end(harness, "whole", "broken")
    assert rounds(harness, "whole") == rounds(harness, "broken")
    assert result_of(broken).best_metrics["val/AP"] == result_of(whole).best_metrics["val/AP"]


def test_a_run_told_to_stop_while_it_waits_goes_on_later(harness, pool, monkeypatch):
    monkeypatch.setattr(loop, "PATIENCE_S", 0.05)
    spec = harness.spec(config_of(**ASYNC))
    hangs = AsyncValidation(lambda uri: Future(), timeout_s=60)
    asked = []

    def reason():
        asked.append(1)
        return "enough" if len(asked) > 5 else None

    with pytest.raises(RunStoppedError, match="enough"):
        harness.run(spec, validation=hangs, stop_reason=reason)
    assert spec.start_step() == 4  # the second round is due, and the first not taken in
    assert spec.checkpoints.index.pending.step == 2
    harness.run(spec, validation=in_thread(pool, spec))
    assert [(step, at) for step, at, _ in rounds(harness, "run")] == [(2, 4), (4, 6), (6, 6)]


def test_a_round_that_does_not_end_ends_the_run(harness, monkeypatch):
    monkeypatch.setattr(loop, "PATIENCE_S", 0.05)
    spec = harness.spec(config_of(**ASYNC))
    hangs = AsyncValidation(lambda uri: Future(), timeout_s=0.1)
    with pytest.raises(ValidationError, match=r"did not end.*train\.validation_cpus"):
        harness.run(spec, validation=hangs)


def test_a_round_that_fails_ends_the_run_and_says_why(harness, pool):
    spec = harness.spec(config_of(**ASYNC))

    def submit(uri):
        return pool.submit(validate, spec, f"{uri}-gone")

    with pytest.raises(ValidationError, match=r"ConfigError: .*step-00000002-gone: no checkpoint"):
        harness.run(spec, validation=AsyncValidation(submit, timeout_s=60))
    assert spec.start_step() == 2  # nothing is lost
    harness.run(spec, validation=in_thread(pool, spec))
    assert [step for step, _, _ in rounds(harness, "run")] == [2, 4, 6]


def test_a_plateau_ends_the_run_a_round_later(harness, pool):
    changes = {
        "train.epochs": 6,
        "train.early_stop_rounds": 1,
        "train.early_stop_min_gain": 1.0,  # never
        "optimizer.lr": 1e-9,
    }
    inline = harness.spec(config_of(**changes), "inline")
    harness.run(inline)
    beside = harness.spec(config_of(**ASYNC, **changes), "beside")
    harness.run(beside, validation=in_thread(pool, beside))
    assert [step for step, _, _ in rounds(harness, "inline")] == [2, 4]
    assert [step for step, _, _ in rounds(harness, "beside")] == [2, 4, 6]
    assert (inline.start_step(), beside.start_step()) == (4, 6)
    harness.run(beside, validation=in_thread(pool, beside))  # where it came to its end, it stays
    assert beside.start_step() == 6


def test_the_best_is_kept_though_its_figures_come_late():
    index = CheckpointIndex()
    index = index.with_entry(Entry("step-2", 2), keep=1, is_pending=True)
    index = index.with_entry(Entry("step-3", 3), keep=1)
    assert index.names == {"step-2", "step-3"}
    index = index.settled(0.5).with_entry(Entry("step-4", 4), keep=1, is_pending=True)
    assert index.best == Entry("step-2", 2, 0.5)
    assert index.names == {"step-2", "step-4"}
    again = CheckpointIndex.from_json(index.to_json())
    assert again == index
    assert index.settled(float("nan")).best == Entry("step-2", 2, 0.5)
    assert index.settled(0.6).names == {"step-4"}
    # A run that goes back to before it does not wait for it any more.
    assert index.gone_back(Entry("step-2", 2, 0.5), damaged={"step-4"}).pending is None
    assert index.with_entry(Entry("step-5", 3), keep=1).pending is None
    with pytest.raises(ValueError, match="waits"):
        CheckpointIndex().settled(0.1)


def test_the_task_needs_room_beside_the_workers():
    config = config_of(**ASYNC, **{"train.validation_cpus": 2.0})
    footprint = Footprint.of(config, ClusterSize(cpus=4, gpus=0))
    assert footprint.cpus == 4.0  # a worker, decoding, and the task
    footprint.require(ClusterSize(cpus=4, gpus=0))
    with pytest.raises(ConfigError, match=r"1 for decoding \+ 2 for validation = 4 CPUs"):
        footprint.require(ClusterSize(cpus=3, gpus=0))
    config = config_of(**ASYNC, **{"train.validation_gpus": 1.0})
    shared = ClusterSize(cpus=8, gpus=1)
    assert not Footprint.of(config, shared).use_gpu  # the only GPU is the task's
    with pytest.raises(ConfigError, match=r"train\.validation_gpus"):
        Footprint.of(config, shared).require(ClusterSize(cpus=8, gpus=0))
    config = config_of(**ASYNC, **{"train.validation_gpus": 1.0, "train.use_gpu": True})
    with pytest.raises(ConfigError, match=r"1 need a GPU each \+ 1 for validation"):
        Footprint.of(config, shared).require(shared)


@pytest.mark.parametrize(("goes_on_from", "kept"), [(3, [3]), (4, [3, 2, 4])])
def test_figures_that_came_in_after_the_checkpoint_are_dropped(tmp_path, goes_on_from, kept):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.write(3, {"train/loss": 1.0})
    file.write(2, {"val/AP": 0.5}, at=4)
    file.write(4, {"train/loss": 0.5})
    file.close()
    MetricsFile(path, resume=True, resume_step=goes_on_from).close()
    assert [line["step"] for line in read_metrics(path)] == kept


def test_a_run_without_somebody_to_validate_is_refused(harness):
    with pytest.raises(ValueError, match="belong together"):
        harness.run(harness.spec(config_of(**ASYNC)))
