import dataclasses
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_sets import write_set

from retina_ray.data.loading.stored_images import StoredImages
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import (
    SHARD_SCHEMA,
    Category,
    Record,
    nested_rows,
    record_from_row,
    records_to_table,
)
from retina_ray.errors import DataError, Fault


def record(num_boxes: int, *, image_id: int = 7, bbox=None) -> Record:
    boxes = np.arange(num_boxes * 4, dtype=np.float32).reshape(-1, 4)
    boxes += np.array([0.5, 0, 2, 2], np.float32)
    return Record(
        image=b"\xff\xd8 not really",
        file_name="a/b.jpg",
        image_id=image_id,
        height=40,
        width=60,
        boxes=boxes,
        labels=np.arange(num_boxes) % 3,
        iscrowd=np.arange(num_boxes) == 1,
        area=np.arange(num_boxes) + 0.1,
        annotation_id=np.arange(num_boxes) + 2**40,
        bbox=bbox,
    )


def test_single_fault_reads_as_one_sentence():
    fault = Fault("bad", "is wrong", "x.jpg", 3, 9)
    assert str(DataError([fault])) == "x.jpg, image 3, annotation 9: is wrong"
    assert str(DataError("no such folder")) == "no such folder"


def test_faults_are_grouped_counted_and_capped():
    faults = [Fault("kind A", f"a{i}", f"{i}.jpg") for i in range(1000)]
    faults += [Fault("kind B", f"b{i}") for i in range(3)]
    lines = str(DataError(faults)).splitlines()
    assert lines[0] == "1003 faults in the data"
    assert "kind A (1000):" in lines
    assert "kind B (3):" in lines
    assert "  0.jpg: a0" in lines
    assert {"  b0", "  b1", "  b2"} <= set(lines)
    assert "  and 975 more" in lines
    assert len(lines) < 60


def test_many_kinds_name_each_kind():
    faults = [Fault(f"kind {i}", "m") for i in range(80) for _ in range(2)]
    text = str(DataError(faults))
    assert all(f"kind {i} (2):" in text for i in range(80))


def test_data_error_survives_pickling():
    error = pickle.loads(pickle.dumps(DataError([Fault("k", "m", "f", 1, 2)])))
    assert error.faults == [Fault("k", "m", "f", 1, 2)]
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("counts", [[], [0], [0, 0], [1], [3, 0, 2], [0, 5, 0]])
def test_records_survive_the_table(counts):
    records = [record(m, image_id=i) for i, m in enumerate(counts)]
    table = records_to_table(records)
    assert table.schema.equals(SHARD_SCHEMA)
    assert table.num_rows == len(counts)
    for original, row in zip(records, table.to_pylist(), strict=True):
        back = record_from_row(row)
        for name in ("boxes", "labels", "iscrowd", "area", "annotation_id"):
            np.testing.assert_array_equal(getattr(back, name), getattr(original, name))
        assert back.boxes.shape == (len(original.labels), 4)
        assert (back.image, back.file_name, back.image_id, back.height, back.width) == (
            original.image,
            "a/b.jpg",
            original.image_id,
            40,
            60,
        )


def test_bbox_is_kept_in_float64_or_made_from_the_boxes():
    exact = np.array([[0.1, 0.2, 0.3, 0.7]])
    row = records_to_table([record(1, bbox=exact)]).to_pylist()[0]
    np.testing.assert_array_equal(record_from_row(row).xywh, exact)
    np.testing.assert_array_equal(record(1).xywh, [[0.5, 1.0, 3.5, 4.0]])


@pytest.mark.parametrize("name", ["boxes", "labels", "iscrowd"])
def test_nested_rows_follow_slices_and_chunks(name):
    records = [record(m, image_id=i) for i, m in enumerate([2, 0, 3, 1, 0])]
    table = pa.concat_tables([records_to_table(records[:2]), records_to_table(records[2:])])
    rows = nested_rows(table.slice(1, 3)[name])
    assert [len(row) for row in rows] == [0, 3, 1]
    for row, original in zip(rows, records[1:4], strict=True):
        np.testing.assert_array_equal(row, getattr(original, name))
    assert nested_rows(table.slice(0, 0)[name]) == []


# Shards of another version, or rewritten by another program


@pytest.fixture
def folder(tmp_path):
    """A set of two shards with two row groups each."""
    categories = [Category(i, f"class {i}") for i in (1, 2, 3)]
    ids = [np.arange(2) + 10 * i + 1 for i in range(8)]
    records = [
        dataclasses.replace(record(2, image_id=i), annotation_id=own) for i, own in enumerate(ids)
    ]
    write_set(tmp_path / "a", records, categories=categories, rows_per_group=2, rows_per_shard=4)
    return tmp_path / "a"


