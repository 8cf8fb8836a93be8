"""Training on Ray Train's workers: two of them are one, a dead one is replaced."""

import json
import os
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import ray.cloudpickle
from builders import ROOT, damaged_copy, logged, make_spec, run_here
from faulty_runs import ONE, TWO, assert_same_end, injected
from script_process import Script, run_script, small_run_options

from retina_ray.config import with_overrides
from retina_ray.data.loading.ray_stream import task_cpus
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.reports.run.record import read_run
from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.errors import NonRetryableError
from retina_ray.train.run import async_validation, trainer
from retina_ray.train.spec import RunInputs
from retina_ray.train.tracking.metrics_file import read_metrics

pytestmark = pytest.mark.ray
# Workers cannot import a test module: its functions travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def test_a_ray_of_our_own_keeps_idle_processes(local_ray):
    assert ray.get(ray.remote(task_cpus).remote()) == 0.5


def test_two_workers_train_as_one(local_ray, shapes_set, tiny_config, tmp_path):
    two = make_spec(tiny_config(**{"train.num_workers": 2}), shapes_set, tmp_path, "two")
    trainer.fit(two, TWO)
    one = make_spec(tiny_config(), shapes_set, tmp_path, "one")
    run_here(one)
    assert_same_end(two, one, exactly=False)
    alone, together = (logged(spec, "train/loss") for spec in (one, two))
    assert together == [(step, pytest.approx(loss, rel=1e-4)) for step, loss in alone]


