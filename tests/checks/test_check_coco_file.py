"""A COCO file that lies anywhere, with `--images`: what `datasets/coco.py --annotations` takes."""

import json
from pathlib import Path

import pytest
from check_sources import CocoSource
from typer.testing import CliRunner

from retina_ray.cli.data import data_app


@pytest.fixture
def source(tmp_path) -> CocoSource:
    (tmp_path / "set").mkdir()
    return CocoSource(tmp_path / "set")


def check(*options: object):
    """Run the command, which takes the option in any place."""
    words = ["check", *map(str, options)]
    return CliRunner().invoke(data_app, words, env={"COLUMNS": "400"})


def moved(source: CocoSource) -> tuple[Path, Path]:
    """The training split, as it lies with somebody: a file, and a folder somewhere else."""
    root = source.write()
    file, images = root.parent / "my.json", root.parent / "my_images"
    (root / "annotations" / "instances_train.json").rename(file)
    (root / "train").rename(images)
    return file, images


def test_a_clean_file(source, tmp_path):
    file, images = moved(source)
    result = check(file, "--images", images, "--json", tmp_path / "report.json")
    assert result.exit_code == 0, result.output
    assert "(coco)" in result.output
    assert result.output.rstrip().endswith("clean")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["dataset"], report["layout"], report["findings"]) == (str(file), "coco", [])
    (split,) = report["splits"]
    assert (split["name"], split["num_images"], split["num_boxes"]) == ("my", 3, 6)


def test_uris_and_the_name_of_a_split_in_cocos_own_file(source, tmp_path):
    root = source.write()
    file = f"file://{root}/annotations/instances_val.json"
    options = ("--images", f"file://{root}/val", "--json", tmp_path / "report.json")
    assert check(file, *options).exit_code == 0
    (split,) = json.loads((tmp_path / "report.json").read_text())["splits"]
    assert (split["name"], split["num_images"]) == ("val", 2)


def test_a_dirty_file(source):
    source.add_box([5, 5, 0, 8])
    file, images = moved(source)
    (images / "2.jpg").unlink()
    result = check(file, "--images", images)
    assert result.exit_code == 1
    assert "my: 1.jpg, image 1, annotation 999: XYXY (5, 5, 5, 13) has width 0" in result.output
    assert f"my: 2.jpg, image 2: {images}/2.jpg does not exist" in result.output
    assert "2 errors, 0 warnings" in result.output


def test_images_of_another_folder_are_missing(source):
    """The folder that was named is taken, whatever lies beside the file."""
    root = source.write()
    (root / "elsewhere").mkdir()
    file = root / "annotations" / "instances_train.json"
    result = check(file, "--images", root / "elsewhere")
    assert result.exit_code == 1
    assert "3 errors" in result.output
    assert f"{root}/elsewhere/1.jpg does not exist" in result.output


def test_images_with_something_else_are_refused(source):
    root = source.write()
    yaml = root / "data.yaml"
    yaml.write_text("train: images\nnames: [cat]\n")
    for place in (root, yaml):
        result = check(place, "--images", root / "train")
        assert result.exit_code == 2
        assert f"{place}: is no COCO file" in result.output
        assert f"(--images {root / 'train'}) goes with such a file only" in result.output


@pytest.mark.parametrize(
    ("file", "images", "said"),
    [
        ("my.json", None, "of a COCO file name the folder of its images as well"),
        ("your.json", "my_images", "your.json: no such annotation file"),
        ("my.json", "your_images", "your_images: no such folder of images"),
        ("other.json", "my_images", "not a COCO annotation file"),
    ],
)
def test_what_cannot_be_checked_ends_with_2(source, tmp_path, file, images, said):
    moved(source)
    (tmp_path / "other.json").write_text("[1, 2]")
    result = check(tmp_path / file, *(["--images", tmp_path / images] if images else []))
    assert result.exit_code == 2
    assert said in result.output
    assert "clean" not in result.output
