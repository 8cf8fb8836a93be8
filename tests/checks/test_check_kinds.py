"""Each kind of dirt in a data set of its own, with the message that it gets."""

import cv2
import numpy as np
import pytest
from check_sources import NAN, CocoSource, jpeg, picture, saved

from retina_ray.checks.check import check_dataset
from retina_ray.checks.images import CheckSettings


@pytest.fixture
def source(tmp_path) -> CocoSource:
    return CocoSource(tmp_path)


def found(source: CocoSource, **settings):
    """(severity, kind, message with its place) of everything that is reported."""
    report = check_dataset(source.write(), settings=CheckSettings(**settings))
    return [
        (finding.kind.severity, finding.kind.name, str(case))
        for finding in report.findings
        for case in finding.cases
    ]


def test_a_clean_set_has_no_findings(source):
    assert found(source) == []


# Boxes


@pytest.mark.parametrize(
    ("bbox", "kind", "message"),
    [
        ([5, 5, 0, 8], "box of zero or negative size", "XYXY (5, 5, 5, 13) has width 0, height 8"),
        (
            [5, 5, 4, -8],
            "box of zero or negative size",
            "XYXY (5, 5, 9, -3) has width 4, height -8",
        ),
        ([NAN, 5, 4, 8], "box is not finite", "XYXY (nan, 5, nan, 13) holds NaN or infinity"),
        ([5, 5, 4], "malformed box", "bbox [5, 5, 4] is not four numbers (x, y, width, height)"),
        (
            [50, 5, 20, 8],
            "box out of the image",
            "XYXY (50, 5, 70, 13) sticks out of the image of 64 x 48 pixels by 6 px",
        ),
        (
            [100, 5, 20, 8],
            "box out of the image",
            "XYXY (100, 5, 120, 13) leaves nothing within the image of 64 x 48 pixels",
        ),
    ],
)
def test_a_bad_box(source, bbox, kind, message):
    source.add_box(bbox)
    assert found(source) == [("error", kind, f"train: 1.jpg, image 1, annotation 999: {message}")]


def test_a_box_that_sticks_out_by_rounding_is_fine(source):
    source.add_box([50, 5, 14.9, 8])
    assert found(source) == []


def test_two_boxes_of_a_class_on_one_place(source):
    source.add_box([1.5, 2.25, 10, 20.1])  # IoU 20 / 20.1 = 0.995
    source.add_box([1.5, 2.25, 10, 20], id=1000, category_id=90)  # of another class
    source.add_box([1.5, 2.25, 10, 20], id=1001, iscrowd=1)
    source.add_box([1.5, 2.25, 10, 20.3], id=1002)  # IoU 0.985
    expected = (
        "train: 1.jpg, image 1, annotation 999: XYXY (1.5, 2.25, 11.5, 22.35) lies on annotation "
        "11 of the same class, IoU 0.995"
    )
    assert found(source)[0] == ("warning", "duplicate box", expected)
    # The last one lies on the added one: 20.1 / 20.3 = 0.990.
    assert [case for _, _, case in found(source)[1:]] == [
        "train: 1.jpg, image 1, annotation 1002: XYXY (1.5, 2.25, 11.5, 22.55) lies on annotation "
        "999 of the same class, IoU 0.990"
    ]


def test_a_box_under_a_pixel_at_the_training_size(source):
    source.add_box([5, 5, 2, 20])
    source.add_box([5, 5, 2, 20], id=1000, iscrowd=1)
    assert found(source, train_size_px=25) == []  # 2 * 25 / 48 = 1.04 px
    expected = (
        "train: 1.jpg, image 1, annotation 999: 0.97 x 9.6 px at 31 x 23, 2 x 20 px in the file"
    )
    kind = "box under a pixel at the training size"
    assert found(source, train_size_px=23) == [("warning", kind, expected)]
    assert found(source, train_max_size_px=31) == [("warning", kind, expected)]
    assert found(source, train_size_px=23, min_box_size_px=0.9) == []


# Ids and classes


def test_an_image_id_used_twice(source):
    source.splits["train"]["images"].append(
        {"id": 1, "file_name": "again.jpg", "height": 48, "width": 64}
    )
    message = "train: again.jpg, image 1: image id 1 is used 2 times; ids must be unique"
    assert found(source) == [("error", "duplicate image id", message)]


def test_an_annotation_id_used_twice(source):
    source.add_box([5, 5, 8, 8], id=11)
    message = "train: 1.jpg, image 1, annotation 11: annotation id 11 is used 2 times; ids must be "
    assert found(source) == [("error", "duplicate annotation id", message + "unique")]


def test_orphans(source):
    source.add_box([5, 5, 8, 8], image_id=77)
    source.add_box([5, 5, 8, 8], id=1000, category_id=3)
    file = "instances_train.json"
    assert found(source) == [
        (
            "error",
            "annotation of an unknown image",
            f"train: {file}, image 77, annotation 999: image id 77 is not among the images",
        ),
        (
            "error",
            "annotation of an unknown category",
            "train: 1.jpg, image 1, annotation 1000: category id 3 is not among the categories",
        ),
    ]


