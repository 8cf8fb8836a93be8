import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from retina_ray.cli.data import data_app
from retina_ray.data.importers.coco import import_coco
from retina_ray.data.importers.export import export_coco
from retina_ray.data.importers.voc import import_voc
from retina_ray.data.schema import Category, DataError, Record
from retina_ray.data.shards import PreparedDataset, ShardWriter
from retina_ray.data.synthetic import make_shapes

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent")


@pytest.fixture
def coco(tmp_path):
    """Ids with gaps and out of order, numbers that float32 does not hold, a crowd, no boxes."""
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for i, name in enumerate(["z.jpg", "sub/a.png", "b.jpg"]):
        cv2.imwrite(str(images / name), np.full((30, 40, 3), 60 * i, np.uint8))
    data = {
        "images": [
            {"id": 900, "file_name": "z.jpg", "height": 30, "width": 40},
            {"id": 7, "file_name": "sub/a.png", "height": 30, "width": 40},
            {"id": 2**40, "file_name": "b.jpg", "height": 30, "width": 40},
        ],
        "annotations": [
            annotation(31, 900, 90, [0.1, 0.2, 10.3, 20.7], 123.456789012345, 0),
            annotation(12, 900, 3, [1 / 3, 2 / 3, 4 / 3, 5 / 3], 1e-3, 1),
            annotation(2**41, 2**40, 90, [35.0, 3.0, 5.01, 9.0], 40.0, 0),  # 0.01 px out: rounding
        ],
        "categories": [{"id": 3, "name": "ä"}, {"id": 90, "name": "a b"}],
    }
    (tmp_path / "in.json").write_text(json.dumps(data))
    return tmp_path, data


def annotation(id_, image_id, category_id, bbox, area, iscrowd):
    return {
        "id": id_,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "area": area,
        "iscrowd": iscrowd,
    }


def prepared(json_file, images, out) -> PreparedDataset:
    return import_coco(json_file, images, out, split="train", rows_per_group=2)


def test_round_trip_keeps_everything_exactly(coco):
    root, data = coco
    first = prepared(root / "in.json", root / "images", root / "a")
    num_annotations = export_coco(first, root / "out" / "b.json", images_dir=root / "out" / "img")
    assert num_annotations == 3
    exported = json.loads((root / "out" / "b.json").read_text())
    assert {key: exported[key] for key in data} == data
    for name in ("z.jpg", "sub/a.png", "b.jpg"):
        written = (root / "out" / "img" / name).read_bytes()
        assert written == (root / "images" / name).read_bytes()
    second = prepared(root / "out" / "b.json", root / "out" / "img", root / "c")
    assert second.fingerprint == first.fingerprint
    export_coco(second, root / "d.json")
    again = json.loads((root / "d.json").read_text())
    assert {key: again[key] for key in data} == data


def test_nothing_is_replaced_unless_asked(coco):
    root, _ = coco
    first = prepared(root / "in.json", root / "images", root / "a")
    (root / "out.json").write_text("mine")
    with pytest.raises(DataError, match=r"out\.json: is there already"):
        export_coco(first, root / "out.json")
    with pytest.raises(DataError) as caught:
        export_coco(first, root / "new.json", images_dir=root / "images")
    assert [f.kind for f in caught.value.faults] == ["file is there already"] * 3
    assert (root / "out.json").read_text() == "mine"
    assert not (root / "new.json").exists()
    export_coco(first, root / "out.json", images_dir=root / "images", overwrite=True)
    assert len(json.loads((root / "out.json").read_text())["images"]) == 3


def record(i: int, name: str) -> Record:
    return Record(
        image=f"picture {i}".encode(),
        file_name=name,
        image_id=i,
        height=9,
        width=9,
        boxes=np.array([[1, 1, 2, 2]], np.float32),
        labels=np.array([0]),
        iscrowd=np.array([False]),
        area=np.array([1.0]),
        annotation_id=np.array([i + 1]),
    )


def test_names_that_leave_the_folder_are_not_written(tmp_path):
    with ShardWriter(tmp_path / "a", name="n", split="s", categories=[Category(1, "c")]) as writer:
        for i, name in enumerate(["../x.jpg", "/tmp/x.jpg", "same.jpg", "same.jpg", "fine.jpg"]):
            writer.add(record(i, name))
    with pytest.raises(DataError) as caught:
        export_coco(
            PreparedDataset.open(tmp_path / "a"), tmp_path / "a.json", images_dir=tmp_path / "img"
        )
    assert [(f.kind, f.file) for f in caught.value.faults] == [
        ("file name twice", "same.jpg"),
        ("file name leaves the folder", "../x.jpg"),
        ("file name leaves the folder", "/tmp/x.jpg"),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    assert export_coco(PreparedDataset.open(tmp_path / "a"), tmp_path / "a.json") == 5


def test_rotated_boxes_come_back_as_five_numbers(tmp_path):
    shapes = make_shapes(
        tmp_path / "a", num_images=6, size_px=64, seed=1, split="train", rotated=True
    )
    export_coco(shapes, tmp_path / "b.json", images_dir=tmp_path / "img")
    again = prepared(tmp_path / "b.json", tmp_path / "img", tmp_path / "c")
    assert again.box_type == "rotated"
    truth = shapes.ground_truth(box_type="rotated")
    assert len(truth["annotations"]) > 3
    assert again.ground_truth(box_type="rotated") == truth


def test_export_to_a_uri(coco):
    root, data = coco
    first = prepared(root / "in.json", root / "images", root / "a")
    export_coco(first, f"file://{root}/o/b.json", images_dir=f"file://{root}/o/img")
    assert json.loads((root / "o" / "b.json").read_text())["annotations"] == data["annotations"]
    assert sorted(p.name for p in (root / "o").rglob("*.*")) == [
        "a.png",
        "b.jpg",
        "b.json",
        "z.jpg",
    ]


@needs_shared
def test_coco_tiny_survives_a_round_trip(tmp_path):
    file = SHARED / "coco_tiny" / "annotations" / "instances_val2017.json"
    first = prepared(file, SHARED / "coco_tiny" / "val2017", tmp_path / "a")
    export_coco(first, tmp_path / "b.json", images_dir=tmp_path / "img")
    second = prepared(tmp_path / "b.json", tmp_path / "img", tmp_path / "c")
    assert second.fingerprint == first.fingerprint
    original = {a["id"]: a for a in json.loads(file.read_text())["annotations"]}
    exported = json.loads((tmp_path / "b.json").read_text())["annotations"]
    assert len(exported) == len(original) == 815
    for one in exported:
        assert one == {key: original[one["id"]][key] for key in one}


@needs_shared
def test_the_command(tmp_path):
    bccd = SHARED / "bccd"
    import_voc(bccd, tmp_path / "a", split="test", image_set="test")
    command = ["export", str(tmp_path / "a"), "--out", str(tmp_path / "b.json")]
    command += ["--images", str(tmp_path / "img")]
    done = CliRunner().invoke(data_app, command)
    assert done.exit_code == 0, done.output
    assert "72 images, 945 annotations, 3 categories" in done.output
    assert len(list((tmp_path / "img").iterdir())) == 72
    again = prepared(tmp_path / "b.json", tmp_path / "img", tmp_path / "c")
    assert again.info.class_counts == {"Platelets": 69, "RBC": 805, "WBC": 71}
    done = CliRunner().invoke(data_app, command)
    assert done.exit_code == 2
    assert "is there already" in done.output
