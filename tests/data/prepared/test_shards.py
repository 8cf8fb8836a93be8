import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from spoilt_sets import edit, ways_to_read
from tiny_sets import CATEGORIES, make_record, write_set

from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import SHARD_SCHEMA, Category, Record
from retina_ray.data.prepared.writer import ShardWriter
from retina_ray.errors import DataError


def record(i: int, num_boxes: int = 2, **changes) -> Record:
    """Image i; its second box is a crowd region."""
    boxes = changes.pop("boxes", [(1, 2, 11, 22.5)] * num_boxes)
    return make_record(i, boxes, **{"iscrowd": np.arange(num_boxes) == 1, **changes})


def write(uri, counts=(2, 0, 3, 1, 2, 0, 4), **options) -> PreparedDataset:
    options = {"rows_per_group": 2, "rows_per_shard": 5, **options}
    return write_set(uri, (record(i, num) for i, num in enumerate(counts)), **options)


def test_info_counts_what_was_written(tmp_path):
    dataset = write(tmp_path / "a", report={"dropped_boxes": 4})
    info = dataset.info
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "dataset.json",
        "shard-00000.parquet",
        "shard-00001.parquet",
    ]
    assert [s.row_group_rows for s in info.shards] == [(2, 2, 1), (2,)]
    assert [s.num_rows for s in info.shards] == [5, 2]
    assert (info.num_images, info.num_boxes, info.num_crowd) == (7, 8, 4)
    assert info.class_counts == {"cat": 7, "dog": 1}
    assert dataset.class_names == ("cat", "dog")
    assert dataset.category_ids == (3, 90)
    assert dataset.num_classes == 2
    assert dataset.report == {"dropped_boxes": 4}
    stored = json.loads((tmp_path / "a" / "dataset.json").read_text())
    assert stored["categories"] == [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}]
    assert stored["format_version"] == 1


def test_index_names_the_place_of_every_image(tmp_path):
    dataset = write(tmp_path / "a")
    index = dataset.index()
    assert index.to_pydict() == {
        "shard": [0, 0, 0, 0, 0, 1, 1],
        "row_group": [0, 0, 1, 1, 2, 0, 0],
        "row": [0, 1, 0, 1, 0, 0, 1],
        "image_id": [100, 101, 102, 103, 104, 105, 106],
        "file_name": [f"{i}.jpg" for i in range(7)],
        "height": [48] * 7,
        "width": [64] * 7,
        "num_boxes": [1, 0, 2, 1, 1, 0, 3],
    }
    places = ("shard", "row_group", "row", "height", "width", "num_boxes")
    assert all(index.schema.field(name).type == pa.int32() for name in places)
    for row in index.to_pylist():
        group = dataset.read_row_group(row["shard"], row["row_group"])
        assert group["image_id"][row["row"]].as_py() == row["image_id"]
        number = row["image_id"] - 100
        assert group["image"][row["row"]].as_py() == f"pixels {number}".encode() * 50


def test_light_columns_are_read_where_the_images_are_destroyed(tmp_path):
    """The bytes of the images are overwritten: neither plan nor truth looks at them."""
    folder = tmp_path / "a"
    dataset = write(folder)
    truth = dataset.ground_truth()
    for path in folder.glob("*.parquet"):
        data = path.read_bytes()
        assert b"pixels" in data
        path.write_bytes(data.replace(b"pixels", b"XXXXXX"))
    again = PreparedDataset.open(folder)
    assert again.index().equals(dataset.index())
    assert again.ground_truth() == truth
    assert "image" not in again.annotations().column_names


def test_read_row_group_has_the_schema_and_is_cached(tmp_path):
    dataset = write(tmp_path / "a")
    first = dataset.read_row_group(0, 1)
    assert first.schema.equals(SHARD_SCHEMA)
    assert dataset.read_row_group(0, 1) is first
    for shard, group in [(2, 0), (0, 3), (-1, 0), (0, -1)]:
        with pytest.raises(DataError, match="no row group"):
            dataset.read_row_group(shard, group)


