import json
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from import_sources import contents
from tiny_sets import make_record, write_set
from typer.testing import CliRunner

from retina_ray.cli.data import data_app
from retina_ray.data import export
from retina_ray.data.export import Exported, export_coco
from retina_ray.data.importers.coco import import_coco
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.synthetic.prepare import make_shapes
from retina_ray.errors import DataError


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
    return tmp_path, data, prepared(tmp_path / "in.json", images, tmp_path / "a")


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
    return import_coco(
        json_file, images, out, split="train", options=ImportOptions(rows_per_group=2)
    )


def test_round_trip_keeps_everything_exactly(coco):
    root, data, first = coco
    done = export_coco(first, root / "out" / "b.json", images_dir=root / "out" / "img")
    assert done == Exported(num_annotations=3, num_written=3, num_kept=0)
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
    root, _, first = coco
    (root / "out.json").write_text("mine")
    with pytest.raises(DataError, match=r"out\.json: is there already, with other content; ask to"):
        export_coco(first, root / "out.json")
    images = root / "images"
    (images / "z.jpg").write_bytes((images / "z.jpg").read_bytes()[:-1] + b"X")  # of its size
    (images / "b.jpg").unlink()
    (images / "b.jpg").mkdir()
    before = contents(root)
    with pytest.raises(DataError) as caught:
        export_coco(first, root / "out.json", images_dir=images)
    assert [(f.kind, f.file) for f in caught.value.faults] == [
        ("file is there already", str(place))
        for place in (root / "out.json", images / "z.jpg", images / "b.jpg")
    ]
    assert contents(root) == before
    (images / "b.jpg").rmdir()
    done = export_coco(first, root / "out.json", images_dir=images, overwrite=True)
    assert done == Exported(num_annotations=3, num_written=3, num_kept=0)
    assert len(json.loads((root / "out.json").read_text())["images"]) == 3
    assert (images / "z.jpg").read_bytes() == first.read_images([(0, 0, 0)])[0]


def test_a_file_in_place_of_the_folder_is_named(coco):
    root, _, first = coco
    with pytest.raises(DataError) as caught:
        export_coco(first, root / "b.json", images_dir=root / "in.json")
    assert {f.file for f in caught.value.faults} >= {str(root / "in.json")}
    assert {f.kind for f in caught.value.faults} == {"file is there already"}
    assert not (root / "b.json").exists()


def write(folder: Path, names, **options) -> PreparedDataset:
    """Images of these names, of a text each."""
    records = (make_record(i, image=b"picture %d" % i, file_name=n) for i, n in enumerate(names))
    return write_set(folder, records, **options)


