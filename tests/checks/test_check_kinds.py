"""Each kind of data issue in a data set of its own: its severity, its kind, and what it names."""

import cv2
import numpy as np
import pytest
from check_sources import NAN, CocoSource, jpeg, picture, reported, saved

from retina_ray.checks.check import check_dataset

EMPTY, OUTSIDE = "box of zero or negative size", "box out of the image"
TINY = "box under a pixel at the training size"
UNREADABLE, OTHER_SIZE = "unreadable image", "annotated size differs from the image"


@pytest.fixture
def source(tmp_path) -> CocoSource:
    return CocoSource(tmp_path)


def found(source: CocoSource, **settings):
    return reported(source.write(), **settings)


def kinds(source: CocoSource, **settings) -> list[str]:
    return [kind for _, kind, _ in found(source, **settings)]


def test_a_clean_set_has_no_findings(source):
    assert found(source) == []
    source.add_box([50, 5, 14.9, 8])  # sticks out by rounding
    assert found(source) == []


# Boxes


@pytest.mark.parametrize(
    ("bbox", "kind", "message"),
    [
        ([5, 5, 0, 8], EMPTY, "XYXY (5, 5, 5, 13) has width 0, height 8"),
        ([5, 5, 4, -8], EMPTY, "XYXY (5, 5, 9, -3) has width 4, height -8"),
        ([NAN, 5, 4, 8], "box is not finite", "XYXY (nan, 5, nan, 13) holds NaN or infinity"),
        ([5, 5, 4], "malformed box", "bbox [5, 5, 4] is not four numbers (x, y, width, height)"),
        ([50, 5, 20, 8], OUTSIDE, "sticks out of the image of 64 x 48 pixels by 6 px"),
        ([100, 5, 20, 8], OUTSIDE, "leaves nothing within the image of 64 x 48 pixels"),
    ],
)
def test_a_bad_box(source, bbox, kind, message):
    source.add_box(bbox)
    ((severity, found_kind, text),) = found(source)
    assert (severity, found_kind) == ("error", kind)
    assert text.startswith("train: 1.jpg, image 1, annotation 999: ")
    assert message in text


def test_two_boxes_of_a_class_on_one_place(source):
    source.add_box([1.5, 2.25, 10, 20.1])  # IoU 20 / 20.1 = 0.995
    source.add_box([1.5, 2.25, 10, 20], id=1000, category_id=90)  # of another class
    source.add_box([1.5, 2.25, 10, 20], id=1001, iscrowd=1)
    source.add_box([1.5, 2.25, 10, 20.3], id=1002)  # IoU 0.985, and 0.990 with the added one
    (_, kind, first), (_, _, second) = found(source)
    assert kind == "duplicate box"
    assert "annotation 999: XYXY (1.5, 2.25, 11.5, 22.35) lies on annotation 11 " in first
    assert first.endswith("IoU 0.995")
    assert "annotation 1002: XYXY (1.5, 2.25, 11.5, 22.55) lies on annotation 999 " in second
    assert second.endswith("IoU 0.990")


def test_a_box_under_a_pixel_at_the_training_size(source):
    source.add_box([5, 5, 2, 20])
    source.add_box([5, 5, 2, 20], id=1000, iscrowd=1)
    assert found(source, train_size_px=25) == []  # 2 * 25 / 48 = 1.04 px
    message = "train: 1.jpg, image 1, annotation 999: 0.97 x 9.6 px at 31 x 23, 2 x 20 px in the"
    for settings in ({"train_size_px": 23}, {"train_max_size_px": 31}):
        ((severity, kind, text),) = found(source, **settings)
        assert (severity, kind) == ("warning", TINY)
        assert text.startswith(message)
    assert found(source, train_size_px=23, min_box_size_px=0.9) == []


# Ids and classes, and files: one change of a clean set each


def images(source: CocoSource, split: str = "train") -> list[dict]:
    return source.splits[split]["images"]


def no_dogs_in_val(source):
    val = source.splits["val"]
    val["annotations"] = [a for a in val["annotations"] if a["category_id"] == 7]
    source.add_box([30, 10, 9, 9], image_id=4, category_id=90, split="val", iscrowd=1)