def test_pickle_leaves_files_and_caches_behind(tmp_path):
    dataset = write(tmp_path / "a", counts=[2] * 40, rows_per_group=8, rows_per_shard=40)
    before = len(pickle.dumps(dataset))
    dataset.read_row_group(0, 0)
    assert len(pickle.dumps(dataset)) == before
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.read_row_group(0, 4).equals(dataset.read_row_group(0, 4))


def test_local_uri_survives_a_change_of_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = write("relative/a")
    assert dataset.uri == str(tmp_path / "relative" / "a")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(pickle.dumps(dataset)).index().num_rows == 7


@pytest.mark.parametrize("scheme", ["file", "fsspec+memory"])
def test_uris_give_the_same_set_as_paths(tmp_path, scheme):
    local = write(tmp_path / "a")
    dataset = write(f"{scheme}://{tmp_path}/b")
    assert dataset.fingerprint == local.fingerprint
    assert dataset.index().equals(local.index())
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.read_row_group(1, 0).equals(local.read_row_group(1, 0))


def test_unknown_scheme_is_a_data_error():
    with pytest.raises(DataError, match="nosuch://bucket"):
        PreparedDataset.open("nosuch://bucket/a")


def test_ground_truth_is_a_coco_dict(tmp_path):
    truth = write(tmp_path / "a", counts=[2, 0]).ground_truth()
    box = {"image_id": 100, "bbox": [1.0, 2.0, 10.0, 20.5], "area": 33.25}
    assert truth == {
        "images": [
            {"id": 100, "file_name": "0.jpg", "height": 48, "width": 64},
            {"id": 101, "file_name": "1.jpg", "height": 48, "width": 64},
        ],
        "annotations": [
            {"id": 1, "category_id": 3, "iscrowd": 0, **box},
            {"id": 2, "category_id": 90, "iscrowd": 1, **box},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}],
    }
    json.dumps(truth)


def test_fingerprint_depends_on_content_and_order_not_on_place(tmp_path):
    def fingerprint(name, records, **options):
        return write_set(tmp_path / name, records, name=name, split=name, **options).fingerprint

    base = [record(0), record(1)]
    same = fingerprint("a", base)
    assert fingerprint("b", base) == same
    moved = np.array([[1, 2, 11, 22.25]] * 2, np.float32)
    others = [
        fingerprint("c", base[::-1]),
        fingerprint("d", [record(0), record(1, image=b"other")]),
        fingerprint("e", [record(0), record(1, boxes=moved)]),
        fingerprint("f", [record(0), record(1, labels=np.array([1, 1]))]),
        fingerprint("g", base, rows_per_group=1),
    ]
    assert len({same, *others}) == 6


def test_an_error_leaves_no_data_set(tmp_path):
    def records():
        yield record(0)
        assert len(list((tmp_path / "a").iterdir())) == 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_set(tmp_path / "a", records(), rows_per_group=1, rows_per_shard=1)
    assert list((tmp_path / "a").iterdir()) == []


def test_a_killed_writer_leaves_no_dataset_json(tmp_path):
    options = {"name": "n", "split": "s", "categories": CATEGORIES}
    writer = ShardWriter(tmp_path / "a", rows_per_group=1, rows_per_shard=1, **options)
    writer.__enter__()  # and no exit
    writer.add(record(0))
    writer.add(record(1))
    assert sorted(os.listdir(tmp_path / "a")) == ["shard-00000.parquet", "shard-00001.parquet"]
    with pytest.raises(DataError, match="interrupted"):
        PreparedDataset.open(tmp_path / "a")
    assert write(tmp_path / "a", counts=[1]).num_images == 1  # a second attempt clears it up


