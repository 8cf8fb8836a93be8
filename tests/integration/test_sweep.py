"""Sweeps on a real Ray: what becomes of each trial, and what is left when the user stops one."""

import csv
import io
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from builders import ROOT
from rich.console import Console
from script_process import Script, run_script, small_run_options
from wandb_file import finished_records, history

from retina_ray.config import ExperimentConfig, from_json
from retina_ray.inference.predict import Predictor
from retina_ray.sweep.launch import finish_sweep, prepare_sweep
from retina_ray.sweep.report import read_results
from retina_ray.sweep.runner import run_sweep
from retina_ray.sweep.space import Choice
from retina_ray.train.tracking.metrics_file import read_metrics

pytestmark = pytest.mark.ray
GOOD, IDLE, DIVERGING = 2e-3, 1e-9, 1e12
"""Learning rates: one that learns in a few epochs, one that learns nothing, one that breaks."""
SEED = 6
"""With it Optuna draws GOOD, GOOD, DIVERGING, IDLE (the first is the base config)."""


@pytest.fixture(scope="module")
def four(local_ray, shapes_set, tiny_config, tmp_path_factory):
    """Four trials under ASHA and Optuna, of which one fails and some are stopped.

    The sweep's plan, its rows, and what was printed.
    """
    config = tiny_config(
        **{
            "data.train": shapes_set,
            "data.val": shapes_set,
            "optimizer.name": "adamw",
            "optimizer.lr": GOOD,
            "train.batch_size": 2,
            "train.epochs": 8,
            "train.eval_every_epochs": 4,
            "tracking.wandb": "offline",
        }
    )
    space = {
        "optimizer.lr": Choice(GOOD, IDLE, DIVERGING),
        "loss.box_loss": Choice("smooth_l1", "giou"),
        "loss.smooth_l1_beta": Choice(0.1, 0.5),
    }
    options = {"scheduler": "asha", "search": "optuna", "max_concurrent": 2, "grace_epochs": 4}
    options |= {"name": "four", "num_samples": 4, "seed": SEED}
    plan = prepare_sweep(config, space, storage=str(tmp_path_factory.mktemp("sweeps")), **options)
    outcome = run_sweep(plan, resume=False)
    assert not outcome.interrupted
    shown = io.StringIO()
    finish_sweep(plan, outcome, console=Console(file=shown, width=250))
    return plan, outcome.rows, shown.getvalue()


def folder_of(plan, row):
    return Path(plan.uri) / "trials" / row.trial_id


def test_each_trial_trains_what_its_row_says(four):
    plan, rows, _ = four
    assert [row.trial_id for row in rows] == [f"trial_{n:02d}" for n in range(4)]
    assert sorted(p.name for p in (Path(plan.uri) / "trials").iterdir()) == [
        row.trial_id for row in rows
    ]
    assert rows[0].params == {
        "optimizer.lr": GOOD,
        "loss.box_loss": "smooth_l1",
        "loss.smooth_l1_beta": 0.1,
    }
    for row in rows:
        config = json.loads((folder_of(plan, row) / "config.json").read_text())
        assert config["optimizer"]["lr"] == row.params["optimizer.lr"]
        assert config["loss"]["box_loss"] == row.params["loss.box_loss"]
        idle = config["loss"]["box_loss"] == "giou"
        beta = row.params["loss.smooth_l1_beta"]
        assert beta == (None if idle else config["loss"]["smooth_l1_beta"])
    assert any(row.params["loss.smooth_l1_beta"] is None for row in rows)


def test_a_diverging_trial_is_a_row_with_its_reason(four):
    _, rows, shown = four
    failed = [row for row in rows if row.params["optimizer.lr"] == DIVERGING]
    assert failed
    for row in failed:
        assert row.status == "failed"
        assert row.reason.startswith("NonFiniteLossError: loss_")
        assert "lower optimizer.lr" in row.reason
        assert "\n" not in row.reason
        assert row.checkpoint is None
        assert row.metrics == {}
        assert row.trial_id in shown
    assert [row.status for row in rows].count("failed") == len(failed)
    assert "NonFiniteLossError" in shown


def test_asha_stops_what_does_not_learn(four):
    _, rows, _ = four
    assert rows[0].status == "finished"
    assert rows[0].epochs_run == 8
    stopped = [row for row in rows if row.status == "stopped"]
    assert stopped
    for row in stopped:
        assert row.epochs_run == 4
        assert len(row.history) == 1
        assert row.reason == "asha stopped it after epoch 4"
        assert row.checkpoint is not None  # what it had learnt is kept


def test_figures_are_those_of_the_trials_own_records(four):
    plan, rows, _ = four
    judged = [row for row in rows if row.status != "failed"]
    assert max(row.metrics["AP"] for row in judged) > 0
    for row in judged:
        records = read_metrics(folder_of(plan, row) / "metrics.jsonl")
        scores = [r["metrics"]["val/AP"] for r in records if "val/AP" in r["metrics"]]
        assert row.metrics["AP"] == max(scores)
        assert [h["AP"] for h in row.history] == scores
        assert row.best_epoch == 4 * (scores.index(max(scores)) + 1)
        assert row.history[-1]["step"] == records[-1]["step"] == 5 * row.epochs_run
        assert records[-1]["status"] == row.status


