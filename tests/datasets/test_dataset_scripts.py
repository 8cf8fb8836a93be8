"""The scripts of `datasets/`: each from outside, as a user runs it."""

import subprocess
import sys

import pytest
from builders import ROOT
from import_sources import VocSource, YoloSource

from retina_ray.data.prepared.dataset import PreparedDataset

SHARED = ROOT.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent")


def run(script: str, *options) -> subprocess.CompletedProcess[str]:
    """Run a script as a user does: by its path, from the root of the repository."""
    command = [sys.executable, f"datasets/{script}.py", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("options", "name"), [([], "ring"), (["--rotated"], "ellipse")])
def test_shapes(tmp_path, options, name):
    arguments = ("shapes", "--out", tmp_path, "--num-train", 6, "--num-val", 4, "--size", 32)
    done = run(*arguments, *options)
    assert done.returncode == 0, done.stderr
    sets = [PreparedDataset.open(tmp_path / split) for split in ("train", "val")]
    assert [one.num_images for one in sets] == [6, 4]
    assert sets[0].box_type == ("rotated" if options else "aligned")
    assert f"boxes of {name}" in done.stdout
    if not options:
        again = run(*arguments)
        assert again.returncode == 2
        assert "complete data set already" in again.stderr
        assert "Traceback" not in again.stderr


@needs_shared
def test_coco_in_its_own_layout(tmp_path):
    done = run("coco", "--source", SHARED / "coco_tiny", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert [PreparedDataset.open(tmp_path / s).num_images for s in ("train", "val")] == [80, 80]
    assert "boxes of toothbrush" in done.stdout


def test_voc(tmp_path):
    done = run("voc", "--source", VocSource(tmp_path).write(), "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    again = run("voc", "--source", tmp_path / "source", "--out", tmp_path / "out")
    assert "train: complete already" not in done.stderr
    assert "complete already: the same data with the same options" in again.stderr


@pytest.mark.ray
def test_yolo_by_ray_workers(tmp_path):
    source = YoloSource(tmp_path).write() / "data.yaml"
    done = run("yolo", "--data", f"file://{source}", "--out", tmp_path / "out", "--num-workers", 2)
    assert done.returncode == 0, done.stderr
    assert PreparedDataset.open(tmp_path / "out" / "val").num_images == 1
