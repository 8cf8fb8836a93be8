import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from builders import ROOT

from retina_ray.data.prepared.dataset import PreparedDataset

SHARED = ROOT.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent")


def run(script: str, *options) -> subprocess.CompletedProcess[str]:
    """Run a script as a user does: by its path, from the root of the repository."""
    command = [sys.executable, f"datasets/{script}.py", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_shapes(tmp_path):
    done = run("shapes", "--out", tmp_path, "--num-train", 6, "--num-val", 4, "--size", 32)
    assert done.returncode == 0, done.stderr
    assert PreparedDataset.open(tmp_path / "train").num_images == 6
    assert PreparedDataset.open(tmp_path / "val").num_images == 4
    assert "boxes of ring" in done.stdout
    again = run("shapes", "--out", tmp_path, "--num-train", 6, "--num-val", 4, "--size", 32)
    assert again.returncode == 2
    assert "complete data set already" in again.stderr
    assert "Traceback" not in again.stderr
    assert PreparedDataset.open(tmp_path / "train").num_images == 6


def test_turned_shapes(tmp_path):
    sizes = ("--num-train", 4, "--num-val", 3, "--size", 32)
    done = run("shapes", "--out", tmp_path, *sizes, "--rotated")
    assert done.returncode == 0, done.stderr
    assert PreparedDataset.open(tmp_path / "train").box_type == "rotated"
    assert "boxes of ellipse" in done.stdout


@needs_shared
def test_voc_names_all_faults_of_all_splits_and_writes_nothing(tmp_path):
    options = ("--source", SHARED / "bccd", "--out", tmp_path, "--splits", "train,val,test")
    done = run("voc", *options)
    assert done.returncode == 2
    assert "BloodImage_00338" in done.stderr
    assert "BloodImage_00343" in done.stderr
    assert "--on-bad-box drop" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    done = run("voc", *options, "--on-bad-box", "drop", "--max-size", 160)
    assert done.returncode == 0, done.stderr
    assert "dropped boxes" in done.stdout
    sets = [PreparedDataset.open(tmp_path / s) for s in ("train", "val", "test")]
    assert [s.report["dropped_boxes"] for s in sets] == [1, 1, 0]
    assert set(sets[0].index()["width"].to_pylist()) == {160}


@needs_shared
def test_coco_in_its_own_layout(tmp_path):
    done = run("coco", "--source", SHARED / "coco_tiny", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert [PreparedDataset.open(tmp_path / s).num_images for s in ("train", "val")] == [80, 80]
    assert "boxes of toothbrush" in done.stdout


def test_coco_with_explicit_places(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    cv2.imwrite(str(images / "a.png"), np.zeros((8, 8, 3), np.uint8))
    data = {
        "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 4, "bbox": [1, 1, 3, 3]}],
        "categories": [{"id": 4, "name": "[red]dot[/red]"}],  # not the terminal's markup
    }
    file = tmp_path / "a.json"
    file.write_text(json.dumps(data))
    options = ("--annotations", file, "--images", images, "--split", "dev", "--out", tmp_path)
    done = run("coco", *options)
    assert done.returncode == 0, done.stderr
    assert PreparedDataset.open(tmp_path / "dev").info.num_boxes == 1
    assert "[red]dot[/red]" in done.stdout


def yolo_set(root: Path, num_images: int = 4) -> Path:
    """A YOLO data set whose two splits have the same images; returns its data.yaml."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i in range(num_images):
            pixels = np.full((8, 8 + i, 3), i, np.uint8)
            cv2.imwrite(str(root / "images" / split / f"{i}.png"), pixels)
            (root / "labels" / split / f"{i}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    path = root / "data.yaml"
    path.write_text("train: images/train\nval: images/val\nnames: [dot]\n")
    return path


def test_yolo(tmp_path):
    source = yolo_set(tmp_path / "source")
    options = ("--data", f"file://{source}", "--out", tmp_path / "out")
    done = run("yolo", *options)
    assert done.returncode == 0, done.stderr
    assert [PreparedDataset.open(tmp_path / "out" / s).num_images for s in ("train", "val")] == [
        4,
        4,
    ]
    # As after a kill between the splits: the finished one stays, the other one is written.
    before = (tmp_path / "out" / "train" / "dataset.json").stat().st_mtime_ns
    (tmp_path / "out" / "val" / "dataset.json").unlink()
    done = run("yolo", *options)
    assert done.returncode == 0, done.stderr
    assert "train: complete already" in done.stderr
    assert (tmp_path / "out" / "train" / "dataset.json").stat().st_mtime_ns == before
    assert PreparedDataset.open(tmp_path / "out" / "val").num_images == 4
    # A split with faults takes none with it that was there before.
    shutil.rmtree(tmp_path / "out" / "val")
    (tmp_path / "source" / "labels" / "val" / "2.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    done = run("yolo", *options)
    assert done.returncode == 2
    assert "labels/val/2.txt, line 1" in done.stderr
    assert PreparedDataset.open(tmp_path / "out" / "train").num_images == 4
    assert not list((tmp_path / "out" / "val").glob("*"))


def test_enormous_images_are_refused(tmp_path):
    source = yolo_set(tmp_path / "source")
    options = ("--data", source, "--out", tmp_path / "out", "--splits", "train")
    done = run("yolo", *options, "--max-pixels", 80)  # the four have 64 to 88
    assert done.returncode == 2
    assert "11 x 8 pixels by its header" in done.stderr
    done = run("yolo", *options, "--max-pixels", 80, "--on-bad-image", "drop")
    assert done.returncode == 0, done.stderr
    assert PreparedDataset.open(tmp_path / "out" / "train").num_images == 3


@pytest.mark.ray
def test_ray_workers(tmp_path):
    source = yolo_set(tmp_path / "source")
    done = run("yolo", "--data", source, "--out", tmp_path / "out", "--num-workers", 2)
    assert done.returncode == 0, done.stderr
    assert PreparedDataset.open(tmp_path / "out" / "val").num_images == 4


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("coco", ["--source", "nowhere"], "no such folder of images"),
        ("coco", [], "either --source"),
        ("voc", ["--source", "nowhere"], "not a VOC data set"),
        ("voc", ["--source", "nowhere", "--splits", ","], "at least one split"),
        ("voc", ["--source", "nowhere", "--on-bad-box", "mend"], "mend"),
        ("yolo", ["--data", "nowhere.yaml"], "nowhere.yaml: no such file"),
        ("yolo", ["--data", "nosuch://a/b.yaml"], "not a storage that pyarrow knows"),
    ],
)
def test_faults_end_with_code_2_and_without_a_traceback(tmp_path, script, options, message):
    done = run(script, "--out", tmp_path, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def voc_set(root: Path) -> Path:
    """A VOC data set of two images to train on, and one to validate, with a box each."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, stems in {"train": "ab", "val": "c"}.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems))
        for stem in stems:
            cv2.imwrite(str(root / "JPEGImages" / f"{stem}.jpg"), np.zeros((8, 9, 3), np.uint8))
            voc_box(root, stem, 1, 1, 4, 5)
    return root


def voc_box(root: Path, stem: str, *corners: int) -> None:
    keys = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{k}>{v}</{k}>" for k, v in zip(keys, corners, strict=True))
    text = f"<annotation><object><name>dot</name><bndbox>{box}</bndbox></object></annotation>"
    (root / "Annotations" / f"{stem}.xml").write_text(text)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_overwriting_loses_no_split_to_faults_of_another(tmp_path):
    source, out = voc_set(tmp_path / "source"), tmp_path / "out"
    options = ("--source", source, "--out", out, "--splits", "train,val", "--overwrite")
    done = run("voc", *options)
    assert done.returncode == 0, done.stderr
    first = contents(out)

    voc_box(source, "c", 5, 5, 5, 5)
    voc_box(source, "a", 5, 5, 5, 5)
    done = run("voc", *options)
    assert done.returncode == 2
    assert done.stderr.startswith("Nothing was written. As it was before: train, val. 2 faults")
    assert contents(out) == first

    voc_box(source, "a", 2, 2, 6, 6)
    done = run("voc", *options)
    assert done.returncode == 2
    said = "Written in place of what was there: train; nothing else. As it was before: val. c.jpg"
    assert done.stderr.startswith(said)
    assert contents(out / "val") == {n[4:]: b for n, b in first.items() if n.startswith("val/")}
    train = PreparedDataset.open(out / "train")
    assert train.ground_truth()["annotations"][0]["bbox"] == [1, 1, 5, 5]

    voc_box(source, "c", 3, 3, 6, 6)
    done = run("voc", *options)
    assert done.returncode == 0, done.stderr
    val = PreparedDataset.open(out / "val")
    assert val.ground_truth()["annotations"][0]["bbox"] == [2, 2, 4, 4]
    shards = {
        f"{s.info.split}/{s.info.shards[0].file}"
        for s in (PreparedDataset.open(out / "train"), val)
    }
    assert set(contents(out)) == {"train/dataset.json", "val/dataset.json", *shards}


def test_new_splits_go_again_where_another_has_faults(tmp_path):
    source, out = voc_set(tmp_path / "source"), tmp_path / "out"
    options = ("--source", source, "--out", out)
    assert run("voc", *options, "--splits", "val").returncode == 0
    before = contents(out)
    voc_box(source, "c", 5, 5, 5, 5)
    done = run("voc", *options, "--splits", "train,val", "--overwrite")
    assert done.returncode == 2
    assert done.stderr.startswith("Nothing was written. As it was before: val. c.jpg")
    assert contents(out) == before


def test_what_stops_an_overwriting_leaves_the_set_that_was_there(tmp_path):
    source, out = voc_set(tmp_path / "source"), tmp_path / "out"
    options = ("--source", source, "--out", out, "--splits", "train", "--overwrite")
    (out / "train").mkdir(parents=True)
    in_the_way = out / "train" / "_import"  # where a folder has to be made
    in_the_way.write_text("")
    done = run("voc", *options)
    assert done.returncode == 1
    assert "train: stopped: " in done.stderr
    assert "as it was" not in done.stderr
    in_the_way.unlink()
    assert run("voc", *options).returncode == 0
    before = contents(out)
    in_the_way.write_text("")
    done = run("voc", *options)
    assert done.returncode == 1
    assert "resumes from there. Until then, the set that was there is as it was." in done.stderr
    assert "Traceback" not in done.stderr
    in_the_way.unlink()
    assert before.items() <= contents(out).items()
    assert PreparedDataset.open(out / "train").num_images == 2