def test_classes_that_differ_between_splits(source):
    source.splits["val"]["categories"][1]["name"] = "wolf"
    results = found(source)
    message = "val: label 1 is 'wolf' (id 90) here, 'dog' (id 90) in train"
    assert results[0] == ("error", "classes differ between splits", message)


def test_a_class_that_one_split_has_more(source):
    source.splits["train"]["categories"].append({"id": 91, "name": "cow"})
    results = found(source)
    message = "val: 2 classes here, 3 in train; only one of them has cow"
    assert results[0] == ("error", "classes differ between splits", message)
    assert results[1][1:] == ("class without any box", "'cow' has none in any split")


def test_a_class_missing_from_a_split(source):
    val = source.splits["val"]
    val["annotations"] = [a for a in val["annotations"] if a["category_id"] == 7]
    source.add_box([30, 10, 9, 9], image_id=4, category_id=90, split="val", iscrowd=1)
    message = "val: 'dog' has none here, 3 in train"
    assert found(source) == [("warning", "class missing from a split", message)]


def test_a_class_without_any_box(source):
    for data in source.splits.values():
        data["categories"].append({"id": 91, "name": "cow"})
    message = "'cow' has none in any split"
    assert found(source) == [("warning", "class without any box", message)]


def test_a_split_without_boxes(source):
    source.splits["val"]["annotations"] = []
    assert found(source)[0] == (
        "error",
        "split without boxes",
        "val: none of the 2 images has a usable box",
    )


def test_a_split_without_images(source):
    source.splits["val"] |= {"annotations": [], "images": []}
    assert found(source)[0] == (
        "error",
        "split without images",
        "val: no image could be looked at",
    )


# Files


def test_a_missing_image(source):
    (source.root / "train" / "1.jpg").unlink()
    path = source.root / "train" / "1.jpg"
    message = f"train: 1.jpg, image 1: {path} does not exist"
    assert found(source) == [("error", "missing image", message)]


def test_boxes_of_a_missing_image_are_checked_all_the_same(source):
    (source.root / "train" / "1.jpg").unlink()
    source.add_box([5, 5, 0, 8])
    assert {kind for _, kind, _ in found(source)} == {
        "missing image",
        "box of zero or negative size",
    }


def test_a_file_name_outside_of_the_folder(source):
    source.splits["train"]["images"][0]["file_name"] = "../val/4.jpg"
    ((severity, kind, message),) = found(source)
    assert (severity, kind) == ("error", "file name leaves the folder")
    assert "'../val/4.jpg': a file name must be relative and stay within the folder" in message


@pytest.mark.parametrize("end", ["jpg", "png"])
def test_a_truncated_image(source, end):
    whole = cv2.imencode(f".{end}", picture(1))[1].tobytes()
    source.put("train", "1.jpg", whole[:-40])
    ((severity, kind, message),) = found(source)
    assert (severity, kind) == ("error", "truncated image")
    assert "train: 1.jpg, image 1: the file ends early or is damaged" in message


def test_an_unreadable_image(source):
    source.put("train", "1.jpg", b"<html>404</html>")
    message = (
        "train: 1.jpg, image 1: no header of a JPEG, PNG, BMP, GIF, WebP, TIFF or PNM image; "
        "convert it to one of them, or leave it out"
    )
    assert found(source) == [("error", "unreadable image", message)]


def test_an_image_of_a_format_that_importing_refuses(source, monkeypatch):
    """Its size is not known before it is decoded, so it may be a bomb: it is not decoded."""
    avif = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(99)
    source.put("train", "1.jpg", avif)
    decode = cv2.imdecode

    def watched(data, flags):
        assert data.tobytes() != avif
        return decode(data, flags)

    monkeypatch.setattr(cv2, "imdecode", watched)
    ((severity, kind, message),) = found(source)
    assert (severity, kind) == ("error", "unreadable image")
    assert "train: 1.jpg, image 1: no header of a JPEG, PNG" in message
    assert found(source, decode=False) == [(severity, kind, message)]


def test_an_empty_file(source):
    source.put("train", "1.jpg", b"")
    message = "train: 1.jpg, image 1: the file is empty"
    assert found(source) == [("error", "unreadable image", message)]


def test_another_size_than_annotated(source):
    source.put("train", "1.jpg", jpeg(picture(1, 96, 128)))
    message = (
        "train: 1.jpg, image 1: annotated 64 x 48 pixels, the file has 128 x 96; the annotations "
        "may belong to another copy of the image"
    )
    assert found(source) == [("error", "annotated size differs from the image", message)]


def test_an_exif_orientation(source):
    source.put("train", "1.jpg", saved(picture(1), orientation=3))
    message = "train: 1.jpg, image 1: EXIF orientation 3: stored upside down"
    assert found(source) == [("warning", "EXIF orientation", message)]