def test_names_that_leave_the_folder_are_not_written(tmp_path):
    names = ["../x.jpg", "/tmp/x.jpg", "same.jpg", "same.jpg", "fine.jpg"]
    dataset = write(tmp_path / "a", names)
    with pytest.raises(DataError) as caught:
        export_coco(dataset, tmp_path / "a.json", images_dir=tmp_path / "img")
    assert [(f.kind, f.file) for f in caught.value.faults] == [
        ("file name twice", "same.jpg"),
        ("file name leaves the folder", "../x.jpg"),
        ("file name leaves the folder", "/tmp/x.jpg"),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    done = export_coco(dataset, tmp_path / "a.json")
    assert done == Exported(num_annotations=5, num_written=0, num_kept=0)


NUM_IMAGES = 90  # more than are written at once


@pytest.fixture
def many(tmp_path) -> PreparedDataset:
    names = (f"{i % 3}/{i}.jpg" for i in range(NUM_IMAGES))
    return write(tmp_path / "a", names, rows_per_group=7, rows_per_shard=40)


def failing_writer(num_good: int, error: BaseException):
    """A writer that ends with an error in the middle of a file, once so many are whole."""
    write_whole, numbers = export.write_whole, iter(range(10**6))

    def write(filesystem, path, content, **options):
        if next(numbers) >= num_good:
            Path(f"{path}.partial").write_bytes(content[: len(content) // 2])
            raise error
        write_whole(filesystem, path, content, **options)

    return write


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
def test_a_killed_export_goes_on(many, tmp_path, monkeypatch, error):
    def run(name, **options):
        return export_coco(
            many, tmp_path / name / "b.json", images_dir=tmp_path / name / "img", **options
        )

    assert run("whole") == Exported(NUM_IMAGES, num_written=NUM_IMAGES, num_kept=0)
    with monkeypatch.context() as patch:
        patch.setattr(export, "write_whole", failing_writer(40, error))
        with pytest.raises(type(error)):
            run("killed")
    images = tmp_path / "killed" / "img"
    left = {path: path.stat().st_mtime_ns for path in images.rglob("*.jpg")}
    assert len(left) == 40
    assert not (tmp_path / "killed" / "b.json").exists()
    steps = []
    done = run("killed", on_progress=lambda *numbers: steps.append(numbers))
    assert done == Exported(NUM_IMAGES, num_written=NUM_IMAGES - 40, num_kept=40)
    assert {path: path.stat().st_mtime_ns for path in left} == left
    assert steps == [(number, NUM_IMAGES) for number in range(1, NUM_IMAGES + 1)]
    found, expected = contents(tmp_path / "killed"), contents(tmp_path / "whole")
    assert {k: v for k, v in found.items() if not k.endswith(".partial")} == expected


def test_an_export_that_is_complete_changes_nothing(many, tmp_path):
    out, images = tmp_path / "out" / "b.json", tmp_path / "out" / "img"
    export_coco(many, out, images_dir=images)
    times = {path: path.stat().st_mtime_ns for path in [out, *images.rglob("*.jpg")]}
    done = export_coco(many, out, images_dir=images)
    assert done == Exported(NUM_IMAGES, num_written=0, num_kept=NUM_IMAGES)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_an_interrupt_leaves_no_json_even_where_there_was_one(many, tmp_path, monkeypatch):
    out, images = tmp_path / "out" / "b.json", tmp_path / "out" / "img"
    export_coco(many, out, images_dir=images)
    monkeypatch.setattr(export, "write_whole", failing_writer(40, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        export_coco(many, out, images_dir=images, overwrite=True)
    assert not out.exists()


def test_images_are_written_several_at_once(many, tmp_path, monkeypatch):
    write_whole, both = export.write_whole, threading.Barrier(2, timeout=20)

    def write(filesystem, path, content, **options):
        if "/img/" in path:
            both.wait()
        write_whole(filesystem, path, content, **options)

    monkeypatch.setattr(export, "write_whole", write)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    done = export_coco(many, tmp_path / "out" / "b.json", images_dir=tmp_path / "out" / "img")
    assert done.num_written == NUM_IMAGES


def test_damaged_images_are_named_at_once_and_nothing_looks_whole(many, tmp_path):
    for shard in (tmp_path / "a").glob("*.parquet"):
        data = shard.read_bytes()
        for number in (b"picture 11", b"picture 64"):
            data = data.replace(number, b"pictXre" + number[7:])
        shard.write_bytes(data)
    out, images = tmp_path / "out" / "b.json", tmp_path / "out" / "img"
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            export_coco(PreparedDataset.open(tmp_path / "a"), out, images_dir=images)
        assert [(f.kind, f.file) for f in caught.value.faults] == [
            ("damaged image", "2/11.jpg"),
            ("damaged image", "1/64.jpg"),
        ]
        assert "shard-00001.parquet are not those that were written" in str(caught.value)
        assert "prepare the data set again" in str(caught.value)
        assert len(contents(images)) == NUM_IMAGES - 2
        assert not out.exists()


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
    root, data, first = coco
    export_coco(first, f"file://{root}/o/b.json", images_dir=f"file://{root}/o/img")
    assert json.loads((root / "o" / "b.json").read_text())["annotations"] == data["annotations"]
    assert contents(root / "o").keys() == {"b.json", "img/z.jpg", "img/sub/a.png", "img/b.jpg"}


def test_the_command(many, tmp_path):
    out, images = tmp_path / "b.json", tmp_path / "img"

    def export_to(code):
        command = ["export", str(tmp_path / "a"), "--out", str(out), "--images", str(images)]
        done = CliRunner().invoke(data_app, command)
        assert done.exit_code == code, done.output
        return done.output

    assert f"{NUM_IMAGES} images, {NUM_IMAGES} annotations, 2 categories" in export_to(0)
    assert len(contents(images)) == NUM_IMAGES
    for image in sorted(images.rglob("*.jpg"))[:30]:
        image.unlink()
    assert f"30 written, {NUM_IMAGES - 30} were there already" in export_to(0)
    out.write_text("mine")
    assert "is there already" in export_to(2)
    assert out.read_text() == "mine"
