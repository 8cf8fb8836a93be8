import dataclasses
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from spoilt_sets import edit, ways_to_read, with_column
from tiny_sets import make_record, write_set

from retina_ray.data.loading.stored_images import StoredImages
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.record_checks import record_faults
from retina_ray.data.prepared.schema import (
    SHARD_SCHEMA,
    Record,
    nested_rows,
    record_from_row,
    records_to_table,
)
from retina_ray.errors import DataError, Fault


def numbered(i: int, num_boxes: int) -> Record:
    """Image i, with boxes that all differ; the second is a crowd region."""
    corners = np.arange(4 * num_boxes, dtype=np.float32).reshape(-1, 4)
    return make_record(
        i,
        corners + np.float32([0.5, 0, 2, 2]),
        iscrowd=np.arange(num_boxes) == 1,
        area=np.arange(num_boxes) + 0.1,
        annotation_id=np.arange(num_boxes) + 2**40 + 10 * i,
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
    kinds = [f"kind {i}" for i in range(80)]
    text = str(DataError([Fault(kind, "m") for kind in kinds for _ in range(2)]))
    assert all(f"{kind} (2):" in text for kind in kinds)


def test_data_error_survives_pickling():
    error = pickle.loads(pickle.dumps(DataError([Fault("k", "m", "f", 1, 2)])))
    assert error.faults == [Fault("k", "m", "f", 1, 2)]
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("counts", [[], [0], [0, 0], [1], [3, 0, 2], [0, 5, 0]])
def test_records_survive_the_table(counts):
    records = [numbered(i, num) for i, num in enumerate(counts)]
    table = records_to_table(records)
    assert table.schema.equals(SHARD_SCHEMA)
    for original, row in zip(records, table.to_pylist(), strict=True):
        back = record_from_row(row)
        for field in dataclasses.fields(Record):
            if field.name not in ("bbox", "rotated_boxes"):
                value = getattr(back, field.name)
                np.testing.assert_array_equal(value, getattr(original, field.name))
        assert back.boxes.shape == (len(original.labels), 4)


def test_bbox_is_kept_in_float64_or_made_from_the_boxes():
    exact = np.array([[0.1, 0.2, 0.3, 0.7]])
    row = records_to_table([make_record(0, bbox=exact)]).to_pylist()[0]
    np.testing.assert_array_equal(record_from_row(row).xywh, exact)
    np.testing.assert_array_equal(make_record(0).xywh, [[1, 2, 10, 20.5]])


@pytest.mark.parametrize("name", ["boxes", "labels", "iscrowd"])
def test_nested_rows_follow_slices_and_chunks(name):
    records = [numbered(i, num) for i, num in enumerate([2, 0, 3, 1, 0])]
    table = pa.concat_tables([records_to_table(records[:2]), records_to_table(records[2:])])
    rows = nested_rows(table.slice(1, 3)[name])
    for row, original in zip(rows, records[1:4], strict=True):
        np.testing.assert_array_equal(row, getattr(original, name))
    assert nested_rows(table.slice(0, 0)[name]) == []


# Shards of another version, or rewritten by another program


@pytest.fixture
def folder(tmp_path):
    """A set of two shards with two row groups each."""
    records = [numbered(i, 2) for i in range(8)]
    write_set(tmp_path / "a", records, rows_per_group=2, rows_per_shard=4)
    return tmp_path / "a"


def rewrite(folder, change) -> PreparedDataset:
    """Replace the first shard by another table, and its size in the description."""
    path = folder / "shard-00000.parquet"
    pq.write_table(change(pq.read_table(path)), path, row_group_size=2)
    return PreparedDataset.open(edit(folder, shard={"num_bytes": path.stat().st_size}))


OTHER_COLUMNS = [
    *(({name: None}, f"{name} is missing") for name in SHARD_SCHEMA.names),
    ({"image_id": pa.float64()}, "image_id is double, not int64"),
    ({"height": pa.string()}, "height is string, not int32"),
    ({"boxes": pa.list_(pa.list_(pa.float32()))}, "boxes is list<.*, not list<"),
    ({"bbox": pa.list_(pa.list_(pa.float32(), 4))}, "bbox is list<.*, not list<"),
    ({"labels": pa.list_(pa.string())}, "labels is list<.*string>, not list<.*int32>"),
    ({"iscrowd": pa.list_(pa.int8())}, "iscrowd is list<.*int8>, not list<.*bool>"),
    ({"area": None, "height": pa.int64()}, "height is int64, not int32, area is missing"),
]


@pytest.mark.parametrize(("types", "message"), OTHER_COLUMNS, ids=[m for _, m in OTHER_COLUMNS])
def test_a_shard_of_other_columns_is_named_with_all_that_differ(folder, types, message):
    def change(table):
        for name, kind in types.items():
            if kind is None:
                table = table.drop_columns([name])
            else:
                table = with_column(table, name, kind=kind)
        return table

    index = PreparedDataset.open(folder).index()
    dataset = rewrite(folder, change)
    message = rf"a/shard-00000\.parquet: .*version: {message}.*again"
    for read in ways_to_read(dataset, 1, index):
        with pytest.raises(DataError, match=message):
            read()
    assert dataset.read_row_group(1, 1).num_rows == 2  # the other shard is fine


def test_a_column_that_is_there_twice_is_named(folder):
    dataset = rewrite(folder, lambda table: table.append_column("boxes", table["boxes"]))
    with pytest.raises(DataError, match="boxes is there twice"):
        dataset.index()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("height", [40, 40, None, 40]),
        ("labels", [[0, 1], [0, 1], None, [0, 1]]),
        ("labels", [[0, 1], [0, 1], [None, 1], [0, 1]]),
        ("boxes", [[[1, 2, 3, 4]] * 2] * 2 + [[[1, 2, 3, 4], [1, 2, None, 4]]] * 2),
    ],
)
def test_a_shard_without_a_value_is_named(folder, name, values):
    """As numbers they would be NaN, or anything."""
    index = PreparedDataset.open(folder).index()
    dataset = rewrite(folder, lambda table: with_column(table, name, values))
    for read in (
        dataset.annotations,
        lambda: dataset.read_row_group(0, 1),
        lambda: StoredImages(dataset, index).read([2]),
    ):
        with pytest.raises(DataError, match=rf"shard-00000\.parquet: rows without .* in {name}: "):
            read()


