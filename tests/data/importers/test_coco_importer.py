import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from builders import COCO_TINY
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retina_ray.data.importers.coco import import_coco
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import record_from_row
from retina_ray.errors import DataError

needs_coco_tiny = pytest.mark.skipif(not COCO_TINY.is_dir(), reason=f"{COCO_TINY} is absent")

NAN = float("nan")


class Source:
    """A COCO data set of three images of 64 x 48 pixels, to be spoilt by the tests."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images_dir = root / "images"
        self.images_dir.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for i in (1, 2, 3):
            pixels = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            cv2.imwrite(str(self.images_dir / f"{i}.jpg"), pixels)
        self.data = {
            "images": [
                {"id": 10 * i, "file_name": f"{i}.jpg", "height": 48, "width": 64}
                for i in (1, 2, 3)
            ],
            "categories": [{"id": 90, "name": "toothbrush"}, {"id": 7, "name": "train"}],
            "annotations": [
                self.annotation(501, 10, 90, [1.5, 2.25, 10, 20]),
                self.annotation(502, 10, 7, [0, 0, 64, 48], iscrowd=1, area=999.5),
                self.annotation(503, 30, 7, [5, 6, 7, 8], area=11.25),
            ],
        }

    @staticmethod
    def annotation(id_, image_id, category_id, bbox, **more):
        entry = {"id": id_, "image_id": image_id, "category_id": category_id, "bbox": bbox}
        return {**entry, "area": 50.0, "iscrowd": 0, **more}

    def add(self, *annotation, **more) -> None:
        self.data["annotations"].append(self.annotation(*annotation, **more))

    def run(self, **options) -> PreparedDataset:
        path = self.root / "instances.json"
        path.write_text(json.dumps(self.data))
        on_progress = options.pop("on_progress", None)
        options = {"options": ImportOptions(**options), "on_progress": on_progress}
        return import_coco(path, self.images_dir, self.root / "out", split="train", **options)

    def faults(self, **options):
        with pytest.raises(DataError) as caught:
            self.run(**options)
        assert not list((self.root / "out").glob("*")), "nothing may be left behind"
        return [(f.kind, f.file, f.image_id, f.annotation_id) for f in caught.value.faults]


@pytest.fixture
def source(tmp_path) -> Source:
    return Source(tmp_path)


def records(dataset: PreparedDataset):
    return [
        record_from_row(row)
        for shard, info in enumerate(dataset.info.shards)
        for group in range(len(info.row_group_rows))
        for row in dataset.read_row_group(shard, group).to_pylist()
    ]


def test_import_by_hand(source):
    dataset = source.run()
    assert dataset.class_names == ("train", "toothbrush")  # by id, not by place
    assert dataset.category_ids == (7, 90)
    assert dataset.info.class_counts == {"train": 1, "toothbrush": 1}
    assert (dataset.info.num_images, dataset.info.num_boxes, dataset.info.num_crowd) == (3, 2, 1)
    first, second, third = records(dataset)
    np.testing.assert_array_equal(first.boxes, [[1.5, 2.25, 11.5, 22.25], [0, 0, 64, 48]])
    assert first.labels.tolist() == [1, 0]
    assert first.iscrowd.tolist() == [False, True]
    assert first.area.tolist() == [50.0, 999.5]
    assert first.annotation_id.tolist() == [501, 502]
    assert first.image == (source.images_dir / "1.jpg").read_bytes()
    assert (first.image_id, first.file_name, first.height, first.width) == (10, "1.jpg", 48, 64)
    assert second.boxes.shape == (0, 4)  # an image without boxes stays
    np.testing.assert_array_equal(third.boxes, [[5, 6, 12, 14]])
    truth = dataset.ground_truth()
    assert truth["annotations"] == sorted(source.data["annotations"], key=lambda a: a["id"])
    assert truth["images"] == source.data["images"]
    assert dataset.report["dropped_boxes"] == 0


def test_gray_images_and_subfolders(source):
    (source.images_dir / "sub").mkdir()
    gray = np.full((48, 64), 9, np.uint8)
    cv2.imwrite(str(source.images_dir / "sub" / "g.png"), gray)
    source.data["images"][0]["file_name"] = "sub/g.png"
    assert source.run().info.num_images == 3


def test_missing_area_and_iscrowd_are_filled_in(source):
    for key in ("area", "iscrowd"):
        del source.data["annotations"][0][key]
    source.data["annotations"][2]["area"] = NAN
    dataset = source.run()
    first, _, third = records(dataset)
    assert first.area.tolist() == [200.0, 999.5]
    assert not first.iscrowd[0]
    assert third.area.tolist() == [56.0]
    assert dataset.report["areas_taken_from_boxes"] == 2


def test_structure_is_an_error_under_every_policy(source):
    source.add(501, 30, 7, [1, 1, 2, 2])
    source.add(700, 99, 7, [1, 1, 2, 2])
    source.add(701, 30, 8, [1, 1, 2, 2])
    source.add(702, 98, 8, [1, 1, 2, 2])
    source.data["images"].append({**source.data["images"][1]})
    source.data["categories"] += [{"id": 7, "name": "bus"}, {"id": 8.5, "name": "x"}]
    faults = source.faults(on_bad_box="clip", on_bad_image="drop")
    assert set(faults) == {
        ("duplicate annotation id", "3.jpg", 30, 501),
        ("annotation of an unknown image", "instances.json", 99, 700),
        ("annotation of an unknown category", "3.jpg", 30, 701),
        ("annotation of an unknown image", "instances.json", 98, 702),
        ("annotation of an unknown category", "instances.json", 98, 702),
        ("duplicate image id", "2.jpg", 20, None),
        ("duplicate category id", "instances.json", None, None),
        ("malformed category", "instances.json", None, None),
    }


def test_duplicate_category_names(source):
    source.data["categories"].append({"id": 8, "name": "train"})
    assert ("duplicate category name", "instances.json", None, None) in source.faults()


@pytest.mark.parametrize(
    "change", [{"id": "ten"}, {"id": True}, {"file_name": None}, {"width": "6"}]
)
def test_malformed_image_entries(source, change):
    source.data["images"][1].update(change)
    assert [kind for kind, *_ in source.faults()] == ["malformed image entry"]


@pytest.mark.parametrize("name", ["../1.jpg", "/etc/hostname", "link.jpg"])
def test_files_outside_of_the_folder_are_never_read(source, name):
    (source.root / "1.jpg").write_bytes((source.images_dir / "1.jpg").read_bytes())
    (source.images_dir / "link.jpg").symlink_to(source.root / "1.jpg")
    source.data["images"][0]["file_name"] = name
    for policy in ("error", "drop"):
        faults = source.faults(on_bad_image=policy)
        assert faults == [("file name leaves the folder", name, 10, None)]


def test_empty_sets_are_refused(source):
    source.data["annotations"] = []
    with pytest.raises(DataError, match="none of the 3 images has a box"):
        source.run()
    source.data["images"] = []
    with pytest.raises(DataError, match="empty"):
        source.run()
    source.data["categories"] = []
    assert source.faults() == [("no categories", "instances.json", None, None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "not a COCO annotation file"),
        ('{"images": [], "annotations": {}}', "expected an object with the lists"),
        ('{"images": [3], "annotations": [], "categories": []}', r"images\[0\] is 3"),
    ],
)
def test_what_is_not_coco(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        import_coco(path, tmp_path, tmp_path / "out", split="train")


def test_missing_places(source):
    with pytest.raises(DataError, match="no such annotation file"):
        import_coco(source.root / "no.json", source.images_dir, source.root / "o", split="s")
    with pytest.raises(DataError, match="no such folder of images"):
        import_coco(source.root / "no.json", source.root / "no", source.root / "o", split="s")


def noisy_detections(truth: dict, seed: int) -> list[dict]:
    """True boxes moved and scored at random, some left out, some of a wrong class, some twice."""
    rng = np.random.default_rng(seed)
    categories = [c["id"] for c in truth["categories"]]
    detections = []
    for annotation in truth["annotations"]:
        for _ in range(rng.integers(0, 3)):
            x, y, w, h = annotation["bbox"]
            dx, dy, dw, dh = rng.normal(0, 0.08, 4)
            category = annotation["category_id"]
            if rng.random() < 0.1:
                category = int(rng.choice(categories))
            box = [x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh)]
            detections.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": category,
                    "bbox": [float(v) for v in box],
                    "score": float(rng.random()),
                }
            )
    return detections


def coco_eval(truth: dict, detections: list[dict]) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@needs_coco_tiny
@pytest.mark.parametrize("split", ["train", "val"])
def test_evaluation_gives_the_figures_of_the_original(tmp_path, split):
    path = COCO_TINY / "annotations" / f"instances_{split}2017.json"
    dataset = import_coco(path, COCO_TINY / f"{split}2017", tmp_path / "out", split=split)
    original = json.loads(path.read_text())
    detections = noisy_detections(original, seed=1)
    expected = coco_eval(original, detections)
    got = coco_eval(dataset.ground_truth(), detections)
    assert 0.1 < expected.stats[0] < 0.9
    np.testing.assert_array_equal(got.stats, expected.stats)
    np.testing.assert_array_equal(got.eval["precision"], expected.eval["precision"])
    np.testing.assert_array_equal(got.eval["scores"], expected.eval["scores"])


@needs_coco_tiny
def test_coco_tiny_is_complete(tmp_path):
    path = COCO_TINY / "annotations" / "instances_val2017.json"
    dataset = import_coco(path, COCO_TINY / "val2017", tmp_path / "out", split="val")
    assert dataset.num_classes == 80
    assert (dataset.category_ids[0], dataset.category_ids[-1]) == (1, 90)
    assert dataset.class_names[-1] == "toothbrush"
    info = dataset.info
    assert (info.num_images, info.num_boxes, info.num_crowd) == (80, 804, 11)
    original = {a["id"]: a for a in json.loads(path.read_text())["annotations"]}
    for annotation in dataset.ground_truth()["annotations"]:
        for key in ("image_id", "category_id", "bbox", "area", "iscrowd"):
            assert annotation[key] == original[annotation["id"]][key]


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
    source.data[place][0][key] = value
    with pytest.raises(DataError) as caught:
        source.run(on_bad_box="drop", on_bad_image="drop")
    assert {fault.kind for fault in caught.value.faults} == kinds
    assert str(value)[:40] in str(caught.value)
    if key == "id":
        assert "needs an integer id of at most 64 bits" in str(caught.value)


def test_ids_of_64_bits_are_fine(source):
    largest, smallest = TOO_LARGE - 1, -TOO_LARGE
    source.data["images"][0]["id"] = largest
    for annotation in source.data["annotations"][:2]:
        annotation["image_id"] = largest
    source.data["annotations"][0]["id"] = smallest
    source.data["categories"][0]["id"] = largest
    source.data["annotations"][0]["category_id"] = largest
    first = records(source.run())[0]
    assert first.image_id == largest
    assert first.annotation_id.tolist() == [smallest, 502]


@pytest.mark.parametrize("value", [10**400, -(10**400), 1e400])
def test_numbers_that_no_float_can_hold(source, value):
    source.data["annotations"][2]["area"] = value
    assert records(source.run())[2].area.tolist() == [56.0]  # as one that is missing
    shutil.rmtree(source.root / "out")
    source.data["annotations"][0]["bbox"][0] = value
    assert source.faults() == [("box is not finite", "1.jpg", 10, 501)]
    assert source.run(on_bad_box="drop").report["dropped_boxes"] == 1


def test_sizes_that_no_image_has(source):
    source.data["images"][1]["width"] = 10**400
    assert [kind for kind, *_ in source.faults()] == ["malformed image entry"]
    source.data["images"][1]["width"] = 10**12
    assert [kind for kind, *_ in source.faults()] == ["annotated size differs from the image"]


def test_box_of_infinite_area_is_clipped_to_a_finite_one(source):
    source.add(601, 20, 7, [60, 40, 1e200, 1e200], area=None)
    second = records(source.run(on_bad_box="clip"))[1]
    assert second.boxes.tolist() == [[60, 40, 64, 48]]
    assert second.area.tolist() == [32.0]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": ' * 100_000])
def test_deeply_nested_json(source, text):
    path = source.root / "deep.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"deep\.json: cannot be read as JSON: brackets within"):
        import_coco(path, source.images_dir, source.root / "o", split="s")


def test_values_nested_as_deeply_as_can_just_be_read(source):
    """Wherever the limit lies: what can be read can be shown, or is left out of the message."""
    path = source.root / "instances.json"
    seen = set()
    limit = sys.getrecursionlimit()  # torch's compiler raises it
    for depth in (100, *range(limit - 300, limit, 3)):
        source.data["annotations"][0]["bbox"] = "BBOX"
        source.data["categories"][0]["id"] = "ID"
        text = json.dumps(source.data)
        for name in ("BBOX", "ID"):
            text = text.replace(f'"{name}"', "[" * depth + "]" * depth)
        path.write_text(text)
        with pytest.raises(DataError) as caught:
            import_coco(path, source.images_dir, source.root / "o", split="s")
        seen.update(fault.kind for fault in caught.value.faults)
        str(caught.value)
    assert {"malformed category", "data set"} <= seen


def test_halves_of_characters_are_no_names(source):
    """JSON may hold them; neither a file system nor a terminal does."""
    source.data["images"][1]["file_name"] = "\ud800.jpg"
    source.data["categories"].append({"id": 91, "name": "\udfff"})
    source.data["annotations"][0]["id"] = "\ud800"
    with pytest.raises(DataError) as caught:
        source.run(on_bad_image="drop")
    kinds = ["malformed category", "malformed image entry", "malformed annotation"]
    assert [fault.kind for fault in caught.value.faults] == kinds
    assert str(caught.value).encode()


def test_links_that_lead_back_to_themselves(source):
    for name in ("2.jpg", "loop"):
        (source.images_dir / name).unlink(missing_ok=True)
        (source.images_dir / name).symlink_to(source.images_dir / name)
    assert source.faults() == [("unreadable image", "2.jpg", 20, None)]
    with pytest.raises(DataError, match="a link that leads back to itself; put the file in its"):
        source.run()
    assert source.run(on_bad_image="drop").num_images == 2
    loop = source.images_dir / "loop"
    with pytest.raises(DataError, match=r"loop: cannot be read as JSON \(.*symbolic links"):
        import_coco(loop, source.images_dir, source.root / "o", split="s")
    with pytest.raises(DataError, match="loop: no such folder of images"):
        import_coco(source.root / "instances.json", loop, source.root / "o", split="s")