def cows(source, *splits):
    for split in splits:
        source.splits[split]["categories"].append({"id": 91, "name": "cow"})


def first_image(data: bytes):
    return lambda source: source.put("train", "1.jpg", data)


def copy_of_2(split: str, name: str):
    return lambda s: s.put(split, name, (s.root / "train" / "2.jpg").read_bytes())


DEEP = cv2.imencode(".png", picture(1).astype(np.uint16) * 257)[1].tobytes()
BOX = [5, 5, 8, 8]
TWICE = {"id": 1, "file_name": "x.jpg", "height": 48, "width": 64}
DIFFER = "classes differ between splits"
NEAR, TRUNCATED = "near-duplicate images", "truncated image"
ERRORS = [
    ("duplicate image id", lambda s: images(s).append(TWICE), "train: x.jpg, image 1: "),
    ("duplicate annotation id", lambda s: s.add_box(BOX, id=11), "1.jpg, image 1, annotation 11: "),
    (
        "annotation of an unknown image",
        lambda s: s.add_box(BOX, image_id=77),
        "train: instances_train.json, image 77, annotation 999: ",
    ),
    (
        "annotation of an unknown category",
        lambda s: s.add_box(BOX, category_id=3),
        "train: 1.jpg, image 1, annotation 999: category id 3",
    ),
    (
        DIFFER,
        lambda s: s.splits["val"]["categories"][1].update(name="wolf"),
        "val: label 1 is 'wolf' (id 90) here, 'dog' (id 90) in train",
    ),
    (DIFFER, lambda s: cows(s, "train"), "val: 2 classes here, 3 in train; only one of them has"),
    ("split without boxes", lambda s: s.splits["val"].update(annotations=[]), "val: none of the 2"),
    (
        "split without images",
        lambda s: s.splits["val"].update(annotations=[], images=[]),
        "val: no image could be looked at",
    ),
    ("missing image", lambda s: (s.root / "train" / "1.jpg").unlink(), "train: 1.jpg, image 1: "),
    (
        "file name leaves the folder",
        lambda s: images(s)[0].update(file_name="../val/4.jpg"),
        "'../val/4.jpg': ",
    ),
    (TRUNCATED, first_image(jpeg(picture(1))[:-40]), "train: 1.jpg, image 1: "),
    (TRUNCATED, first_image(saved(picture(1), "PNG")[:-40]), "train: 1.jpg, image 1: "),
    (UNREADABLE, first_image(b"<html>404</html>"), "no header of a JPEG, PNG"),
    (UNREADABLE, first_image(b""), "train: 1.jpg, image 1: the file is empty"),
    (
        OTHER_SIZE,
        first_image(jpeg(picture(1, 96, 128))),
        "annotated 64 x 48 pixels, the file has 128 x 96; the annotations may belong to another",
    ),
    (
        "image in two splits",
        copy_of_2("val", "4.jpg"),
        "val: 4.jpg, image 4: is byte by byte train: 2.jpg",
    ),
]
WARNINGS = [
    ("class missing from a split", no_dogs_in_val, "val: 'dog' has none here, 3 in train"),
    ("class without any box", lambda s: cows(s, "train", "val"), "'cow' has none in any split"),
    (
        "EXIF orientation",
        first_image(saved(picture(1), orientation=3)),
        "train: 1.jpg, image 1: EXIF orientation 3: stored upside down",
    ),
    ("CMYK JPEG", first_image(saved(picture(1), mode="CMYK")), "four channels"),
    ("more than 8 bits", first_image(DEEP), "PNG of 16 bits a sample"),
    ("image twice in a split", copy_of_2("train", "3.jpg"), "is byte by byte train: 2.jpg"),
    (
        f"{NEAR} across splits",
        lambda s: s.put("val", "4.jpg", jpeg(picture(2), 50)),
        "val: 4.jpg, image 4: looks like train: 2.jpg: ",
    ),
    (
        NEAR,
        lambda s: s.put("train", "3.jpg", jpeg(picture(1), 50)),
        "train: 3.jpg, image 3: looks like train: 1.jpg: ",
    ),
]
WITH_OTHERS = {DIFFER, "split without boxes", "split without images"}


