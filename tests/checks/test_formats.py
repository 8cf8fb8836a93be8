"""What kind of data set lies there, and are its splits found."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from builders import SHARED_DATA as DATA
from check_sources import CocoSource, jpeg, picture, reported
from import_sources import CAT, Box, VocSource

from retina_ray.checks.check import check_dataset
from retina_ray.checks.formats import find_layout
from retina_ray.checks.images import CheckSettings
from retina_ray.errors import DataError


def voc(root: Path, **lists: Sequence[str]) -> Path:
    """A VOC data set whose splits list these images; by itself `abc` and `d`."""
    source = VocSource(root)
    source.put("d", Box((1, 3, 12, 22), CAT), Box((20, 3, 40, 22)), split="val")
    source.write()
    for name, stems in lists.items():
        (source.root / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(stems))
    return source.root


def yolo(root: Path) -> Path:
    for split, ids in {"train": (1, 2), "val": (3,)}.items():
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for i in ids:
            (root / "images" / split / f"{i}.jpg").write_bytes(jpeg(picture(i)))
            (root / "labels" / split / f"{i}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    return root


def kinds(root: Path) -> dict[str, int]:
    return {finding.kind.name: finding.count for finding in check_dataset(root).findings}


def test_coco(tmp_path):
    root = CocoSource(tmp_path).write()
    report = check_dataset(root)
    assert report.layout == "coco"
    assert [(s.name, s.num_images, s.num_boxes) for s in report.splits] == [
        ("train", 3, 6),
        ("val", 2, 4),
    ]


@pytest.mark.parametrize("place", ["images/{}", "{}/images"])
def test_coco_with_images_elsewhere(tmp_path, place):
    root = CocoSource(tmp_path).write()
    for split in ("train", "val"):
        (root / split).rename(root / "moved")
        target = root / place.format(split)
        target.parent.mkdir(parents=True, exist_ok=True)
        (root / "moved").rename(target)
    assert kinds(root) == {}


def test_coco_with_file_names_from_the_root_on(tmp_path):
    source = CocoSource(tmp_path)
    for split, data in source.splits.items():
        for image in data["images"]:
            image["file_name"] = f"{split}/{image['file_name']}"
    assert kinds(source.write()) == {}


def test_coco_with_a_json_in_each_folder_of_images(tmp_path):
    root = CocoSource(tmp_path).write()
    for split in ("train", "val"):
        json_file = root / "annotations" / f"instances_{split}.json"
        json_file.rename(root / split / "_annotations.coco.json")
    report = check_dataset(root)
    assert (report.layout, report.findings) == ("coco", [])
    assert [split.name for split in report.splits] == ["train", "val"]


def test_voc(tmp_path):
    report = check_dataset(voc(tmp_path))
    assert report.layout == "voc"
    assert [(s.name, s.num_images) for s in report.splits] == [("train", 3), ("val", 1)]
    assert report.findings == []


def test_voc_lists_that_join_others_or_name_one_class_are_no_splits(tmp_path):
    root = voc(tmp_path, trainval="abcd", cat_train=("a  1", "b -1"))
    layout = find_layout(root)
    assert list(layout.splits) == ["train", "val"]
    assert layout.passed_over == ("trainval is made of train, val",)


def test_voc_lists_that_overlap_are_splits_that_share_images(tmp_path):
    root = voc(tmp_path, train="ab", val="bc", test="cd")
    assert kinds(root)["image in two splits"] == 2


def test_voc_annotations_that_are_missing_malformed_or_a_bomb(tmp_path):
    root = voc(tmp_path)
    (root / "Annotations" / "a.xml").unlink()
    (root / "Annotations" / "b.xml").write_text("<annotation>")
    bomb = '<!DOCTYPE x [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'
    (root / "Annotations" / "c.xml").write_text(bomb)
    found = kinds(root)
    for kind in ("missing annotation", "malformed annotation", "annotation with a DOCTYPE"):
        assert found[kind] == 1


def test_yolo(tmp_path):
    root = yolo(tmp_path)
    for place in (root, root / "data.yaml"):
        report = check_dataset(place)
        assert (report.layout, report.findings) == ("yolo", [])
        assert [(s.name, s.num_images, s.num_boxes) for s in report.splits] == [
            ("train", 2, 2),
            ("val", 1, 1),
        ]


def test_a_yolo_box_beyond_the_image(tmp_path):
    root = yolo(tmp_path)
    (root / "labels" / "val" / "3.txt").write_text("0 1.5 0.5 0.25 0.25\n")
    findings = reported(root)
    assert [kind for _, kind, _ in findings] == [
        "split without boxes",
        "box out of the image",
        "class missing from a split",
    ]
    place = "val: images/val/3.jpg, image 1, annotation 1: labels/val/3.txt, line 1 (0 1.5 0.5 "
    assert findings[1][2].startswith(place)


def test_a_yolo_set_that_was_moved(tmp_path):
    root = yolo(tmp_path / "set")
    text = (root / "data.yaml").read_text()
    (root / "data.yaml").write_text(f"path: /nowhere/at/all\n{text}")
    with pytest.raises(DataError, match="does not exist"):
        check_dataset(root)
    assert check_dataset(root, root=str(root)).findings == []


def test_python_in_a_yaml_is_refused(tmp_path):
    root = yolo(tmp_path)
    (root / "data.yaml").write_text("names: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(DataError, match="no Python objects"):
        check_dataset(root)


def test_a_uri(tmp_path):
    root = CocoSource(tmp_path).write()
    (root / "train" / "1.jpg").unlink()
    assert kinds(f"file://{root}") == {"missing image": 1}  # type: ignore


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(DataError, match="no such folder; name a prepared set"):
        find_layout(tmp_path / "absent")
    with pytest.raises(DataError, match="not a data set that is known: expected dataset"):
        find_layout(tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_train.json").write_text(json.dumps({}))
    with pytest.raises(DataError, match="not a data set that is known"):
        find_layout(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        find_layout(tmp_path / "data.yaml")


# Real data


@pytest.mark.skipif(not (DATA / "bccd").is_dir(), reason=f"{DATA / 'bccd'} is absent")
def test_bccd_has_two_empty_boxes_and_two_pictures_in_two_splits():
    report = check_dataset(DATA / "bccd")
    assert [s.num_images for s in report.splits] == [205, 87, 72]
    cases = {f.kind.name: [c.fault.file for c in f.cases] for f in report.findings}
    assert cases == {
        "box of zero or negative size": ["BloodImage_00343.jpg", "BloodImage_00338.jpg"],
        "near-duplicate images across splits": ["BloodImage_00037.jpg", "BloodImage_00391.jpg"],
    }


@pytest.mark.skipif(not (DATA / "coco_tiny").is_dir(), reason=f"{DATA / 'coco_tiny'} is absent")
def test_coco_tiny_is_clean_and_copies_are_found(tmp_path):
    report = check_dataset(DATA / "coco_tiny")
    assert report.findings == []
    assert [(s.num_images, s.num_boxes, s.num_crowd) for s in report.splits] == [
        (80, 699, 6),
        (80, 804, 11),
    ]
    shutil.copytree(DATA / "coco_tiny", tmp_path / "copy")
    source, target = (
        sorted((tmp_path / "copy" / s).glob("*.jpg"))[0] for s in ("train2017", "val2017")
    )
    target.write_bytes(source.read_bytes())
    copied = check_dataset(tmp_path / "copy", settings=CheckSettings(decode=False))
    counts = {finding.kind.name: finding.count for finding in copied.findings}
    assert counts["image in two splits"] == 1
