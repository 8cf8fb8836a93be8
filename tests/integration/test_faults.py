"""What can happen to a run, with real processes: each ends where the undisturbed one ends."""

import math
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray.cloudpickle
from builders import logged, make_spec, run_here, small_disk
from faulty_runs import ONE, TWO, assert_same_end, injected, starts
from script_process import Script, small_run_options

from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.errors import RunError
from retina_ray.train.recovery.rollback import Rollbacks
from retina_ray.train.run import trainer
from retina_ray.train.run.launch import resume_run
from retina_ray.train.tracking.metrics_file import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.long]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

FIVE_STEPS = {"train.batch_size": 2, "train.epochs": 3, "train.ema_decay": 0.9}
"""An epoch of the 10 images, 15 in all."""


@pytest.fixture(scope="module")
def config(tiny_config):
    def make(**overrides):
        return tiny_config(**{**FIVE_STEPS, "train.checkpoint_every_steps": 2, **overrides})

    return make


@pytest.fixture(scope="module")
def whole(config, shapes_set, tmp_path_factory):
    """The run that nothing happens to."""
    spec = make_spec(config(), shapes_set, tmp_path_factory.mktemp("whole"))
    run_here(spec)
    return spec


def once(marker):
    """Whether this is the first time, over all processes."""
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def test_sigterm_leaves_a_checkpoint_and_is_no_failure(
    local_ray, whole, config, shapes_set, tmp_path, monkeypatch
):
    spec = make_spec(
        config(**{"train.max_failures": 0, "train.checkpoint_every_steps": None}),
        shapes_set,
        tmp_path,
    )

    def terminate(loop, do_step):
        do_step()
        if loop.step == 6 and once(tmp_path / "told"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(2)  # Python hears a signal when its main thread, which waits in Ray, wakes

    with injected(monkeypatch, tmp_path, terminate):
        trainer.fit(spec, ONE)
    assert [start["step"] for start in starts(tmp_path)] == [0, 7]
    assert_same_end(spec, whole)


def test_a_loss_of_nan_is_rolled_back_and_left_out(
    local_ray, config, shapes_set, tmp_path, monkeypatch
):
    spec = make_spec(config(**{"train.max_failures": 0}), shapes_set, tmp_path)

    def poison(loop, do_step):
        from retina_ray.model import RetinaNetCriterion

        compute = RetinaNetCriterion.losses

        def poisoned(*parts, **more):
            losses = compute(*parts, **more)
            return {**losses, "loss_box_reg": losses["loss_box_reg"] * math.nan}

        if loop.step == 7:  # each time that this batch comes, as a bad batch would
            RetinaNetCriterion.losses = poisoned
        try:
            do_step()
        finally:
            RetinaNetCriterion.losses = compute

    with injected(monkeypatch, tmp_path, poison):
        trainer.fit(spec, ONE)
    assert [start["step"] for start in starts(tmp_path)] == [0, 6]
    (rollback,) = Rollbacks(spec.run_uri).all()
    assert (rollback.step, rollback.back_to) == (7, 6)
    assert "loss_box_reg" in rollback.terms
    assert (Path(spec.run_uri) / "non_finite" / "step-00000007" / "batch.json").exists()

    twin = make_spec(spec.config, shapes_set, tmp_path, "twin")
    Rollbacks(twin.run_uri).add(rollback)
    run_here(twin)
    assert_same_end(spec, twin, without=(7,))
    assert {skipped for _, skipped in logged(spec, "train/skipped_steps")} == {1}


def test_a_hung_worker_says_where_and_is_replaced(
    local_ray, whole, config, shapes_set, tmp_path, monkeypatch
):
    settings = {"train.stall_timeout_s": 6, "train.max_failures": 1, "train.num_workers": 2}
    spec = make_spec(config(**settings), shapes_set, tmp_path)

    def hang(loop, do_step):
        from retina_ray.train.engine import distributed

        if loop.step == 8 and distributed.rank() == 1 and once(tmp_path / "hung"):
            time.sleep(3600)
        do_step()

    with injected(monkeypatch, tmp_path, hang):
        trainer.fit(spec, TWO)
    assert len(starts(tmp_path)) == 2
    texts = [path.read_text() for path in (Path(spec.run_uri) / "hung").iterdir()]
    (guilty,) = [text for text in texts if text.startswith("worker 1 ")]
    assert "made no step for 6 s, after 10 batches" in guilty  # two of validation
    assert "in hang" in guilty
    assert_same_end(spec, whole, exactly=False)


ROOM_MIB = 180
"""Room for a checkpoint of the small model with momentum and average (130 MiB), not for two."""


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(
    local_ray, whole, config, shapes_set, tmp_path, monkeypatch
):
    """One worker meets it while the other one waits for it; no restart would mend it."""
    settings = {"train.max_failures": 3, "train.num_workers": 2}
    with small_disk(tmp_path / "disk", size=f"{ROOM_MIB}m") as folder:
        spec = make_spec(config(**settings), shapes_set, folder)
        with (
            injected(monkeypatch, tmp_path, lambda loop, do_step: do_step()),
            pytest.raises(RunError, match="No space left on device") as caught,
        ):
            trainer.fit(spec, TWO)
        assert [start["step"] for start in starts(tmp_path)] == [0]
        message = str(caught.value)
        assert message.startswith("the checkpoint of step 4 could not be written to ")
        assert f"of {ROOM_MIB} MiB are free in {folder}" in message
        assert f"kept is {spec.checkpoints.last} (step 2): a checkpoint takes 1" in message
        assert "free some space, then --resume" in message
        assert load_checkpoint(spec.checkpoints.last).meta.step == spec.start_step() == 2
        subprocess.run(["mount", "-o", "remount,size=2g", str(folder)], check=True)
        trainer.fit(spec, TWO)
        assert_same_end(spec, whole, exactly=False)


def test_sigterm_to_the_driver_ends_in_order_and_resumes(shapes_set, tmp_path):
    run = tmp_path / "run"
    more = {"train.epochs": 24, "train.eval_every_epochs": 24}
    options = small_run_options(shapes_set, tmp_path, "run", **more)
    first = Script("experiments/train.py", *options)
    end = time.monotonic() + 200
    while not (run / "metrics.jsonl").exists() or not read_metrics(run / "metrics.jsonl"):
        assert time.monotonic() < end, first.output
        assert first.process.poll() is None, first.output
        time.sleep(0.2)
    first.process.send_signal(signal.SIGTERM)
    assert first.end(100) == 143, first.output
    assert "Traceback" not in first.output
    assert "ended: " in first.output
    (hint,) = [line for line in first.lines if line.startswith("resume with: python ")]
    assert hint.endswith(f"--name run --storage {tmp_path} --resume")
    assert first.left_behind() == []
    stopped_at = load_checkpoint(str(run)).meta.step
    records = [r for r in read_metrics(run / "metrics.jsonl") if "train/loss" in r["metrics"]]
    assert stopped_at == records[-1]["step"] < 120, "nothing is lost"

    second = Script(*shlex.split(hint.removeprefix("resume with: python ")))
    assert second.end(400) == 0, second.output
    spec = resume_run(str(run))
    twin = replace(spec, run_uri=str(tmp_path / "twin"))
    run_here(twin)
    assert_same_end(spec, twin)
    assert second.left_behind() == []