def rewrite(folder, change, name="shard-00001.parquet"):
    """Replace a shard by another table, and its size in the description."""
    path, info = folder / name, folder / "dataset.json"
    pq.write_table(change(pq.read_table(path)), path, row_group_size=2)
    content = json.loads(info.read_text())
    content["shards"][1]["num_bytes"] = path.stat().st_size
    info.write_text(json.dumps(content))
    return PreparedDataset.open(folder)


def with_column(name, values, kind=None):
    """A change that replaces a column."""

    def change(table):
        column = table[name].cast(kind) if values is None else pa.array(values, kind)
        return table.set_column(table.schema.get_field_index(name), name, column)

    return change


def ways_to_read(dataset, index):
    """All ways to what a shard holds, from its second row group."""
    return [
        dataset.index,
        dataset.image_classes,
        dataset.annotations,
        dataset.ground_truth,
        lambda: dataset.read_row_group(1, 1),
        lambda: dataset.read_images([(1, 1, 0)]),
        lambda: dataset.read_light([(1, 1)], ["height"]),
        lambda: StoredImages(dataset, index).read([6]),
    ]


@pytest.mark.parametrize("name", SHARD_SCHEMA.names)
def test_a_shard_that_lacks_a_column_is_named(folder, name):
    index = PreparedDataset.open(folder).index()
    dataset = rewrite(folder, lambda table: table.drop_columns([name]))
    for read in ways_to_read(dataset, index):
        with pytest.raises(DataError) as caught:
            read()
        message = str(caught.value)
        assert f"{folder}/shard-00001.parquet: not the columns of this version: " in message
        assert f"version: {name} is missing; " in message
        assert message.endswith("prepare the data set again")
    assert dataset.read_row_group(0, 1).num_rows == 2  # the other shard is fine


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("image_id", pa.float64(), "image_id is double, not int64"),
        ("height", pa.string(), "height is string, not int32"),
        ("boxes", pa.list_(pa.list_(pa.float32())), "boxes is list<.*, not list<"),
        ("bbox", pa.list_(pa.list_(pa.float32(), 4)), "bbox is list<.*, not list<"),
        ("labels", pa.list_(pa.string()), "labels is list<.*string>, not list<.*int32>"),
        ("iscrowd", pa.list_(pa.int8()), "iscrowd is list<.*int8>, not list<.*bool>"),
    ],
)
def test_a_column_of_another_type_is_named(folder, name, kind, message):
    index = PreparedDataset.open(folder).index()
    dataset = rewrite(folder, with_column(name, None, kind))
    for read in ways_to_read(dataset, index):
        with pytest.raises(DataError, match=rf"shard-00001\.parquet: .*{message}.*again"):
            read()


def test_all_columns_that_differ_are_named_at_once(folder):
    def change(table):
        table = table.drop_columns(["area", "width"]).append_column("boxes", table["boxes"])
        return with_column("height", None, pa.int64())(table)

    dataset = rewrite(folder, change)
    with pytest.raises(
        DataError,
        match="version: height is int64, not int32, width is missing, boxes is there twice, area",
    ):
        dataset.index()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("height", [40, 40, 40, None]),
        ("labels", [[0, 1], [0, 1], [0, 1], None]),
        ("labels", [[0, 1], [0, 1], [0, 1], [None, 1]]),
        ("boxes", [[[1, 2, 3, 4]] * 2] * 3 + [[[1, 2, 3, 4], [1, 2, None, 4]]]),
    ],
)
def test_a_shard_without_a_value_is_named(folder, name, values):
    """As numbers they would be NaN, or anything."""
    index = PreparedDataset.open(folder).index()
    dataset = rewrite(folder, with_column(name, values, SHARD_SCHEMA.field(name).type))
    for read in (
        dataset.annotations,
        lambda: dataset.read_row_group(1, 1),
        lambda: StoredImages(dataset, index).read([7]),
    ):
        with pytest.raises(
            DataError, match=rf"shard-00001\.parquet: rows without a value in {name}: .*again"
        ):
            read()


def test_other_columns_besides_and_another_order_do_not_matter(folder):
    before = PreparedDataset.open(folder)
    expected = before.annotations(), before.read_images([(1, 1, 1)])

    def change(table):
        notes = pa.array([{"by": None}, None, {"by": "me"}, None])
        return table.select(table.column_names[::-1]).append_column("notes", notes)

    dataset = rewrite(folder, change)
    assert dataset.annotations().equals(expected[0])
    assert dataset.read_images([(1, 1, 1)]) == expected[1]
    assert "notes" in dataset.read_row_group(1, 0).column_names
