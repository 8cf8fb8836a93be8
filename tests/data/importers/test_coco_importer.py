"""What COCO's format alone has; the rest is in `test_import_contract`."""

import json
import sys

import cv2
import numpy as np
import pytest
from builders import COCO_TINY
from import_sources import CAT, DOG, NAN, Box, CocoSource, records

from retina_ray.data.importers.coco import import_coco
from retina_ray.errors import DataError

FILE = "instances_train.json"


@pytest.fixture
def source(tmp_path) -> CocoSource:
    """`content` is there to be spoilt."""
    source = CocoSource(tmp_path)
    source.content = source.data()
    return source


def test_the_ground_truth_is_what_the_file_says(source):
    content = source.content
    content["categories"].reverse()  # labels go by id, not by place
    for image in content["images"]:
        image["id"] *= 10
    for annotation in content["annotations"]:
        annotation["id"] += 500
        annotation["image_id"] *= 10
        annotation |= {"area": 50.5, "iscrowd": 0}
    content["annotations"][1] |= {"area": 999.5, "iscrowd": 1}
    dataset = source.run()
    assert dataset.class_names == (CAT, DOG)
    assert dataset.category_ids == (7, 90)
    assert dataset.info.class_counts == {CAT: 1, DOG: 1}
    assert (dataset.info.num_images, dataset.info.num_boxes, dataset.info.num_crowd) == (3, 2, 1)
    first = records(dataset)[0]
    assert first.iscrowd.tolist() == [False, True]
    assert first.area.tolist() == [50.5, 999.5]
    truth = dataset.ground_truth()
    assert truth["annotations"] == content["annotations"]
    assert truth["images"] == content["images"]


def test_grey_images_and_subfolders(source):
    (source.root / "train" / "sub").mkdir()
    cv2.imwrite(str(source.root / "train" / "sub" / "g.png"), np.full((48, 64), 9, np.uint8))
    source.content["images"][0]["file_name"] = "sub/g.png"
    assert source.run().num_images == 3


@pytest.mark.parametrize("value", [NAN, 10**400, -(10**400), 1e400])
def test_areas_that_are_no_number_are_taken_from_the_boxes(source, value):
    source.content["annotations"][0]["area"] = 50.5
    source.content["annotations"][2]["area"] = value  # and the second has none
    dataset = source.run()
    assert [record.area.tolist() for record in records(dataset)] == [[50.5, 64 * 48], [], [42]]
    assert dataset.report["areas_taken_from_boxes"] == 2


def test_structure_is_an_error_under_every_policy(source):
    box = Box((1, 1, 3, 3))
    changes = [{"id": 1}, {"image_id": 99}, {"category_id": 8}, {"image_id": 98, "category_id": 8}]
    source.add("c", *(Box(box.xyxy, more=more) for more in changes))
    source.content = source.data()
    source.content["images"].append(source.content["images"][1])
    categories = [(7, "bus"), (8.5, "x"), (9, CAT)]
    source.content["categories"] += [{"id": id_, "name": name} for id_, name in categories]
    faults = source.faults(on_bad_box="clip", on_bad_image="drop")
    assert set(faults) == {
        ("duplicate annotation id", "c.jpg", 3, 1),
        ("annotation of an unknown image", FILE, 99, 5),
        ("annotation of an unknown category", "c.jpg", 3, 6),
        ("annotation of an unknown image", FILE, 98, 7),
        ("annotation of an unknown category", FILE, 98, 7),
        ("duplicate image id", "b.jpg", 2, None),
        ("duplicate category id", FILE, None, None),
        ("duplicate category name", FILE, None, None),
        ("malformed category", FILE, None, None),
    }


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"id": "ten"}, "malformed image entry"),
        ({"id": True}, "malformed image entry"),
        ({"file_name": None}, "malformed image entry"),
        ({"width": "6"}, "malformed image entry"),
        ({"width": 10**400}, "malformed image entry"),
        ({"width": 10**12}, "annotated size differs from the image"),
        ({"file_name": "../val/d.jpg"}, "file name leaves the folder"),
        ({"file_name": "/etc/hostname"}, "file name leaves the folder"),
    ],
)
def test_faults_of_image_entries(source, change, kind):
    source.content["images"][1].update(change)
    assert source.kinds() == [kind]


def test_empty_sets_are_refused(source):
    source.content |= {"images": [], "annotations": []}
    with pytest.raises(DataError, match="empty"):
        source.run()
    source.content["categories"] = []
    assert source.kinds() == ["no categories"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, f"{FILE}: cannot be read as JSON: brackets within"),
        ('{"images": ' * 100_000, f"{FILE}: cannot be read as JSON: brackets within"),
        ("[]", "not a COCO annotation file"),
        ('{"images": [], "annotations": {}}', "expected an object with the lists"),
        ('{"images": [3], "annotations": [], "categories": []}', r"images\[0\] is 3"),
    ],
)
def test_what_is_not_coco(source, text, message):
    source.content = text
    with pytest.raises(DataError, match=message):
        source.run()


