"""A prepared set that is not what its description says."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from check_sources import NAN, jpeg, picture, reported, saved
from tiny_sets import make_record, write_set

from retina_ray.checks.check import check_dataset
from retina_ray.data.prepared.byte_ranges import RANGES_KEY
from retina_ray.data.prepared.schema import Record

BOX = [1, 2, 11, 22]


def record(number: int, **more) -> Record:
    boxes = [BOX, [30, 10, 50, 40]]
    fields = {"image": jpeg(picture(number)), "image_id": number, **more}
    fields.setdefault("annotation_id", np.array([10 * number, 10 * number + 1]))
    return make_record(number, fields.pop("boxes", boxes), **fields)


def write(folder: Path, records, **options) -> Path:
    write_set(folder, records, **{"rows_per_group": 2, "rows_per_shard": 4, **options})
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six images in two shards."""
    return write(tmp_path / "set", [record(i) for i in range(1, 7)])


def change_info(folder: Path, **changes) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shard_size_is_right(folder: Path, path: Path) -> None:
    """The description has a shard's size as it is now."""
    infos = json.loads((folder / "dataset.json").read_text())["shards"]
    for info in infos:
        if info["file"] == path.name:
            info["num_bytes"] = path.stat().st_size
    change_info(folder, shards=infos)


def change_shard(folder: Path, change) -> None:
    """Rewrite the first shard with another table."""
    path = first_shard(folder)
    groups = pq.ParquetFile(path).metadata.row_group(0).num_rows
    pq.write_table(change(pq.read_table(path)), path, row_group_size=groups)
    shard_size_is_right(folder, path)


def with_value(column: str, row: int, value):
    """A change that replaces one value of a column."""

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value
        place = table.schema.get_field_index(column)
        field = table.schema.field(column)
        return table.set_column(place, field, pa.array(values, field.type))

    return change


def first_shard(folder: Path) -> Path:
    return min(folder.glob("*.parquet"))


def test_a_clean_set(folder):
    assert reported(folder) == []
    report = check_dataset(folder)
    assert report.layout == "prepared"
    (split,) = report.splits
    assert (split.num_images, split.num_boxes, split.class_counts) == (6, 12, {"cat": 6, "dog": 6})


def test_a_clean_set_of_rotated_boxes(tmp_path):
    turned = np.array([[20, 20, 10, 6, 30], [40, 30, 8, 8, 0]], np.float32)
    folder = write(
        tmp_path / "set", [record(i, rotated_boxes=turned) for i in (1, 2)], box_type="rotated"
    )
    assert reported(folder) == []
    # At 8 x 6 pixels, an eighth, the other one is 1 px wide and high.
    tiny = reported(folder, train_size_px=6, min_box_size_px=0.8)
    assert [(kind, text.split(": ")[-1]) for _, kind, text in tiny] == [
        ("box under a pixel at the training size", "1.2 x 0.75 px at 8 x 6, 10 x 6 px in the file")
    ] * 2


def test_rotated_boxes_on_one_place(tmp_path):
    turned = [[20, 20, 10, 6, 30], [20, 20, 10, 6, 210], [20, 20, 10, 6, -30]]
    boxes = {"boxes": [[10, 10, 30, 30]] * 3, "rotated_boxes": np.array(turned, np.float32)}
    one = record(1, **boxes, labels=np.zeros(3, np.int32), annotation_id=np.array([1, 2, 3]))
    folder = write(tmp_path / "set", [one], box_type="rotated")
    (duplicate,) = [text for _, kind, text in reported(folder) if kind == "duplicate box"]
    assert "annotation 2: XYXY (10, 10, 30, 30) lies on annotation 1" in duplicate


def test_a_missing_shard_leaves_the_other_to_be_checked(folder):
    first_shard(folder).unlink()
    report = check_dataset(folder)
    assert [finding.kind.name for finding in report.findings] == ["missing shard"]
    assert report.splits[0].num_images == 2


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def blank(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda f: halve(first_shard(f)), "damaged shard", "it was cut or changed"),
        (lambda f: blank(first_shard(f)), "unreadable shard", "; 4 images were not checked"),
        (lambda f: change_info(f, format_version=99), "data set", "prepared in format 99"),
        (lambda f: (f / "dataset.json").write_text("{"), "data set", "not the description"),
        (lambda f: (f / "dataset.json").unlink(), "data set", "its preparation was interrupted"),
        (
            lambda f: change_shard(f, lambda table: table.drop_columns(["area"])),
            "shard with other columns",
            "not the columns of this version: area",
        ),
        (
            lambda f: change_shard(f, with_value("file_name", 1, "other.jpg")),
            "fingerprint differs",
            "the content has",
        ),
    ],
)
def test_a_set_that_was_changed(folder, change, kind, message):
    change(folder)
    ((severity, found_kind, text),) = reported(folder)
    assert (severity, found_kind) == ("error", kind)
    assert message in text


