"""What a run's driver does with what its workers leave to it; the workers here are this process."""

import contextlib
import errno
import json
import math
import os
import pickle
import signal
import time
from pathlib import Path

import cv2
import pytest
from builders import assert_same_weights, logged, run_here, small_config, small_disk
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerStatus

from retina_ray.model import RetinaNetCriterion
from retina_ray.storage.disk_space import is_disk_full
from retina_ray.train.checkpoint.async_saver import CheckpointError
from retina_ray.train.engine.loop import TrainingLoop
from retina_ray.train.errors import (
    DiskFullError,
    NonFiniteLossError,
    NonRetryableError,
    RunError,
    RunTerminatedError,
)
from retina_ray.train.recovery import preemption
from retina_ray.train.recovery.failures import FailureNote, Note
from retina_ray.train.recovery.preemption import STOP, EndOnSigterm, SigtermCallback, StopSigns
from retina_ray.train.recovery.rollback import Rollbacks, skipped_steps
from retina_ray.train.recovery.supervision import NoUselessRestart, supervise, telling_the_driver
from retina_ray.train.spec import RunInputs
from retina_ray.train.tracking.metrics_file import read_metrics


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    """Notes are soon seen, and signals are handled as before when a test is over."""
    monkeypatch.setattr(preemption, "_POLL_S", 0.05)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    preemption._sigterm.clear()
    for number, handler in before.items():
        signal.signal(number, handler)


def supervised(spec, starts=None, *, on_start=lambda: None):
    """Drive a run, each group of whose workers is this process; `starts` gets their first steps."""

    def attempt():
        on_start()
        if starts is not None:
            starts.append(spec.start_step())
        with telling_the_driver(spec.run_uri), StopSigns(spec.run_uri) as signs:
            run_here(spec, stop_reason=signs.reason)

    supervise(spec, attempt)


def before_each_step(monkeypatch, action):
    step = TrainingLoop._train_step

    def stepped(self, rows):
        action(self)
        return step(self, rows)

    monkeypatch.setattr(TrainingLoop, "_train_step", stepped)


def poison(monkeypatch, steps):
    """The box loss of these steps is NaN, whenever they are done."""
    now, compute = [], RetinaNetCriterion.losses
    before_each_step(monkeypatch, lambda loop: now.append(loop.step))

    def losses(*parts, **more):
        result = compute(*parts, **more)
        return {n: v * (math.nan if now[-1] in steps else 1) for n, v in result.items()}

    monkeypatch.setattr(RetinaNetCriterion, "losses", losses)


# A loss that is not finite


def test_a_run_goes_back_and_leaves_the_step_out(harness, monkeypatch):
    spec = harness.spec(small_config())  # two epochs of two steps, a checkpoint after each
    poison(monkeypatch, {2})
    starts = []
    supervised(spec, starts)
    assert starts == [0, 2]
    (rollback,) = Rollbacks(spec.run_uri).all()
    assert (rollback.step, rollback.back_to) == (2, 2)
    assert set(rollback.terms) == {"loss_cls", "loss_box_reg"}
    assert rollback.values["loss_cls"] is None
    assert rollback.lr == pytest.approx(small_config().optimizer.lr, rel=0.9)
    assert skipped_steps(spec.run_uri) == (2,)
    assert [step for step, _ in logged(spec, "train/loss")] == [1, 2, 4]
    assert FailureNote(spec.run_uri).read() is None

    twin = harness.spec(small_config(), "twin")
    Rollbacks(twin.run_uri).add(rollback)
    supervised(twin)
    assert_same_weights(spec, twin)


