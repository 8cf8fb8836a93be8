"""Asynchronous validation: same weights, same metrics, always taken in at the same steps."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from builders import Harness, Killed, assert_same_weights, logged, small_config

from retina_ray.evaluation.predictions_file import PREDICTIONS_FILE, predictions_from_parquet
from retina_ray.train.checkpoint.index import CheckpointIndex, Entry
from retina_ray.train.checkpoint.load import load_meta
from retina_ray.train.errors import RunStoppedError
from retina_ray.train.run import async_validation
from retina_ray.train.run.async_validation import AsyncValidation, ValidationError, validate
from retina_ray.train.run.launch import result_of
from retina_ray.train.tracking.metrics_file import MetricsFile, read_metrics

ASYNC = {"train.async_validation": True}


def config_of(**overrides):
    return small_config(**{"train.epochs": 3, **overrides})


@pytest.fixture
def pool():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def in_thread(pool, spec, *, ran=None, timeout_s=60.0):
    """Validations in a thread of this process, as a Ray task makes them elsewhere."""

    def submit(uri):
        if ran is not None:
            ran.append(uri.rpartition("/")[2])
        return pool.submit(validate, spec, uri)

    return AsyncValidation(submit, timeout_s=timeout_s)


def validations(spec):
    """(step, at, metrics) of each validation in the record, in its order."""
    return [
        (line["step"], line.get("at"), only_val(line["metrics"]))
        for line in read_metrics(f"{spec.run_uri}/metrics.jsonl")
        if "val/AP" in line["metrics"]
    ]


def only_val(metrics):
    return {name: value for name, value in metrics.items() if name.startswith("val/")}


def kept_of(spec):
    """What a run leaves of its validations: figures, the best one, predictions and pictures."""
    result, folder = result_of(spec), Path(spec.run_uri)
    figures = [only_val(metrics) for metrics in (result.metrics, result.best_metrics)]
    predictions = predictions_from_parquet((folder / PREDICTIONS_FILE).read_bytes(), "them")
    pictures = sorted(path.name for path in (folder / "pictures").iterdir())
    return figures, result.best.rpartition("/")[2], predictions, pictures


def test_weights_and_metrics_are_those_of_a_run_that_validates_itself(harness, pool):
    changes = {"train.ema_decay": 0.5, "tracking.num_pictures": 2}
    inline = harness.spec(config_of(**changes), "inline")
    harness.run(inline)
    apart = harness.spec(config_of(**ASYNC, **changes), "apart")
    ran = []
    harness.run(apart, validation=in_thread(pool, apart, ran=ran))
    assert_same_weights(inline, apart)
    assert logged(inline, "train/loss") == logged(apart, "train/loss")
    steps, at, metrics = zip(*validations(apart), strict=True)
    expected_steps, _, expected = zip(*validations(inline), strict=True)
    assert (steps, metrics) == (expected_steps, expected)
    assert at == (4, 6, 6)  # each when the next one was due, or at the end
    assert ran == ["step-00000002", "step-00000004", "step-00000006"]
    assert kept_of(apart) == kept_of(inline)
    assert load_meta(apart.checkpoints.last).metrics_step == 6
    assert apart.checkpoints.index.pending is None


def test_the_steps_go_on_while_a_validation_is_under_way(harness, pool):
    spec = harness.spec(config_of(**ASYNC))
    begun, may_end = threading.Event(), threading.Event()
    seen = []

    def submit(uri):
        begun.set()

        def work():
            assert may_end.wait(60)
            return validate(spec, uri)

        return pool.submit(work)

    def note_row(row):
        if row.step == 3:  # after the first validation was begun, before the second is due
            assert begun.wait(60)
            seen.append((validations(spec), spec.checkpoints.index.pending))
            may_end.set()

    harness.run(spec, validation=AsyncValidation(submit, timeout_s=60), on_row=note_row)
    assert seen == [([], Entry("step-00000002", 2))]
    assert [step for step, _, _ in validations(spec)] == [2, 4, 6]


KEPT_EVERY_STEP = {**ASYNC, "train.checkpoint_every_steps": 1}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, eight_images):
    harness = Harness(tmp_path_factory.mktemp("unbroken"), eight_images)
    spec = harness.spec(config_of(**KEPT_EVERY_STEP))
    with ThreadPoolExecutor(1) as pool:
        harness.run(spec, validation=in_thread(pool, spec))
    return spec


@pytest.mark.parametrize("killed_after", [3, 4])
def test_a_killed_run_evaluates_again_what_it_had_not_taken_in(
    harness, pool, unbroken, killed_after
):
    spec, ran = harness.spec(config_of(**KEPT_EVERY_STEP)), []  # an epoch is 2 rows
    with pytest.raises(Killed):
        harness.run(spec, stop_after_rows=killed_after, validation=in_thread(pool, spec))
    assert spec.start_step() == killed_after
    pending = spec.checkpoints.index.pending
    assert pending.step == killed_after - killed_after % 2
    harness.run(spec, validation=in_thread(pool, spec, ran=ran))
    assert ran[0] == pending.name
    assert_same_weights(spec, unbroken)
    assert validations(spec) == validations(unbroken)
    assert result_of(spec).best_metrics["val/AP"] == result_of(unbroken).best_metrics["val/AP"]


def test_a_run_told_to_stop_while_it_waits_goes_on_later(harness, pool, monkeypatch):
    monkeypatch.setattr(async_validation, "POLL_S", 0.05)
    spec = harness.spec(config_of(**ASYNC))
    hangs = AsyncValidation(lambda uri: Future(), timeout_s=60)
    asked = []

    def reason():
        asked.append(1)
        return "enough" if len(asked) > 5 else None

    with pytest.raises(RunStoppedError, match="enough"):
        harness.run(spec, validation=hangs, stop_reason=reason)
    assert spec.start_step() == 4  # the second validation is due, and the first not taken in
    assert spec.checkpoints.index.pending.step == 2
    harness.run(spec, validation=in_thread(pool, spec))
    assert [(step, at) for step, at, _ in validations(spec)] == [(2, 4), (4, 6), (6, 6)]


def test_a_validation_that_does_not_end_ends_the_run(harness, monkeypatch):
    monkeypatch.setattr(async_validation, "POLL_S", 0.05)
    spec = harness.spec(config_of(**ASYNC))
    hangs = AsyncValidation(lambda uri: Future(), timeout_s=0.1)
    with pytest.raises(ValidationError, match=r"did not end.*train\.validation_cpus"):
        harness.run(spec, validation=hangs)


def test_a_validation_that_fails_ends_the_run_and_says_why(harness, pool):
    spec = harness.spec(config_of(**ASYNC))

    def submit(uri):
        return pool.submit(validate, spec, f"{uri}-gone")

    with pytest.raises(ValidationError, match=r"ConfigError: .*step-00000002-gone: no checkpoint"):
        harness.run(spec, validation=AsyncValidation(submit, timeout_s=60))
    assert spec.start_step() == 2  # nothing is lost
    harness.run(spec, validation=in_thread(pool, spec))
    assert [step for step, _, _ in validations(spec)] == [2, 4, 6]


def test_early_stopping_comes_a_validation_later(harness, pool):
    changes = {
        "train.epochs": 6,
        "train.early_stop_rounds": 1,
        "train.early_stop_min_gain": 1.0,  # never
        "optimizer.lr": 1e-9,
    }
    inline = harness.spec(config_of(**changes), "inline")
    harness.run(inline)
    apart = harness.spec(config_of(**ASYNC, **changes), "apart")
    harness.run(apart, validation=in_thread(pool, apart))
    assert [step for step, _, _ in validations(inline)] == [2, 4]
    assert [step for step, _, _ in validations(apart)] == [2, 4, 6]
    assert (inline.start_step(), apart.start_step()) == (4, 6)
    harness.run(apart, validation=in_thread(pool, apart))  # where it came to its end, it stays
    assert apart.start_step() == 6


def test_the_best_is_kept_though_its_metrics_come_late():
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


@pytest.mark.parametrize(("goes_on_from", "kept"), [(3, [3]), (4, [3, 2, 4])])
def test_metrics_that_came_in_after_the_checkpoint_are_dropped(tmp_path, goes_on_from, kept):
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