def test_columns_besides_and_another_order_are_no_fault(folder):
    """As a training sees it; this one holds dates that Python does not have."""

    def change(table: pa.Table) -> pa.Table:
        dates = pa.array([2**62] * len(table)).cast(pa.timestamp("us"))
        return table.select(table.schema.names[::-1]).append_column("taken", dates)

    change_shard(folder, change)
    assert reported(folder) == []


def test_a_shard_that_says_of_its_pictures_what_is_not_so(folder):
    """Another program wrote it again, and kept the footer's pairs."""
    path = first_shard(folder)
    pairs = pq.read_metadata(path).metadata
    table = pq.read_table(path)
    with pq.ParquetWriter(path, table.schema, compression="NONE") as writer:
        writer.write_table(table, row_group_size=2)
        writer.add_key_value_metadata({RANGES_KEY: pairs[RANGES_KEY.encode()]})
    shard_size_is_right(folder, path)
    ((severity, kind, message),) = reported(folder)
    assert (severity, kind) == ("error", "shard that misplaces its images")
    assert f"{path.name}: image 0 is not what its footer says, or not there" in message


def test_counts_that_differ(folder):
    change_info(folder, num_images=7, num_boxes=11, num_crowd=1, class_counts={"cat": 6, "dog": 5})
    assert [(kind, text) for _, kind, text in reported(folder)] == [
        ("counts differ", f"train: dataset.json: {what} in dataset.json, the shards hold {count}")
        for what, count in (
            ("num_images is 7", 6),
            ("num_boxes is 11", 12),
            ("num_crowd is 1", 0),
            ("class_counts of 'dog' is 5", 6),
        )
    ]


@pytest.mark.parametrize(
    ("column", "value", "kind", "message"),
    [
        ("boxes", [BOX, [30, 10, NAN, 40]], "bad box", "2.jpg, image 2, annotation 21: XYXY (30, "),
        ("boxes", [BOX, [30, 10, 70, 40]], "bad box", "annotation 21: XYXY (30, 10, 70, 40)"),
        ("labels", [0, 5], "label out of range", "annotation 21: label 5 is not in 0..1"),
        ("labels", [0], "record", "columns of different lengths"),
        ("annotation_id", [20, 20], "duplicate annotation id", "annotation 20: this id was added"),
        ("image_id", 1, "duplicate image id", "2.jpg, image 1: this id was added before"),
    ],
)
def test_records_that_break_the_rules(folder, column, value, kind, message):
    change_shard(folder, with_value(column, 1, value))
    results = reported(folder)
    assert "fingerprint differs" in {kind for _, kind, _ in results}
    ((severity, text),) = [(s, text) for s, k, text in results if k == kind]
    assert severity == "error"
    assert message in text


def test_images_are_checked_as_they_are_stored(tmp_path):
    lying = saved(picture(1), orientation=6)
    records = [
        record(1, image=lying),
        record(2, image=jpeg(picture(2))[:-40]),
        record(3, image=jpeg(picture(3, 96, 128))),
    ]
    results = {kind: text for _, kind, text in reported(write(tmp_path / "set", records))}
    other_size = "annotated size differs from the image"
    assert set(results) == {"truncated image", other_size, "EXIF orientation"}
    assert "the set is trained on as stored, not rotated" in results["EXIF orientation"]
    assert "the file has 128 x 96" in results[other_size]


def test_splits_in_one_folder_are_checked_together(tmp_path):
    write(tmp_path / "train", [record(1), record(2)])
    write(tmp_path / "val", [record(2), record(3)], split="val")
    (tmp_path / "other").mkdir()
    copy = "val: 2.jpg, image 2: is byte by byte train: 2.jpg"
    assert reported(tmp_path) == [("error", "image in two splits", copy)]