def test_an_exif_orientation_that_the_annotations_do_not_know(source):
    source.put("train", "1.jpg", saved(picture(1), orientation=6))
    results = {kind: message for _, kind, message in found(source)}
    # One of the boxes ends at x = 50.
    assert set(results) == {
        "annotated size differs from the image",
        "EXIF orientation",
        "box out of the image",
    }
    message = results["annotated size differs from the image"]
    assert "annotated 64 x 48 pixels, the file has 48 x 64; they are exchanged: perhaps" in message


def test_a_cmyk_jpeg(source):
    source.put("train", "1.jpg", saved(picture(1), mode="CMYK"))
    message = "train: 1.jpg, image 1: has four channels (CMYK or YCCK) where RGB has three"
    assert found(source) == [("warning", "CMYK JPEG", message)]


def test_a_png_of_16_bits(source):
    deep = picture(1).astype(np.uint16) * 257
    source.put("train", "1.jpg", cv2.imencode(".png", deep)[1].tobytes())
    message = "train: 1.jpg, image 1: PNG of 16 bits a sample; 8 are used"
    assert found(source) == [("warning", "more than 8 bits", message)]


def test_a_large_image(source):
    assert found(source, large_pixels=48 * 64) == []
    source.put("train", "1.jpg", jpeg(picture(1, 480, 640)))
    source.splits["train"]["images"][0] |= {"height": 480, "width": 640}
    message = "train: 1.jpg, image 1: 640 x 480 pixels, 1 MB once decoded"
    expected = [("warning", "large image", message)]
    assert found(source, large_pixels=48 * 64, train_size_px=48) == expected


def test_a_decompression_bomb(source):
    data = bytearray(jpeg(picture(1)))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xff\x00\xff\x00"  # 65280 x 65280 pixels
    source.put("train", "1.jpg", bytes(data))
    source.splits["train"]["images"][0] |= {"height": None, "width": None}
    ((severity, kind, message),) = found(source)
    assert (severity, kind) == ("error", "enormous image")
    assert "65280 x 65280 pixels by its header" in message
    assert "it was not decoded; cut it into tiles" in message


# Copies


def test_an_image_in_two_splits(source):
    source.put("val", "4.jpg", (source.root / "train" / "2.jpg").read_bytes())
    message = "val: 4.jpg, image 4: is byte by byte train: 2.jpg"
    assert found(source) == [("error", "image in two splits", message)]


def test_an_image_twice_in_a_split(source):
    source.put("train", "3.jpg", (source.root / "train" / "2.jpg").read_bytes())
    message = "train: 3.jpg, image 3: is byte by byte train: 2.jpg"
    assert found(source) == [("warning", "image twice in a split", message)]


def test_a_near_duplicate_in_another_split(source):
    source.put("val", "4.jpg", jpeg(picture(2), 50))
    ((severity, kind, message),) = found(source)
    assert (severity, kind) == ("warning", "near-duplicate images across splits")
    assert message.startswith("val: 4.jpg, image 4: looks like train: 2.jpg: ")
    assert found(source, decode=False) == []


def test_a_near_duplicate_in_the_same_split(source):
    source.put("train", "3.jpg", jpeg(picture(1), 50))
    ((_, kind, message),) = found(source)
    assert kind == "near-duplicate images"
    assert message.startswith("train: 3.jpg, image 3: looks like train: 1.jpg: ")


def test_of_several_alike_one_of_another_split_is_named(source):
    source.put("train", "3.jpg", jpeg(picture(1), 50))
    source.put("val", "4.jpg", jpeg(picture(1), 49))
    source.put("val", "5.jpg", jpeg(picture(1), 48))
    kinds = [kind for _, kind, _ in found(source)]
    assert kinds == ["near-duplicate images across splits"] * 2 + ["near-duplicate images"]


# Everything at once


def test_all_dirt_is_named_at_once_errors_first(source):
    source.add_box([5, 5, 0, 8])
    source.add_box([5, 5, 8, 8], image_id=77, id=1000)
    source.put("train", "2.jpg", saved(picture(2), mode="CMYK"))
    (source.root / "val" / "5.jpg").unlink()
    results = found(source)
    assert [kind for _, kind, _ in results] == [
        "annotation of an unknown image",
        "box of zero or negative size",
        "missing image",
        "CMYK JPEG",
    ]
    assert [severity for severity, _, _ in results] == ["error"] * 3 + ["warning"]


def test_annotations_that_cannot_be_read_leave_the_other_split_to_be_checked(source):
    source.add_box([5, 5, 0, 8])
    root = source.write()
    (root / "annotations" / "instances_val.json").write_text("{")
    report = check_dataset(root)
    kinds = [finding.kind.name for finding in report.findings]
    assert kinds == ["data set", "box of zero or negative size"]
    assert "cannot be read as JSON" in str(report.findings[0].cases[0])
    assert [split.name for split in report.splits] == ["train"]