def test_validation_beside_the_training_survives_kills_of_both(
    local_ray, shapes_set, tiny_config, tmp_path, monkeypatch
):
    config = {"train.epochs": 3, "train.ema_decay": 0.5, "train.max_failures": 1}
    inline = make_spec(tiny_config(**config), shapes_set, tmp_path, "inline")
    run_here(inline)
    config |= {"train.async_validation": True, "train.checkpoint_every_steps": 1}
    spec = make_spec(tiny_config(**config), shapes_set, tmp_path, "beside")
    out = tmp_path / "out"
    out.mkdir()

    def validating(run, uri):
        number = len(list(out.glob("round*")))
        (out / f"round{number}").write_text(f"{os.getpid()} {uri.rpartition('/')[2]}")
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return async_validation.validate(run, uri)

    def mortal(loop, do_step):
        (out / f"worker{os.getpid()}").touch()
        if loop.step == 7 and not (out / "died").exists():
            (out / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        do_step()

    def before(config):
        trainer._validate = validating

    with injected(monkeypatch, tmp_path, mortal, before=before):
        trainer.fit(spec, ONE)
    assert (out / "died").exists()
    rounds = [(out / f"round{n}").read_text().split() for n in range(len(list(out.glob("round*"))))]
    names = [name for _, name in rounds]
    assert names[:2] == ["step-00000003"] * 2  # the first was killed, and made again
    assert set(names) == {"step-00000003", "step-00000006", "step-00000009"}
    workers = {path.name.removeprefix("worker") for path in out.glob("worker*")}
    assert len(workers) == 2
    assert not workers & {process for process, _ in rounds}
    assert_same_end(spec, inline)
    expected = [(step, pytest.approx(ap)) for step, ap in logged(inline, "val/AP")]
    assert logged(spec, "val/AP") == expected
    assert [step for step, _ in logged(spec, "val/AP")] == [3, 6, 9]
    for process in {process for process, _ in rounds[:1]}:
        assert not Path("/proc", process).exists()
    # Ray Train waits 12 s for its cleaner at the end of each run where that one waits for an
    # answer which never comes.
    logs = Path(ray._private.worker._global_node.get_session_dir_path(), "logs", "train")
    texts = [path.read_text() for path in logs.glob("*controller*.log")]
    assert any("Started training worker group" in text for text in texts)
    assert not any("Failed to stop PlacementGroupCleaner" in text for text in texts)


def test_ctrl_c_and_resume(local_ray, shapes_set, tmp_path, monkeypatch):
    first = Script("experiments/train.py", *small_run_options(shapes_set, tmp_path, "run"))
    first.wait_for("epoch 2.0/4 .* AP ")  # so the checkpoint of the first one is kept
    first.interrupt()
    assert first.end(60) == 130, first.output
    assert "Traceback" not in first.output
    assert first.left_behind() == []
    (hint,) = [line for line in first.lines if line.startswith("resume with: python ")]
    words = shlex.split(hint.removeprefix("resume with: python "))
    assert words[0] == "experiments/train.py"
    assert words[1:] == ["--name", "run", "--storage", str(tmp_path), "--resume"]
    run = tmp_path / "run"
    stopped_at = load_checkpoint(str(run)).meta.step
    assert 5 <= stopped_at < 20
    before = [r for r in read_metrics(run / "metrics.jsonl") if r["step"] <= stopped_at]

    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    second = run_script("train", *words[1:])
    assert second.exit_code == 0, second.output
    assert load_checkpoint(str(run)).meta.step == 20  # 4 epochs of 10 images, 2 a step
    records = read_metrics(run / "metrics.jsonl")
    assert records[: len(before)] == before
    steps = [r["step"] for r in records if "train/loss" in r["metrics"]]
    assert steps == list(range(1, 21))  # none twice, none left out
    assert records[-1]["status"] == "finished"
    assert "best checkpoint: " in second.output
    assert "resume with" not in second.output


def test_a_diverging_run_says_why_and_is_not_tried_again(
    local_ray, shapes_set, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    more = {"optimizer.lr": 1e12, "optimizer.name": "sgd", "train.max_failures": 3}
    more |= {"train.max_rollbacks": 0}
    broken = run_script("train", *small_run_options(shapes_set, tmp_path, "broken", **more))
    assert broken.exit_code == 1, broken.output
    errors = " ".join(broken.stderr.split())
    assert "the run failed: NonFiniteLossError: loss_" in errors
    assert "lower optimizer.lr" in errors
    assert "Traceback" not in broken.output
    assert "--resume" not in broken.output  # it would end the same
    records = read_metrics(tmp_path / "broken/metrics.jsonl")
    assert [r["status"] for r in records if "status" in r] == ["failed"]  # one attempt
    assert not list((tmp_path / "broken").glob("metrics.*.jsonl"))


# Images that cannot be decoded


@pytest.fixture
def with_bad_images(shapes_set, tiny_config, tmp_path):
    """A run of two workers over bad images, and the names of these.

    Each worker meets one in the first epoch, and in the second the one that the other one met. In
    the validation set another image is bad, which has the name of the first.
    """
    config = tiny_config(**{"train.num_workers": 2, "train.seed": 1})
    spec = make_spec(config, shapes_set, tmp_path)
    rows = [row for row in RunInputs.open(spec).plan.table.to_pylist() if row["kind"] == "train"]
    met_by = {
        position: [row["worker"] for row in rows if position in row["images"]]
        for position in range(10)
    }
    bad = [next(p for p, by in met_by.items() if by == turns) for turns in ([0, 1], [1, 0])]
    spec = replace(
        spec,
        train_uri=damaged_copy(shapes_set, tmp_path / "train", bad),
        val_uri=damaged_copy(shapes_set, tmp_path / "val", bad[:1]),
    )
    files = PreparedDataset.open(shapes_set).annotations()["file_name"].to_pylist()
    names = [f"{files[position]} (train)" for position in bad]
    return spec, {*names, f"{files[bad[0]]} (val)"}


def limited(spec, max_bad_fraction):
    config = with_overrides(spec.config, {"input.max_bad_fraction": max_bad_fraction})
    return replace(spec, config=config)


@pytest.mark.long
def test_bad_images_of_both_workers_are_replaced_and_count_once(local_ray, with_bad_images):
    spec, names = with_bad_images
    trainer.fit(limited(spec, 0.3), TWO)
    folder = Path(spec.run_uri)
    records = [r["metrics"] for r in read_metrics(folder / "metrics.jsonl") if r["metrics"]]
    in_training = [r.get("data/bad_images", 0) for r in records if "train/loss" in r]
    in_validation = [r.get("data/bad_images", 0) for r in records if "val/AP" in r]
    assert len(in_training) == 6
    assert in_training[2:] == [2, 3, 3, 3]
    assert in_validation == [3, 3]
    named = json.loads((folder / "bad_images.json").read_text())
    assert set(named) == names
    assert all("not an image" in reason for reason in named.values())
    (folder / "run.json").write_text("{}")  # the scripts write it
    assert read_run(folder).bad_images == named
    assert load_checkpoint(spec.run_uri).state["bad_images"] == named


@pytest.mark.long
def test_too_many_bad_images_of_both_workers_end_the_run(local_ray, with_bad_images):
    spec, names = with_bad_images
    with pytest.raises(
        NonRetryableError, match="3 images could not be decoded, more than"
    ) as error:
        trainer.fit(limited(spec, 0.29), TWO)
    assert all(f"{name}: " in str(error.value) for name in names)
    assert spec.checkpoints.last is None, "it ended before the first validation was over"
