"""Tracking: the local record, and what W&B wrote to its own file, read back."""

import json
import math
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from wandb_file import finished_records, history

from retina_ray.config import TrackingConfig
from retina_ray.evaluation import AnnotatedImage
from retina_ray.structures import Detections
from retina_ray.train.tracking import open_tracker, wandb_mode, wandb_run
from retina_ray.train.tracking.metrics_file import read_metrics

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """No test reaches W&B's servers, whatever account this machine has."""
    keep_from_account(monkeypatch, tmp_path)


def keep_from_account(patch, folder):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        patch.delenv(name, raising=False)
    patch.setenv("NETRC", str(folder / "no_netrc"))
    patch.setenv("WANDB_MODE", "offline")


ONLY_LOCAL = TrackingConfig(wandb="disabled", tensorboard="off")


def start(run_dir, config=None, *, run_id="run1", **options):
    arguments = {"name": "a name", "group": "a sweep", "experiment": {"loss": {"gamma": 1.5}}}
    config = config or TrackingConfig(tensorboard="off")
    return open_tracker(config, run_dir=run_dir, run_id=run_id, **(arguments | options))


def run_of_one_step(run_dir):
    tracker = start(run_dir)
    tracker.log({"x": 1.0}, step=1)
    tracker.finish("finished")


def wandb_files(run_dir):
    return sorted(Path(run_dir).glob("wandb/*run-*/*.wandb"))


def metrics_of(run_dir):
    return [line["metrics"] for line in read_metrics(run_dir / "metrics.jsonl")]


def picture(boxes, found, caption):
    return AnnotatedImage(
        image=np.full((60, 80, 3), 200, np.uint8),
        truth_boxes=torch.tensor(boxes),
        truth_labels=torch.tensor([1, 0]),
        detections=Detections(torch.tensor(found), torch.tensor([0.75, 0.5]), torch.tensor([1, 0])),
        class_names=["cat", "dog"],
        caption=caption,
    )


ALIGNED = [[10.0, 10, 40, 50], [0, 0, 5, 5]], [[12.0, 10, 41, 50], [math.nan, 0, 1, 1]]
ROTATED = [[40.0, 30, 20, 10, 30], [9, 9, 4, 4, 0]], [[41.0, 30, 20, 10, 25], [9, 9, 4, 4, 0]]
SHOWN = picture(*ALIGNED, "a.jpg")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The folders of two runs of one process, the first of which has everything."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        keep_from_account(patch, root)
        first, second = start(root / "1", run_id="one"), start(root / "2", run_id="two")
        second.log({"val/AP": 0.2}, step=1)
        first.log({"train/loss_cls": torch.tensor(0.5), "perf/images_per_s": 12}, step=20)
        first.log({"val/AP": np.float32(0.25), "val/APs": math.nan, "x": math.inf}, step=40)
        first.log_pictures([SHOWN, picture(*ALIGNED, "b.jpg")], step=40)
        first.log_pictures([], step=41)
        first.log_pictures([picture(*ROTATED, "rotated.jpg")], step=42)
        first.finish("finished")
        second.log({"val/AP": 0.3}, step=2)
        second.finish("failed")
        second.finish("finished")
    return root / "1", root / "2"


@pytest.fixture(scope="module")
def records(recorded):
    """What W&B wrote of each of them."""
    (one,), (two,) = (wandb_files(folder) for folder in recorded)
    return finished_records(one), finished_records(two)


