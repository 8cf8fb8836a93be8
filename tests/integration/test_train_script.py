"""`experiments/train.py` stopped by the user, resumed, and broken by its configuration."""

import shlex

import pytest
from script_process import Script, small_run_options

from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.tracking.metrics_file import read_metrics

pytestmark = pytest.mark.ray


def test_ctrl_c_and_resume(pictures, tmp_path):
    first = Script("experiments/train.py", *small_run_options(pictures, tmp_path, "run"))
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

    second = Script(*words)
    assert second.end(300) == 0, second.output
    assert load_checkpoint(str(run)).meta.step == 20  # 4 epochs of 10 pictures, 2 a step
    records = read_metrics(run / "metrics.jsonl")
    assert records[: len(before)] == before
    steps = [r["step"] for r in records if "train/loss" in r["metrics"]]
    assert steps == list(range(1, 21))  # none twice, none left out
    assert records[-1]["status"] == "finished"
    assert "best checkpoint: " in second.output
    assert "resume with" not in second.output
    assert second.left_behind() == []