def test_the_batch_is_there_to_look_at(harness, monkeypatch):
    spec = harness.spec(small_config())
    poison(monkeypatch, {1})
    supervised(spec)
    folder = Path(spec.run_uri) / "non_finite" / "step-00000001"
    shown = json.loads((folder / "batch.json").read_text())
    (rollback,) = Rollbacks(spec.run_uri).all()
    assert rollback.back_to == 0
    assert shown["terms"] == list(rollback.terms)
    inputs = RunInputs.open(spec)
    annotations = inputs.train.annotations().select(["image_id", "file_name"]).to_pylist()
    names = {row["image_id"]: row["file_name"] for row in annotations}
    table = inputs.plan.table
    rows = table.filter((table["step"].to_numpy() == 1) & (table["kind"].to_numpy() == "train"))
    (batch,) = inputs.loader.load_table(rows).to_pylist()
    ids = [image["image_id"] for image in shown["images"]]
    assert ids == list(rollback.image_ids) == batch["image_ids"]
    assert [len(image["boxes"]) for image in shown["images"]] == batch["box_counts"]
    for image in shown["images"]:
        assert image["file_name"] == names[image["image_id"]]
        assert len(image["labels"]) == len(image["classes"]) == len(image["boxes"])
        picture = cv2.imread(str(folder / image["picture"]))
        factor = math.ceil(384 / max(image["height"], image["width"]))
        assert picture.shape == (image["height"] * factor, image["width"] * factor, 3)


def test_too_many_roll_backs_end_the_run(harness, monkeypatch):
    spec = harness.spec(small_config(**{"train.max_rollbacks": 1}))
    poison(monkeypatch, {1, 2})
    starts = []
    with pytest.raises(NonRetryableError, match=r"train\.max_rollbacks") as caught:
        supervised(spec, starts)
    assert starts == [0, 0]
    assert "NonFiniteLossError: " in str(caught.value)
    assert "step-00000002" in str(caught.value)
    assert [one.step for one in Rollbacks(spec.run_uri).all()] == [1]
    assert "NonFiniteLossError" in FailureNote(spec.run_uri).read()
    # The count is of the run's life, not of this start.
    again = []
    with pytest.raises(NonRetryableError):
        supervised(spec, again)
    assert len(again) == 1


@pytest.mark.parametrize(
    ("overrides", "changes"), [({"train.max_rollbacks": 0}, {}), ({}, {"group": "sweep"})]
)
def test_none_allowed_and_trials_fail_at_once(harness, monkeypatch, overrides, changes):
    poison(monkeypatch, {1})
    spec, starts = harness.spec(small_config(**overrides), **changes), []
    with pytest.raises(NonRetryableError, match="NonFiniteLossError"):
        supervised(spec, starts)
    assert len(starts) == 1
    assert Rollbacks(spec.run_uri).all() == []
    assert (Path(spec.run_uri) / "non_finite").exists() == (not changes)


def test_a_batch_that_cannot_be_shown_stops_nothing(harness, monkeypatch, caplog):
    spec = harness.spec(small_config())
    Path(spec.run_uri).mkdir()
    (Path(spec.run_uri) / "non_finite").write_text("a file in the way")
    poison(monkeypatch, {1})
    supervised(spec)
    assert "the batch of step 1 cannot be shown" in caplog.text
    assert spec.checkpoints.last_step == 4


# Told to end


@pytest.mark.parametrize("way", ["a note in the folder", "SIGTERM to the driver"])
def test_a_run_that_is_told_to_ends_in_order(harness, whole, monkeypatch, way):
    spec = harness.spec(small_config())
    before = signal.getsignal(signal.SIGTERM)

    def tell(loop):
        if loop.step == 2:
            if way == "a note in the folder":
                Note(spec.run_uri, STOP).write("the cluster closes at noon")
            else:
                os.kill(os.getpid(), signal.SIGTERM)
            while Note(spec.run_uri, STOP).read() is None:
                time.sleep(0.02)
            time.sleep(0.3)

    before_each_step(monkeypatch, tell)
    with pytest.raises(RunTerminatedError, match=r"closes at noon|SIGTERM"):
        supervised(spec)
    assert spec.checkpoints.last_step == 3
    assert read_metrics(Path(spec.run_uri) / "metrics.jsonl")[-1]["status"] == "stopped"
    assert signal.getsignal(signal.SIGTERM) is before
    is_gone = Note(spec.run_uri, STOP).read() is None
    assert is_gone == (way == "SIGTERM to the driver"), "what the user wrote stays"
    supervised(spec)  # the note of before counts no more
    assert_same_weights(spec, whole)


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN])
@pytest.mark.parametrize(("signals", "grace_s"), [(1, 0.3), (2, 60)])
def test_workers_that_do_not_end_are_left(tmp_path, ctrl_c, signals, grace_s):
    """Also where a shell started the process in the background, so that it ignores Ctrl-C."""
    signal.signal(signal.SIGINT, ctrl_c)
    start = time.monotonic()
    with EndOnSigterm(str(tmp_path), grace_s=grace_s) as asked, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        time.sleep(20)
    assert asked.asked
    assert time.monotonic() - start < 10


