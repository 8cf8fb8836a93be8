"""TensorBoard's event file: what was logged, read back."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from retina_ray.config import TrackingConfig
from retina_ray.evaluation import AnnotatedImage
from retina_ray.structures import Detections
from retina_ray.train.tracking import open_tracker, tensorboard

BOTH = TrackingConfig(wandb="disabled")


def start(run_dir, *, config=BOTH, **options):
    arguments = {"run_id": "run", "name": "run", "group": None, "experiment": {}}
    return open_tracker(config, run_dir=run_dir, **arguments, **options)


@pytest.fixture
def read():
    """The events of a folder, as TensorBoard shows them."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator

    def read(run_dir):
        events = accumulator(str(run_dir / "tensorboard"))
        events.Reload()
        return events

    return read


def values_of(events, name):
    return [(event.step, event.value) for event in events.Scalars(name)]


def picture():
    return AnnotatedImage(
        image=np.full((40, 60, 3), 200, np.uint8),
        truth_boxes=torch.tensor([[10.0, 10, 30, 30]]),
        truth_labels=torch.tensor([1]),
        detections=Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long)),
        class_names=["cat", "dog"],
    )


def test_scalars_and_pictures_are_there(tmp_path, read):
    tracker = start(tmp_path)
    tracker.log({"train/loss": 0.5, "val/AP": 0.25}, step=1)
    tracker.log({"train/loss": float("nan")}, step=2)
    tracker.log_pictures([picture(), picture()], step=2)
    tracker.finish("finished")
    events = read(tmp_path)
    assert values_of(events, "train/loss") == [(1, 0.5), (2, pytest.approx(np.nan, nan_ok=True))]
    assert values_of(events, "val/AP") == [(1, 0.25)]
    (shown,) = events.Images("val/pictures/1")
    assert shown.step == 2
    pixels = cv2.imdecode(np.frombuffer(shown.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(pixels[..., ::-1], picture().draw())


def test_a_run_that_goes_on_hides_what_it_does_again(tmp_path, read, monkeypatch):
    # The last part of a file's name is a count of the process: 10 sorts before 9.
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    monkeypatch.setattr(writer._global_uid, "_value", 9)
    first = start(tmp_path)
    for step in (1, 2, 3):
        first.log({"train/loss": float(step)}, step=step)
    first.finish("stopped")
    second = start(tmp_path, resume=True, resume_step=2)
    second.log({"train/loss": 30.0}, step=3)
    second.finish("finished")
    assert values_of(read(tmp_path), "train/loss") == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_off_or_without_the_package_there_is_no_file(tmp_path, monkeypatch, caplog):
    off = TrackingConfig(wandb="disabled", tensorboard="off")
    start(tmp_path, config=off).finish("finished")
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    start(tmp_path).finish("finished")
    assert not (tmp_path / "tensorboard").exists()
    assert caplog.text == ""


def test_a_package_that_cannot_be_used_stops_no_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    start(tmp_path).finish("finished")
    assert "TensorBoard cannot be used (" in caplog.text


def test_importing_the_module_imports_neither():
    code = (
        "import sys, retina_ray.train.tracking; "
        "sys.exit(any(name in sys.modules for name in ('tensorboard', 'torch', 'wandb')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