def test_complete_set_is_replaced_only_on_demand(tmp_path):
    write(tmp_path / "a", counts=[2] * 7)
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="complete data set already"):
        write(tmp_path / "a", counts=[1])
    assert PreparedDataset.open(tmp_path / "a").num_images == 7
    assert write(tmp_path / "a", counts=[1], overwrite=True).num_images == 1
    assert sorted(os.listdir(tmp_path / "a")) == [
        "dataset.json",
        "notes.txt",
        "shard-00000.parquet",
    ]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "empty"),
        ([record(0, 0), record(1, 0)], "none of the 2 images"),
        ([record(0, 1, iscrowd=np.array([True]))], "not a crowd region"),
    ],
    ids=["no image", "no box", "a crowd region"],
)
def test_empty_set_is_refused(tmp_path, records, message):
    with pytest.raises(DataError, match=message):
        write_set(tmp_path / "a", records)
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 100}, "id was added before"),
        ({"annotation_id": np.array([50, 1])}, "annotation 1: this id was added before"),
        ({"annotation_id": np.array([50, 50])}, "annotation 50: this id was added before"),
        ({"labels": np.array([0, 2])}, "2 is not in 0..1"),
        ({"labels": np.array([-1, 0])}, "-1 is not in 0..1"),
        ({"boxes": np.array([[0, 0, 5, 5], [3, 3, 3, 9]], np.float32)}, "annotation 12"),
        ({"boxes": np.array([[0, 0, 5, 5], [3, 3, np.nan, 9]], np.float32)}, "annotation 12"),
        ({"boxes": np.array([[0, 0, 65, 5], [3, 3, 4, 9]], np.float32)}, "annotation 11"),
        ({"boxes": np.array([[-1, 0, 6, 5], [3, 3, 4, 9]], np.float32)}, "annotation 11"),
        ({"labels": np.array([0])}, "columns of different lengths"),
    ],
)
def test_bad_records_are_refused_whatever_the_source(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        write_set(tmp_path / "a", [record(0), record(1, **changes)])
    assert list((tmp_path / "a").iterdir()) == []


def test_box_on_the_border_is_fine(tmp_path):
    border = record(0, 1, boxes=np.array([[0, 0, 64, 48]], np.float32))
    assert write_set(tmp_path / "a", [border]).info.num_boxes == 1


def test_categories_must_be_unique(tmp_path):
    twice = [Category(1, "a"), Category(1, "b"), Category(2, "b")]
    with pytest.raises(DataError) as caught:
        ShardWriter(tmp_path, name="n", split="s", categories=twice)
    assert [f.kind for f in caught.value.faults] == [
        "duplicate category id",
        "duplicate category name",
    ]
    with pytest.raises(DataError, match="no categories"):
        ShardWriter(tmp_path, name="n", split="s", categories=[])


def test_open_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        PreparedDataset.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no dataset\.json; prepare"):
        PreparedDataset.open(tmp_path / "empty")
    write(tmp_path / "parent" / "train")
    with pytest.raises(DataError, match=r"these folders do: .*parent/train"):
        PreparedDataset.open(tmp_path / "parent")


def test_both_versions_are_read(tmp_path):
    index = write(tmp_path / "a").index()
    for version in (1, 2):
        again = PreparedDataset.open(edit(tmp_path / "a", format_version=version))
        assert again.index().equals(index)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format_version": 1}', "\xff\xfe"])
def test_broken_description_is_a_data_error(tmp_path, text):
    write(tmp_path / "a")
    (tmp_path / "a" / "dataset.json").write_text(text)
    with pytest.raises(DataError, match="not the description of a prepared data set"):
        PreparedDataset.open(tmp_path / "a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 3}, "format 3.*reads up to 2; update"),
        ({"format_version": "1"}, 'format_version is "1", .*again'),
        ({"format_version": 0}, "format_version is 0, "),
        ({"format_version": 1.0}, r"format_version is 1\.0, "),
        ({"format_version": True}, "format_version is true, "),
        ({"format_version": None}, "format_version is null, "),
        ({"format_version": [2]}, r"format_version is \[2\], "),
        ({"box_type": "tilted"}, "tilted"),
        ({"shards": []}, "no shards"),
        ({"shard": {"num_rows": 6}}, "6 rows, 5 in its row groups.*again"),
        ({"shard": {"row_group_rows": [2, 2, 0, 1]}}, "0 rows or bytes"),
        ({"shard": {"row_group_rows": [2, 4, -1]}}, "-1 rows or bytes"),
        ({"shard": {"row_group_rows": [2, 2, 1.0]}}, "1.0 rows or bytes"),
        ({"shard": {"row_group_rows": "221"}}, "'2' rows or bytes"),
        ({"shard": {"row_group_rows": 5}}, "TypeError"),
        ({"shard": {"num_bytes": True}}, "True rows or bytes"),
        ({"shard": {"checksum": 5}}, "checksum"),
    ],
)
def test_a_description_that_cannot_be_is_refused(tmp_path, changes, message):
    write(tmp_path / "a")
    with pytest.raises(DataError, match=rf"/a.*: .*{message}"):
        PreparedDataset.open(edit(tmp_path / "a", **changes))