def test_files_of_the_report(four):
    plan, rows, _ = four
    root = Path(plan.uri)
    by_id = {row.trial_id: row for row in rows}
    ranked = read_results(root / "results.json")
    assert {row.trial_id: row for row in ranked} == by_id
    with (root / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["trial_id"] for line in table] == [row.trial_id for row in ranked]
    assert float(table[0]["AP"]) == max(row.metrics.get("AP", 0) for row in rows)
    page = (root / "report.html").read_text()
    assert all(row.trial_id in page for row in rows)
    for name in ("learning_curves.png", "parameters.png"):
        assert (root / name).read_bytes().startswith(b"\x89PNG")


def test_the_best_checkpoint_loads_and_the_command_names_what_is_there(four):
    _, rows, shown = four
    command = next(line for line in shown.splitlines() if line.startswith("train on with it: "))
    words = shlex.split(command.removeprefix("train on with it: "))
    assert words[:2] == ["python", "experiments/train.py"]
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert set(options) == {"--recipe", "--init-from", "--storage"}
    assert all(Path(path).exists() for path in options.values())
    best = max(rows, key=lambda row: row.metrics.get("AP", -1))
    assert options["--init-from"] == best.checkpoint

    config = from_json(ExperimentConfig, Path(options["--recipe"]).read_text())
    predictor = Predictor.from_checkpoint(options["--init-from"], device="cpu")
    assert predictor.config == config
    assert config.optimizer.lr == best.params["optimizer.lr"]
    assert predictor.meta.metrics["val/AP"] == best.metrics["AP"]
    assert all(torch.isfinite(tensor).all() for tensor in predictor.model.state_dict().values())


def test_every_trial_is_one_wandb_run_of_the_sweeps_group(four):
    plan, rows, _ = four
    ids = set()
    for row in rows:
        (path,) = folder_of(plan, row).glob("wandb/*run-*/*.wandb")
        records = finished_records(path)
        run = next(r.run for r in records if r.HasField("run"))
        assert (run.run_group, run.display_name) == ("four", f"four-{row.trial_id}")
        ids.add(run.run_id)
        keys = {key for one in history(records) for key in one}
        assert ("val/AP" in keys) == (row.status != "failed")
        exits = [r.exit.exit_code for r in records if r.HasField("exit")]
        assert exits == [int(row.status == "failed")]
    assert len(ids) == len(rows)


def resume_command_of(script):
    """The words of the command that a stopped sweep shows, without `python`."""
    (hint,) = [line for line in script.lines if "resume with: " in line]
    words = shlex.split(hint.partition("resume with: ")[2])
    assert words[0] == "python"
    assert "--resume" in words
    return words[1:]


def test_stopped_sweeps_leave_a_table_and_can_be_resumed(
    local_ray, shapes_set, tmp_path, monkeypatch
):
    options = small_run_options(
        shapes_set, tmp_path, "stopped", **{"train.epochs": 2, "train.batch_size": 5}
    )
    new = ["--space", "losses", "--num-samples", 3, "--scheduler", "fifo", "--max-concurrent", 1]
    first = Script("experiments/sweep.py", *options, *new)
    first.wait_for("trial_00  finished")
    first.wait_for("trial_01  epoch 1/2")
    first.interrupt()
    assert first.end(60) == 130, first.output
    assert "Traceback" not in first.output
    assert "Tuner.restore" not in first.output
    assert first.left_behind() == []
    assert "pending" in first.output

    folder = tmp_path / "stopped"
    done = read_results(folder / "results.json")
    statuses = {row.trial_id: row.status for row in done}
    assert statuses["trial_00"] == "finished"
    assert statuses["trial_01"] == "pending"
    trials = folder / "trials"
    finished = (trials / "trial_00" / "metrics.jsonl").read_bytes()
    begun = read_metrics(trials / "trial_01" / "metrics.jsonl")

    second = Script(*resume_command_of(first))
    second.wait_for("trial_01  finished")
    second.terminate()
    assert second.end(60) == 143, second.output
    assert "Traceback" not in second.output
    assert second.left_behind() == []
    assert not any(line.startswith("trial_00  epoch") for line in second.lines)
    again = read_metrics(trials / "trial_01" / "metrics.jsonl")
    assert again[: len(begun) - 1] == begun[: len(begun) - 1]  # it went on, and did not start anew
    statuses = {row.trial_id: row.status for row in read_results(folder / "results.json")}
    assert statuses.pop("trial_02", "pending") == "pending"
    assert statuses == {"trial_00": "finished", "trial_01": "finished"}

    script, *words = resume_command_of(second)
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    third = run_script(Path(script).stem, *words)
    assert third.exit_code == 0, third.output
    assert not re.search("^trial_0[01]  ", third.output, re.MULTILINE)
    assert (trials / "trial_00" / "metrics.jsonl").read_bytes() == finished
    rows = read_results(folder / "results.json")
    assert {row.trial_id: (row.status, row.epochs_run) for row in rows} == {
        f"trial_{n:02d}": ("finished", 2) for n in range(3)
    }
    assert "resume with" not in third.output
    shown = first.output + second.output + third.output
    for text in (
        "max_concurrent_trials",
        "Configuration for experiment",
        "View detailed results",
        "Token auth",
    ):
        assert text not in shown