@pytest.mark.parametrize(
    ("severity", "kind", "spoil", "message"),
    [*(("error", *issue) for issue in ERRORS), *(("warning", *issue) for issue in WARNINGS)],
)
def test_an_issue_is_named_with_its_place(source, severity, kind, spoil, message):
    spoil(source)
    results = found(source)
    assert results[0][:2] == (severity, kind)
    assert message in results[0][2]
    assert len(results) == 1 or kind in WITH_OTHERS


def test_boxes_of_a_missing_image_are_checked_all_the_same(source):
    (source.root / "train" / "1.jpg").unlink()
    source.add_box([5, 5, 0, 8])
    assert set(kinds(source)) == {"missing image", EMPTY}


def test_an_image_of_a_format_that_importing_refuses(source, monkeypatch):
    """Its size is not known before it is decoded, so it may be a bomb: it is not decoded."""
    avif = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(99)
    source.put("train", "1.jpg", avif)
    decode = cv2.imdecode

    def watched(data, flags):
        assert data.tobytes() != avif
        return decode(data, flags)

    monkeypatch.setattr(cv2, "imdecode", watched)
    assert kinds(source) == kinds(source, decode=False) == [UNREADABLE]


def test_an_exif_orientation_that_the_annotations_do_not_know(source):
    source.put("train", "1.jpg", saved(picture(1), orientation=6))
    results = {kind: message for _, kind, message in found(source)}
    # One of the boxes ends at x = 50.
    assert set(results) == {OTHER_SIZE, "EXIF orientation", OUTSIDE}
    message = results[OTHER_SIZE]
    assert "annotated 64 x 48 pixels, the file has 48 x 64; they are exchanged: perhaps" in message


def test_a_large_image(source):
    assert found(source, large_pixels=48 * 64) == []
    source.put("train", "1.jpg", jpeg(picture(1, 480, 640)))
    images(source)[0] |= {"height": 480, "width": 640}
    ((severity, kind, message),) = found(source, large_pixels=48 * 64, train_size_px=48)
    assert (severity, kind) == ("warning", "large image")
    assert message.endswith("640 x 480 pixels, 1 MB once decoded")


def test_a_decompression_bomb(source):
    data = bytearray(jpeg(picture(1)))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xff\x00\xff\x00"  # 65280 x 65280 pixels
    source.put("train", "1.jpg", bytes(data))
    images(source)[0] |= {"height": None, "width": None}
    ((severity, kind, message),) = found(source)
    assert (severity, kind) == ("error", "enormous image")
    assert "65280 x 65280 pixels by its header" in message
    assert "it was not decoded; cut it into tiles" in message


def test_of_several_alike_one_of_another_split_is_named(source):
    source.put("train", "3.jpg", jpeg(picture(1), 50))
    source.put("val", "4.jpg", jpeg(picture(1), 49))
    source.put("val", "5.jpg", jpeg(picture(1), 48))
    across = "near-duplicate images across splits"
    assert kinds(source) == [across, across, "near-duplicate images"]
    assert kinds(source, decode=False) == []


# Everything at once


def test_all_issues_are_named_at_once_errors_first(source):
    source.add_box([5, 5, 0, 8])
    source.add_box([5, 5, 8, 8], image_id=77, id=1000)
    source.put("train", "2.jpg", saved(picture(2), mode="CMYK"))
    (source.root / "val" / "5.jpg").unlink()
    assert [result[:2] for result in found(source)] == [
        ("error", "annotation of an unknown image"),
        ("error", EMPTY),
        ("error", "missing image"),
        ("warning", "CMYK JPEG"),
    ]


def test_annotations_that_cannot_be_read_leave_the_other_split_to_be_checked(source):
    source.add_box([5, 5, 0, 8])
    root = source.write()
    (root / "annotations" / "instances_val.json").write_text("{")
    report = check_dataset(root)
    assert [finding.kind.name for finding in report.findings] == ["data set", EMPTY]
    assert "cannot be read as JSON" in str(report.findings[0].cases[0])
    assert [split.name for split in report.splits] == ["train"]