def test_missing_and_cut_shards_are_named_together(tmp_path):
    write(tmp_path / "a")
    (tmp_path / "a" / "shard-00000.parquet").unlink()
    cut = tmp_path / "a" / "shard-00001.parquet"
    cut.write_bytes(cut.read_bytes()[:-10])
    with pytest.raises(DataError) as caught:
        PreparedDataset.open(tmp_path / "a")
    assert [f.kind for f in caught.value.faults] == ["missing shard", "damaged shard"]
    assert "shard-00000.parquet" in str(caught.value)
    assert "shard-00001.parquet" in str(caught.value)


@pytest.mark.parametrize("left", [0, 3, 0.2, 0.6, -1000, -30, -5, "footer"])
@pytest.mark.parametrize("reopened", [False, True])
def test_a_shard_that_was_cut_is_named_on_reading(tmp_path, left, reopened):
    """After the set was opened, or with a description that says the new size.

    Or cut and filled up with zeros, so that its size and its footer are right.
    """
    dataset = write(tmp_path / "a")
    path = tmp_path / "a" / "shard-00000.parquet"
    content = path.read_bytes()
    if left == "footer":
        footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        path.write_bytes(content[:4] + bytes(footer - 4) + content[footer:])
    else:
        path.write_bytes(content[: int(left * len(content)) if isinstance(left, float) else left])
    if reopened and path.stat().st_size:
        folder = edit(tmp_path / "a", shard={"num_bytes": path.stat().st_size})
        dataset = PreparedDataset.open(folder)
    for read in ways_to_read(dataset, 0):
        with pytest.raises(DataError, match=r"a/shard-00000\.parquet: .*copy or prepare it again"):
            read()
    assert dataset.read_row_group(1, 0).num_rows == 2


def test_row_groups_that_are_cut_while_they_are_read_do_not_end_the_process(tmp_path):
    code = (
        "import os, sys; sys.path[:0] = sys.argv[2:]; import test_shards as t\n"
        "s = t.write(sys.argv[1], counts=[2] * 400, rows_per_group=100, rows_per_shard=400)\n"
        "s.read_row_group(0, 0); os.truncate(sys.argv[1] + '/shard-00000.parquet', 5000)\n"
        "try: s.read_row_group(0, 3)\n"
        "except t.DataError as error: print(error)\n"
    )
    paths = [Path(__file__).parent, Path(__file__).parents[2]]
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a", *paths],
        check=True,  # a memory map ends in a signal
        capture_output=True,
        text=True,
    )
    assert "shard-00000.parquet: cannot be read" in done.stdout
    assert "copy or prepare it again" in done.stdout


@pytest.mark.parametrize("rows", [[2, 2], [2, 2, 2], [1, 3, 1], [2, 2, 1, 1], [5], [2, 1, 2]])
def test_a_description_of_other_row_groups_is_refused(tmp_path, rows):
    write(tmp_path / "a")
    shard = {"row_group_rows": rows, "num_rows": sum(rows)}
    dataset = PreparedDataset.open(edit(tmp_path / "a", shard=shard, num_images=sum(rows) + 2))
    for read in ways_to_read(dataset, 0):
        with pytest.raises(
            DataError, match=rf"shard-00000\.parquet: .*\(5 and {sum(rows)} in all\)"
        ):
            read()


def test_a_description_of_more_images_than_there_are(tmp_path):
    write(tmp_path / "a")
    dataset = PreparedDataset.open(edit(tmp_path / "a", num_images=8))
    with pytest.raises(DataError, match=r"a/dataset\.json: says 8 images, its shards hold 7;.*ag"):
        dataset.index()


def test_messages_do_not_show_the_options_of_a_uri(tmp_path):
    with pytest.raises(DataError, match="no such folder") as caught:
        PreparedDataset.open(f"fsspec+file://{tmp_path}/a?secret=5")
    assert "secret" not in str(caught.value)
