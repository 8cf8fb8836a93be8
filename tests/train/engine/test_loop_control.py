"""The loop by itself: exact resume, steps left out, stops, early ends, and no waiting."""

import io
import math
import sys
import threading
from dataclasses import asdict, dataclass, field, replace

import pytest
import torch
from builders import make_spec, small_config

from retina_ray.data.loading.local_stream import iterate
from retina_ray.train.checkpoint.format import Checkpoint, CheckpointMeta
from retina_ray.train.engine.loop import TrainingLoop
from retina_ray.train.errors import NonFiniteLossError, RunStoppedError
from retina_ray.train.spec import RunInputs

CPU = torch.device("cpu")


def read_back(state):
    """What a file would give back, read as a checkpoint is."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@dataclass
class MemoryCallbacks:
    """Keeps everything in memory; `scores` are the APs that the validations get."""

    scores: list = field(default_factory=lambda: [0.5] * 99)
    stop_at: int | None = None  # the question, from 0, that is answered with a stop
    logged: list = field(default_factory=list)
    found: list = field(default_factory=list)
    kept: dict = field(default_factory=dict)
    asked: int = 0

    def on_log(self, metrics, *, step):
        paced = ("perf/images_per_s", "perf/data_wait_fraction")
        self.logged.append((step, {k: v for k, v in metrics.items() if k not in paced}))

    def on_bad_images(self, bad):
        raise AssertionError(bad)

    def score(self, found, *, step):
        self.found.append((step, found))
        return {"val/AP": self.scores[len(self.found) - 1]}

    def on_validation_end(self, metrics, snapshot):
        assert metrics["val/AP"] == self.scores[len(self.found) - 1]
        self.on_checkpoint(snapshot)

    def on_checkpoint(self, snapshot):
        assert snapshot.step not in self.kept, "kept twice"
        meta = CheckpointMeta(snapshot.step, snapshot.epoch, [], "")
        model, state, ema = read_back((snapshot.model, snapshot.state, snapshot.ema))
        self.kept[snapshot.step] = Checkpoint(model, state, small_config(), meta, ema)

    def stop_reason(self):
        self.asked += 1
        return "told so" if self.asked - 1 == self.stop_at else None


class Bench:
    """Runs the loop over eight images: two a step, four steps an epoch, two epochs."""

    def __init__(self, data):
        self.data = data

    def loop(self, callbacks, *, checkpoint=None, skip=(), **overrides):
        start = 0 if checkpoint is None else checkpoint.meta.step
        config = small_config(
            **{
                "train.batch_size": 2,
                "train.log_every_steps": 2,
                "optimizer.name": "sgd",
                **overrides,
            }
        )
        inputs = RunInputs.open(make_spec(config, self.data, "nowhere"))
        loop = TrainingLoop(
            config, inputs.layout, CPU, inputs.category_ids, callbacks, skip_steps=frozenset(skip)
        )
        if checkpoint is not None:
            loop.restore(checkpoint)
        rows = inputs.plan.worker_rows(0, start, validate_first=loop.validation_is_due)
        loop.rows = iterate(rows, inputs.loader)
        return loop

    def run(self, callbacks=None, **options):
        loop = self.loop(callbacks or MemoryCallbacks(), **options)
        loop.run(loop.rows)
        return loop


@pytest.fixture(scope="module")
def bench(eight_images):
    torch.set_num_threads(1)
    return Bench(eight_images)


@pytest.fixture(scope="module")
def one_epoch(bench):
    """The checkpoints of an epoch, one after each step."""
    callbacks = MemoryCallbacks()
    bench.run(callbacks, **{"train.checkpoint_every_steps": 1, "train.epochs": 1})
    return callbacks.kept


def assert_equal(actual, expected, path=""):
    """Trees of dicts, lists, numbers and tensors, bit for bit."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), path
        for key, value in expected.items():
            assert_equal(actual[key], value, f"{path}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), path
        for number, value in enumerate(expected):
            assert_equal(actual[number], value, f"{path}/{number}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected), path
    else:
        assert actual == expected, path


def whole_state(loop):
    snapshot = asdict(loop.snapshot())
    del snapshot["state"]["elapsed_s"]
    return snapshot


# State and resume


@pytest.mark.parametrize(
    "overrides",
    [
        {"train.ema_decay": 0.9, "model.head_norm": "bn", "optimizer.clip": "value"},
        {"train.ema_decay": 0.9, "optimizer.name": "adamw", "train.accumulate": 2},
    ],
    ids=["sgd", "adamw"],
)
def test_a_run_resumed_in_mid_epoch_ends_bit_for_bit_as_the_whole_one(bench, overrides):
    overrides = {**overrides, "train.checkpoint_every_steps": 3}
    whole = MemoryCallbacks()
    end = bench.run(whole, **overrides)
    assert sorted(whole.kept) == [3, 4, 6, 8]
    torch.manual_seed(99)  # what the generators hold is part of the state
    resumed = MemoryCallbacks()
    again = bench.run(resumed, checkpoint=whole.kept[3], **overrides)
    assert_equal(whole_state(again), whole_state(end))
    assert resumed.logged == [line for line in whole.logged if line[0] > 3]
    assert sorted(resumed.kept) == [4, 6, 8]
    assert again.ended == end.ended == "finished"
    elapsed = [one.state["elapsed_s"] for one in (whole.kept[3], resumed.kept[4])]
    assert 0 < elapsed[0] < elapsed[1]


# The average


def test_validations_score_the_average_and_leave_the_weights_alone(bench):
    plain, averaged = MemoryCallbacks(), MemoryCallbacks()
    options = {"inference.score_threshold": 0.001, "inference.max_detections": 3}
    bench.run(plain, **options)
    bench.run(averaged, **options, **{"train.ema_decay": 0.5})
    for step in (4, 8):
        assert_equal(averaged.kept[step].model, plain.kept[step].model)
        assert_equal(averaged.kept[step].state["optimizer"], plain.kept[step].state["optimizer"])
    assert plain.kept[8].ema is None
    expected = averaged.found[1][1].results
    assert expected != plain.found[1][1].results
    # The same validation, with the average for the weights of a run that keeps none.
    other = MemoryCallbacks()
    kept = averaged.kept[8]
    checkpoint = replace(kept, model=kept.ema, state={**kept.state, "evaluated_step": 4})
    bench.run(other, checkpoint=checkpoint, **options)
    assert other.found[0][1].results == expected


# Steps that are left out


def test_a_step_that_is_left_out_moves_only_the_schedule(bench):
    callbacks = MemoryCallbacks()
    options = {"train.epochs": 1, "train.log_every_steps": 1, "train.checkpoint_every_steps": 1}
    loop = bench.run(callbacks, skip=[2], **options)
    assert loop.step == 4
    after, before = callbacks.kept[3], callbacks.kept[2]
    assert_equal(after.model, before.model)
    assert_equal(after.state["optimizer"]["state"], before.state["optimizer"]["state"])
    assert_equal(after.state["criterion"], before.state["criterion"])
    rates = [metrics["train/lr"] for _, metrics in callbacks.logged]
    reference = loop.learner.schedule.lr_lambdas[0]
    assert rates == pytest.approx([loop.config.optimizer.lr * reference(n) for n in (1, 2, 3, 4)])
    told = [metrics.get("train/skipped_steps") for _, metrics in callbacks.logged]
    assert told == [None, None, 1.0, None]
    assert "train/loss" not in callbacks.logged[2][1]


# What is not finite


def spoil(loop, *steps):
    """Let the box loss of these steps be NaN."""
    losses = loop.learner.criterion.losses

    def spoilt(*inputs):
        terms = losses(*inputs)
        if loop.step in steps:
            terms["loss_box_reg"] = terms["loss_box_reg"] * math.nan
        return terms

    loop.learner.criterion.losses = spoilt


def test_a_loss_that_is_not_finite_is_told_with_its_step_and_images(bench):
    callbacks = MemoryCallbacks()
    # A smoothed normalizer counts the boxes of a step whose update is left out.
    options = {"train.log_every_steps": 4, "loss.normalizer": "batch"}
    loop = bench.loop(callbacks, **options)
    rows = list(loop.rows)
    spoil(loop, 1, 2)
    with pytest.raises(
        NonFiniteLossError, match=r"loss_box_reg became .* step 1 .*optimizer\.lr"
    ) as caught:
        loop.run(rows)
    assert loop.step == 4, "noticed at the logging step"
    error = caught.value
    assert (error.step, error.terms) == (1, ("loss_box_reg",))
    assert error.image_ids == tuple(rows[1].batch.image_ids)
    assert error.lr == pytest.approx(
        loop.learner.schedule.lr_lambdas[0](1) * loop.config.optimizer.lr
    )
    assert callbacks.kept == {}
    # The weights took part in no update of steps 1 and 2: as if those had been left out.
    reference = bench.loop(MemoryCallbacks(), skip=[1, 2], **options)
    reference.run(rows[:4])
    assert_equal(loop.model.state_dict(), reference.model.state_dict())


def test_no_checkpoint_holds_what_is_not_finite(bench):
    callbacks = MemoryCallbacks()
    options = {"train.log_every_steps": 100, "train.checkpoint_every_steps": 3}
    loop = bench.loop(callbacks, **options)
    spoil(loop, 5)
    with pytest.raises(NonFiniteLossError, match="step 5 "):
        loop.run(loop.rows)
    assert sorted(callbacks.kept) == [3, 4]


# Stops


@pytest.mark.parametrize(
    ("stop_at", "step", "is_due"),
    [(0, 0, False), (3, 3, False), (4, 4, True), (5, 4, True)],
    ids=["at the start", "in an epoch", "before a validation", "during a validation"],
)
def test_a_stop_keeps_a_checkpoint_and_does_not_wait_for_a_validation(bench, stop_at, step, is_due):
    callbacks = MemoryCallbacks(stop_at=stop_at)
    loop = bench.loop(callbacks, **{"train.eval_batch_size": 2})
    with pytest.raises(RunStoppedError, match="told so") as caught:
        loop.run(loop.rows)
    assert caught.value.reason == "told so"
    assert loop.step == step
    assert sorted(callbacks.kept) == ([step] if step else [])
    assert loop.validation_is_due == is_due
    assert callbacks.found == []


# Ends before the plan's


def test_early_stopping_ends_the_run_and_a_resume_does_not_go_on(bench):
    options = {"train.epochs": 4, "train.batch_size": 4, "train.early_stop_rounds": 2}
    callbacks = MemoryCallbacks(scores=[0.2, 0.2, 0.1, 0.9])
    loop = bench.run(callbacks, **options)
    assert (loop.ended, loop.step) == ("early stop", 6)
    again = MemoryCallbacks()
    resumed = bench.run(again, checkpoint=callbacks.kept[6], **options)
    assert (resumed.ended, resumed.step, again.found) == ("early stop", 6, [])
    between = bench.run(MemoryCallbacks(scores=[0.2, 0.2]), checkpoint=callbacks.kept[4], **options)
    assert (between.ended, between.step) == ("early stop", 6)


def test_early_stopping_at_the_last_validation_is_the_end_of_the_plan(bench):
    options = {"train.epochs": 2, "train.batch_size": 4, "train.early_stop_rounds": 1}
    assert bench.run(MemoryCallbacks(scores=[0.2, 0.2]), **options).ended == "finished"


def almost_spent(checkpoint):
    """A checkpoint of a run that has an hour, and took nearly all of it."""
    return replace(checkpoint, state={**checkpoint.state, "elapsed_s": 3600 - 1e-3})


def test_the_time_ends_the_run_with_a_checkpoint_and_counts_over_resumes(bench, one_epoch):
    callbacks, again = MemoryCallbacks(), MemoryCallbacks()
    loop = bench.run(callbacks, checkpoint=almost_spent(one_epoch[1]), **{"train.max_hours": 1.0})
    assert (loop.ended, loop.step, sorted(callbacks.kept)) == ("time budget", 2, [2])
    resumed = bench.run(again, checkpoint=callbacks.kept[2], **{"train.max_hours": 1.0})
    assert (resumed.ended, resumed.step, again.kept) == ("time budget", 2, {})
    longer = bench.run(checkpoint=callbacks.kept[2], **{"train.max_hours": 2.0})
    assert longer.ended == "finished"


def test_a_validation_that_is_due_is_still_done_when_the_time_is_spent(bench, one_epoch):
    callbacks = MemoryCallbacks()
    loop = bench.run(callbacks, checkpoint=almost_spent(one_epoch[3]), **{"train.max_hours": 1.0})
    assert (loop.ended, loop.step) == ("time budget", 4)
    assert [step for step, _ in callbacks.found] == [4]


# No waiting


WAITS = ("item", "cpu", "numpy", "tolist")
WAITS += ("__bool__", "__int__", "__float__", "__index__", "__array__")


WITH_CPU_BRANCHES = ("retina_ray/ops/", "retina_ray/model/assignment.py")
"""Where the code has branches for the CPU, which look at values because that costs nothing there.
tests/model runs the other branches on a device without values."""


class Waited(Exception):  # noqa: N818 - what the guard found
    """A figure was read from the device in a step that should not wait."""


class Guard:
    """Refuses what would wait for a device, in this thread, while it is armed."""

    def __init__(self, monkeypatch):
        self.is_armed = False
        self._thread = threading.get_ident()
        for name in WAITS:
            monkeypatch.setattr(torch.Tensor, name, self._refuse(name))
        monkeypatch.setattr(torch.cuda, "synchronize", self._refuse_call)

    def _refuse_call(self, *_):
        raise Waited("torch.cuda.synchronize")

    def _refuse(self, name):
        original = getattr(torch.Tensor, name)

        def guarded(tensor, *args, **kwargs):
            frames, frame = [], sys._getframe(1)
            while frame is not None:
                frames.append(frame.f_code)
                frame = frame.f_back
            if self.is_armed and self._thread == threading.get_ident():
                if not any(
                    part in code.co_filename for code in frames for part in WITH_CPU_BRANCHES
                ):
                    raise Waited(f"Tensor.{name} in {frames[0].co_name}")
            return original(tensor, *args, **kwargs)

        return guarded

    def watch(self, rows, loop):
        """Hand out rows, armed from each training row on until the next one, but for logging."""
        for row in rows:
            logs = (loop.step + 1) % loop.config.train.log_every_steps == 0
            self.is_armed = row.kind == "train" and not logs
            try:
                yield row
            finally:
                self.is_armed = False


EVERYTHING = {
    "train.log_every_steps": 3,
    "train.ema_decay": 0.9,
    "train.accumulate": 2,
    "optimizer.clip": "norm",
}


@pytest.mark.parametrize(
    "overrides",
    [
        EVERYTHING,
        {**EVERYTHING, "optimizer.name": "adamw", "optimizer.clip": "value"},
        {**EVERYTHING, "train.precision": "fp16", "loss.cls_loss": "quality_focal"},
    ],
    ids=["sgd", "adamw", "fp16"],
)
def test_no_step_but_those_that_log_waits_for_the_device(bench, monkeypatch, overrides):
    callbacks = MemoryCallbacks()
    loop = bench.loop(callbacks, **{"train.epochs": 1, "schedule.warmup_steps": 0, **overrides})
    guard = Guard(monkeypatch)
    loop.run(guard.watch(loop.rows, loop))
    assert [step for step, _ in callbacks.logged] == [3]
    assert loop.ended == "finished"


def test_the_guard_sees_a_wait(bench, monkeypatch):
    loop = bench.loop(MemoryCallbacks(), **{"train.epochs": 1, **EVERYTHING})
    make_step = loop._make_step

    def reading(batches):
        figures = make_step(batches)
        assert figures.grad_norm > 0
        return figures

    reading.wrap = make_step.wrap
    loop._make_step = reading
    guard = Guard(monkeypatch)
    with pytest.raises(Waited, match="__bool__ in reading"):
        loop.run(guard.watch(loop.rows, loop))