def test_other_columns_besides_and_another_order_do_not_matter(folder):
    before = PreparedDataset.open(folder)
    expected = before.annotations(), before.read_images([(0, 1, 1)])

    def change(table):
        notes = pa.array([{"by": None}, None, {"by": "me"}, None])
        return table.select(table.column_names[::-1]).append_column("notes", notes)

    dataset = rewrite(folder, change)
    assert dataset.annotations().equals(expected[0])
    assert dataset.read_images([(0, 1, 1)]) == expected[1]
    assert "notes" in dataset.read_row_group(0, 0).column_names


@pytest.mark.parametrize(("image_id", "annotation_id"), [(2**63, 8), (2**63 - 1, -(2**63) - 1)])
def test_ids_that_no_column_can_hold_are_faults_of_the_record(image_id, annotation_id):
    boxes = np.float32([[1, 1, 2, 2]] * 2)
    ids = np.array([7, annotation_id], object)
    record = make_record(0, boxes, image_id=image_id, annotation_id=ids)
    rest = {"num_classes": 2, "box_type": "aligned", "image_ids": set(), "annotation_ids": set()}
    (fault,) = record_faults(record, **rest)
    assert fault.kind == "id out of range"
    bad = image_id if image_id == 2**63 else annotation_id
    assert f"id {bad} needs more than 64 bits" in fault.message