def test_the_local_record_holds_what_was_logged(recorded):
    text = (recorded[0] / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [20, 40, 40]
    assert lines[0]["metrics"] == {"train/loss_cls": 0.5, "perf/images_per_s": 12.0}
    assert lines[1]["metrics"] == {"val/AP": 0.25, "val/APs": None, "x": None}
    assert lines[2]["status"] == "finished"
    assert all(line["time"] > 1.7e9 for line in lines)


def test_wandb_holds_it_too(records):
    run = next(r.run for r in records[0] if r.HasField("run"))
    assert (run.run_id, run.display_name, run.run_group) == ("one", "a name", "a sweep")
    assert run.project == "retina_ray"
    config = {u.key: json.loads(u.value_json) for u in run.config.update}
    assert config["loss"] == {"gamma": 1.5}
    rows = history(records[0])
    assert rows[0] | {"train/step": 20, "train/loss_cls": 0.5} == rows[0]
    assert rows[1] | {"train/step": 40, "val/AP": 0.25} == rows[1]
    assert math.isnan(float(rows[1]["val/APs"]))
    defined = [r.metric for r in records[0] if r.HasField("metric")]
    axes = {metric.glob_name or metric.name: metric.step_metric for metric in defined}
    assert axes["*"] == "train/step"


def test_two_runs_in_one_process_stay_apart_and_the_first_status_counts(recorded, records):
    assert [row["val/AP"] for row in history(records[1])] == [0.2, 0.3]
    exits = [[r.exit.exit_code for r in one if r.HasField("exit")] for one in records]
    assert exits == [[0], [1]]
    statuses = [line.get("status") for line in read_metrics(recorded[1] / "metrics.jsonl")]
    assert statuses == [None, None, "failed"]


def test_pictures_go_to_a_sheet_and_to_overlays(recorded, records):
    sheets = sorted((recorded[0] / "pictures").iterdir())
    assert [path.name for path in sheets] == ["step_00000040.png", "step_00000042.png"]
    assert cv2.imread(str(sheets[0])).shape[1] > 2 * 384
    (path,) = wandb_files(recorded[0])
    row = history(records[0])[2]
    assert row["train/step"] == 40
    assert row["val/pictures"]["count"] == 2
    assert row["val/pictures"]["captions"] == ["a.jpg", "b.jpg"]
    boxes = row["val/pictures"]["all_boxes"][0]
    files = path.parent / "files"
    truth = json.loads((files / boxes["ground_truth"]["path"]).read_text())["box_data"]
    found = json.loads((files / boxes["predictions"]["path"]).read_text())["box_data"]
    assert [(b["class_id"], b["box_caption"]) for b in truth] == [(1, "dog"), (0, "cat")]
    assert truth[0]["position"] == {"minX": 10.0, "minY": 10.0, "maxX": 40.0, "maxY": 50.0}
    assert [b["box_caption"] for b in found] == ["dog 0.75"]  # the NaN box is left out
    assert found[0]["scores"] == {"score": 0.75}


def test_rotated_boxes_are_drawn_into_the_picture(recorded, records):
    (path,) = wandb_files(recorded[0])
    row = history(records[0])[3]
    assert row["val/pictures"]["captions"] == ["rotated.jpg"]
    assert not row["val/pictures"].get("all_boxes")
    (image,) = (path.parent / "files" / "media" / "images").rglob("*_3_*.jpg")
    assert cv2.imread(str(image)).shape == picture(*ROTATED, "").draw().shape


def test_a_resumed_run_continues_after_its_checkpoint(tmp_path, capfd):
    tracker = start(tmp_path)
    for step in (10, 20, 30):
        tracker.log({"loss": step / 10}, step=step)
    # Killed: wandb's service goes with its process, no word of the end, and a line is cut off.
    tracker._places[0].run.finish()
    tracker._file.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "met')
    tracker = start(tmp_path, resume=True, resume_step=20)
    tracker.log({"loss": 9.0}, step=30)
    tracker.finish("stopped")
    captured = capfd.readouterr()
    said = [line for line in captured.err.splitlines() if "`resume` will be ignored" not in line]
    assert (captured.out, said) == ("", [])  # wandb before 0.30 says that of runs that are offline
    assert metrics_of(tmp_path) == [{"loss": 1.0}, {"loss": 2.0}, {"loss": 9.0}, {}]
    assert {path.name for path in wandb_files(tmp_path)} == {"run-run1.wandb"}


def test_a_new_run_does_not_overwrite_an_old_record(tmp_path):
    for value in (1.0, 2.0, 3.0):
        tracker = start(tmp_path, ONLY_LOCAL)
        tracker.log({"x": value}, step=1)
        assert metrics_of(tmp_path) == [{"x": value}], "on disk before the run ends"
        tracker.finish("finished")
    for name, value in (("metrics.1", 1.0), ("metrics.2", 2.0), ("metrics", 3.0)):
        assert read_metrics(tmp_path / f"{name}.jsonl")[0]["metrics"] == {"x": value}


def test_disabled_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("wandb.init was called"))
    monkeypatch.setenv("WANDB_MODE", "online")
    tracker = start(tmp_path, ONLY_LOCAL)
    tracker.log_pictures([SHOWN], step=1)
    tracker.finish("finished")
    assert not (tmp_path / "wandb").exists()
    assert list((tmp_path / "pictures").iterdir())


