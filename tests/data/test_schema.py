import pickle

import numpy as np
import pyarrow as pa
import pytest

from retina_ray.data.schema import (
    SHARD_SCHEMA,
    DataError,
    Fault,
    Record,
    nested_rows,
    record_from_row,
    records_to_table,
)


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