def test_places_that_are_not_there(source):
    loop = source.root / "loop"
    loop.symlink_to(loop)
    json_file, images = source.write() / "annotations" / FILE, source.root / "train"
    for places, message in (
        ((source.root / "no.json", images), "no such annotation file"),
        ((json_file, source.root / "no"), "no such folder of images"),
        ((loop, images), r"loop: cannot be read as JSON \(.*symbolic links"),
        ((json_file, loop), "loop: no such folder of images"),
    ):
        with pytest.raises(DataError, match=message):
            import_coco(*places, source.root / "o", split="s")


@pytest.mark.skipif(not COCO_TINY.is_dir(), reason=f"{COCO_TINY} is absent")
def test_coco_tiny_is_complete(tmp_path):
    path = COCO_TINY / "annotations" / "instances_val2017.json"
    dataset = import_coco(path, COCO_TINY / "val2017", tmp_path / "out", split="val")
    assert dataset.num_classes == 80
    assert (dataset.category_ids[0], dataset.category_ids[-1]) == (1, 90)
    assert dataset.class_names[-1] == "toothbrush"
    info = dataset.info
    assert (info.num_images, info.num_boxes, info.num_crowd) == (80, 804, 11)
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    original = json.loads(path.read_text())["annotations"]
    expected = [{key: one[key] for key in keys} for one in original]
    annotations = dataset.ground_truth()["annotations"]
    assert sorted(annotations, key=lambda a: a["id"]) == sorted(expected, key=lambda a: a["id"])


TOO_LARGE = 2**63


@pytest.mark.parametrize(
    ("place", "key", "kinds"),
    [
        ("images", "id", {"malformed image entry", "annotation of an unknown image"}),
        ("annotations", "id", {"malformed annotation"}),
        ("annotations", "image_id", {"annotation of an unknown image"}),
        ("annotations", "category_id", {"annotation of an unknown category"}),
        ("categories", "id", {"malformed category", "annotation of an unknown category"}),
    ],
)
@pytest.mark.parametrize("value", [TOO_LARGE, -TOO_LARGE - 1, 10**400])
def test_ids_of_more_than_64_bits_are_named(source, place, key, kinds, value):
    source.content[place][0][key] = value
    faults = source.caught(on_bad_box="drop", on_bad_image="drop")
    assert {fault.kind for fault in faults} == kinds
    assert any(str(value)[:40] in str(fault) for fault in faults)
    assert any("at most 64 bits" in str(fault) for fault in faults) == (key == "id")


def test_ids_of_64_bits_are_fine(source):
    largest, smallest = TOO_LARGE - 1, -TOO_LARGE
    content = source.content
    content["images"][0]["id"] = content["categories"][0]["id"] = largest
    for annotation in content["annotations"][:2]:
        annotation["image_id"] = largest
    content["annotations"][0] |= {"id": smallest, "category_id": largest}
    first = records(source.run())[0]
    assert first.image_id == largest
    assert first.annotation_id.tolist() == [smallest, 2]


def test_box_of_infinite_area_is_clipped_to_a_finite_one(source):
    source.content["annotations"][2]["bbox"] = [60, 40, 1e200, 1e200]
    third = records(source.run(on_bad_box="clip"))[2]
    assert third.boxes.tolist() == [[60, 40, 64, 48]]
    assert third.area.tolist() == [32.0]


def test_values_nested_as_deeply_as_can_just_be_read(source):
    """Wherever the limit lies: what can be read can be shown, or is left out of the message."""
    seen = set()
    limit = sys.getrecursionlimit()  # torch's compiler raises it
    source.content["annotations"][0]["bbox"] = source.content["categories"][0]["id"] = "DEEP"
    text = json.dumps(source.content)
    for depth in (100, *range(limit - 300, limit, 3)):
        source.content = text.replace('"DEEP"', "[" * depth + "]" * depth)
        seen.update(source.kinds())
    assert {"malformed category", "data set"} <= seen


def test_halves_of_characters_are_no_names(source):
    """JSON may hold them; neither a file system nor a terminal does."""
    source.content["images"][1]["file_name"] = "\ud800.jpg"
    source.content["categories"].append({"id": 91, "name": "\udfff"})
    source.content["annotations"][0]["id"] = "\ud800"
    assert source.kinds(on_bad_image="drop") == [
        "malformed category",
        "malformed image entry",
        "malformed annotation",
    ]