# Preempted


def test_a_preempted_run_goes_on(harness, whole, monkeypatch):
    spec, starts = harness.spec(small_config()), []

    def tell(loop):
        if loop.step == 0 and starts == [0]:
            os.kill(os.getpid(), signal.SIGTERM)

    before_each_step(monkeypatch, tell)
    supervised(spec, starts, on_start=SigtermCallback().after_init_train_context)
    assert starts == [0, 1]
    assert_same_weights(spec, whole)


def test_a_second_sigterm_ends_a_worker():
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    SigtermCallback().after_init_train_context()
    os.kill(os.getpid(), signal.SIGTERM)
    assert preemption._sigterm.is_set()
    assert heard == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGTERM]


def test_a_runs_own_end_is_no_preemption(harness):
    spec, calls = harness.spec(small_config()), []

    def attempt():
        calls.append(1)
        Note(spec.run_uri, "stopped.txt").write("nothing is gained any more")

    supervise(spec, attempt)
    assert calls == [1]


def test_stacks_of_hung_workers_are_pointed_to(harness):
    spec = harness.spec(small_config())

    def attempt():
        Note(spec.run_uri, "hung/now-rank0.txt").write("stacks")
        raise RunError("the actor died")

    with pytest.raises(RunError, match=r"the actor died\nstacks .*run/hung"):
        supervise(spec, attempt)


# No room on the disk


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a disk of 64 KiB without any room."""
    with small_disk(tmp_path / "disk", size="64k") as folder:
        (folder / "run").mkdir()
        with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        yield folder


def test_what_finds_no_room_is_named(full_disk):
    run = full_disk / "run"

    def work():
        with telling_the_driver(str(run)):
            (run / "metrics.jsonl").write_text("a line")

    def break_down():
        with telling_the_driver(str(run)):
            raise NonFiniteLossError("it broke", step=1)  # whose note finds no room

    for part in (work, break_down):
        with pytest.raises(DiskFullError) as caught:
            part()
        message = str(caught.value)
        assert "No space left on device" in message
        assert f"(0 of 0 MiB are free in {run}; " in message
        assert "free some space, then --resume" in message


def test_another_error_of_the_system_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), telling_the_driver(str(tmp_path)):
        (tmp_path / "nothing").read_text()
    assert is_disk_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert not is_disk_full(OSError(errno.EIO, "Input/output error"))


def polled(*errors):
    """What Ray Train's controller learns of its workers; None: still at work."""
    statuses = [
        WorkerStatus(
            running=error is None,
            # As it comes from the worker's process, without what it came from.
            error=error and UserExceptionWithTraceback(pickle.loads(pickle.dumps(error)), "trace"),
        )
        for error in errors
    ]
    return WorkerGroupPollStatus(dict(enumerate(statuses)))


def test_no_restart_where_one_worker_found_no_room():
    callback = NoUselessRestart()
    with pytest.raises(DiskFullError, match="the disk is full"):
        callback.after_worker_group_poll_status(polled(DiskFullError("the disk is full"), None))
    for others in ((None, None), (None, CheckpointError("a gap")), (OSError(5, "a gap"), None)):
        callback.after_worker_group_poll_status(polled(*others))
