"""`experiments/train.py` stopped by the user, carried on, and broken by its configuration."""

import shlex

import pytest
from script_process import Script

from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.tracking.metrics_file import read_metrics

pytestmark = pytest.mark.ray


def options_of(pictures, folder, name, **more):
    settings = {
        "data.synthetic": "null",
        "data.train": pictures,
        "data.val": pictures,
        "model.anchors.sizes": "[12, 24, 48, 96]",
        "model.fpn_channels": 32,
        "input.train_sizes_px": "[64]",
        "input.train_max_size_px": 64,
        "input.eval_size_px": 64,
        "input.eval_max_size_px": 64,
        "schedule.warmup_steps": 2,
        "train.epochs": 4,
        "train.batch_size": 2,
        "train.log_every_steps": 1,
        "tracking.wandb": "disabled",
        **more,
    }
    options = ["--name", name, "--storage", folder]
    for path, value in settings.items():
        options += ["--set", f"{path}={value}"]
    return options


def test_ctrl_c_and_resume(pictures, tmp_path):
    first = Script("experiments/train.py", *options_of(pictures, tmp_path, "run"))
    first.wait_for("epoch 2.0/4 .* AP ")  # so the checkpoint of the first one is kept
    first.interrupt()
    assert first.end(60) == 130, first.output
    assert "Traceback" not in first.output
    assert first.left_behind() == []
    (hint,) = [line for line in first.lines if line.startswith("carry on with: python ")]
    words = shlex.split(hint.removeprefix("carry on with: python "))
    assert words[0] == "experiments/train.py"
    assert words[1:] == ["--name", "run", "--storage", str(tmp_path), "--resume"]
    run = tmp_path / "run"
    stopped_at = load_checkpoint(str(run)).meta.step
    assert 5 <= stopped_at < 20
    before = [r for r in read_metrics(run / "metrics.jsonl") if r["step"] <= stopped_at]

    second = Script(*words)
    assert second.end(300) == 0, second.output
    assert load_checkpoint(str(run)).meta.step == 20  # 4 epochs of 10 pictures, 2 a step
    records = read_metrics(run / "metrics.jsonl")
    assert records[: len(before)] == before
    steps = [r["step"] for r in records if "train/loss" in r["metrics"]]
    assert steps == list(range(1, 21))  # none twice, none left out
    assert records[-1]["status"] == "finished"
    assert "best checkpoint: " in second.output
    assert "carry on with" not in second.output
    assert second.left_behind() == []


def test_a_diverging_run_says_why_and_is_not_tried_again(pictures, tmp_path):
    more = {"optimizer.lr": 1e12, "optimizer.name": "sgd", "train.max_failures": 3}
    more |= {"train.max_rollbacks": 0}
    broken = Script("experiments/train.py", *options_of(pictures, tmp_path, "broken", **more))
    assert broken.end(300) == 1, broken.output
    assert "Traceback" not in broken.output
    errors = " ".join(broken.errors)
    assert "the run failed: NonFiniteLossError: loss_" in errors
    assert "lower optimizer.lr" in errors
    assert "carry on with" not in broken.output  # it would end the same
    statuses = [
        r["status"] for r in read_metrics(tmp_path / "broken/metrics.jsonl") if "status" in r
    ]
    assert statuses == ["failed"]  # one attempt: the next would break at the same step
    assert not list((tmp_path / "broken").glob("metrics.*.jsonl"))
    assert broken.left_behind() == []