# What W&B cannot do


def fail(*_, **__):
    raise wandb.errors.CommError("no network")


@pytest.mark.parametrize(("place", "name"), [(wandb, "init"), (wandb.Run, "log")])
def test_a_wandb_that_fails_is_said_once(tmp_path, monkeypatch, caplog, place, name):
    monkeypatch.setattr(place, name, fail)
    tracker = start(tmp_path)
    for step in (1, 2):
        tracker.log({"x": float(step)}, step=step)
    tracker.log_pictures([SHOWN], step=3)
    tracker.finish("finished")
    assert metrics_of(tmp_path) == [{"x": 1.0}, {"x": 2.0}, {}]
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "no network" in message


def test_a_run_that_cannot_go_online_is_recorded_offline(tmp_path, monkeypatch, caplog):
    real_init = wandb.init

    def init(**options):
        return fail() if options["mode"] == "online" else real_init(**options)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_MODE", "online")
    run_of_one_step(tmp_path)
    (path,) = wandb_files(tmp_path)
    assert history(finished_records(path))[0]["x"] == 1.0
    assert "wandb sync --id run1" in caplog.text


def test_a_wandb_that_never_answers_is_left_to_itself(tmp_path, monkeypatch, caplog):
    never = threading.Event()
    monkeypatch.setattr(wandb, "init", lambda **_: never.wait())
    monkeypatch.setattr(wandb_run, "_INIT_TIMEOUT_S", 0.05)
    run_of_one_step(tmp_path)
    never.set()
    assert "no answer within 0.1 s" in caplog.text
    assert metrics_of(tmp_path) == [{"x": 1.0}, {}]


# Whether it is asked at all


@pytest.mark.parametrize(
    ("choice", "environment", "key", "expected"),
    [
        ("auto", None, False, "offline"),
        ("auto", None, True, "online"),
        ("online", None, False, "online"),
        ("offline", None, True, "offline"),
        ("online", "offline", True, "offline"),
        ("auto", "dryrun", True, "offline"),
        ("offline", "online", False, "online"),
        ("auto", "disabled", True, "disabled"),
        ("disabled", "online", True, "disabled"),
        ("auto", "nonsense", True, "online"),
    ],
)
def test_mode(monkeypatch, choice, environment, key, expected):
    monkeypatch.delenv("WANDB_MODE")
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert wandb_mode.resolve_mode(choice) == expected


def test_a_key_in_netrc_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    host = wandb.setup().settings.base_url.split("://")[1]
    path = tmp_path / "netrc"
    path.write_text(f"machine {host}\n  login user\n  password {'k' * 40}\n")
    path.chmod(0o600)
    assert wandb_mode.resolve_mode("auto") == "offline"
    monkeypatch.setenv("NETRC", str(path))
    assert wandb_mode.resolve_mode("auto") == "online"
    assert wandb_mode._in_netrc(f"https://{host}")  # the way for other versions of wandb
    assert not wandb_mode._in_netrc("https://elsewhere.example")
