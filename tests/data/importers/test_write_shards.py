"""How shards come to be: in any order, by any process, interrupted or not, the bytes agree."""

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import pytest

from retina_ray.data.importers.coco import import_coco
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.importers.writing import convert
from retina_ray.data.importers.writing.write_shard import write_shard
from retina_ray.data.prepared import writer as shard_writer
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import record_from_row
from retina_ray.data.prepared.shard_file import ContentHash
from retina_ray.data.prepared.writer import ShardWriter
from retina_ray.errors import DataError

NUM_IMAGES = 21


class Source:
    """A COCO data set of 21 images; of every third, one box is no box."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = root / "images"
        self.images.mkdir(parents=True)
        rng = np.random.default_rng(0)
        images, annotations = [], []
        for i in range(NUM_IMAGES):
            name = f"{i:02d}.png"
            cv2.imwrite(str(self.images / name), rng.integers(0, 255, (20, 30 + i, 3), np.uint8))
            images.append({"id": 100 - i, "file_name": name})
            boxes = [[1.25, 2, 5 + i, 6], [0, 0, 9, 0 if i % 3 == 0 else 7]]
            for bbox in boxes:
                id_ = len(annotations) + 1
                annotations.append({"id": id_, "image_id": 100 - i, "category_id": 5, "bbox": bbox})
        self.data = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 5, "name": "thing"}],
        }
        self.write()

    def write(self) -> None:
        (self.root / "a.json").write_text(json.dumps(self.data))

    def run(self, out: str, **options) -> PreparedDataset:
        more = {"on_progress": options.pop("on_progress", None)}
        map_shards = options.pop("map_shards", convert.shard_mapper(0))
        values = {"on_bad_box": "drop", "rows_per_shard": 4, "rows_per_group": 3, **options}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(convert, "shard_mapper", lambda _: map_shards)
            place = self.root / "a.json", self.images, self.root / out
            return import_coco(*place, split="train", options=ImportOptions(**values), **more)


@pytest.fixture
def source(tmp_path) -> Source:
    return Source(tmp_path)


def files(folder: Path) -> dict[str, str]:
    """Name and digest of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class StopError(Exception):
    """An import that something ended; unlike a fault of the data, that is no reason to tidy up."""


def stop_after(num_images: int):
    def on_progress(done: int, total: int) -> None:
        if done == num_images:
            raise StopError

    return on_progress


def backwards(function, tasks):
    for task in reversed(tasks):
        yield from function(task)


def in_threads(function, tasks):
    with ThreadPoolExecutor(3) as pool:
        for events in pool.map(lambda task: list(function(task, num_threads=1)), tasks):
            yield from events


@pytest.mark.parametrize("map_shards", [backwards, in_threads])
def test_who_writes_the_shards_does_not_show(source, map_shards):
    expected = source.run("a")
    calls = []
    got = source.run(
        "b", map_shards=map_shards, on_progress=lambda done, total: calls.append((done, total))
    )
    assert files(source.root / "b") == files(source.root / "a")
    assert got.fingerprint == expected.fingerprint
    assert [s.row_group_rows for s in got.info.shards] == [(3, 1)] * 5 + [(1,)]
    assert calls == [(i, NUM_IMAGES) for i in range(1, NUM_IMAGES + 1)]
    assert got.report["dropped_boxes"] == 7
    assert [text.split(",")[0] for text in got.report["examples"]] == [
        f"box dropped: {i:02d}.png" for i in range(0, NUM_IMAGES, 3)
    ]


def test_fingerprint_does_not_depend_on_the_files(source):
    """Row groups of three come out alike from files of six and of nine."""
    first = source.run("a", rows_per_shard=6)
    second = source.run("b", rows_per_shard=9)
    assert len(first.info.shards) != len(second.info.shards)
    assert first.fingerprint == second.fingerprint
    assert source.run("c", rows_per_shard=9, rows_per_group=9).fingerprint != first.fingerprint


def test_interrupted_import_goes_on_where_it_was(source, caplog):
    source.run("a")
    with pytest.raises(StopError):
        source.run("b", on_progress=stop_after(10))
    out = source.root / "b"
    with pytest.raises(DataError, match="interrupted"):
        PreparedDataset.open(out)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.parquet")}
    assert sorted(before) == ["shard-00000.parquet", "shard-00001.parquet"]
    (out / "shard-00002.parquet.0123.partial").write_bytes(b"what a killed process leaves")
    calls = []
    with caplog.at_level(logging.INFO):
        source.run("b", on_progress=lambda done, total: calls.append(done))
    assert "finished 2 of 6 shards; they are kept" in caplog.text
    assert calls == [8, *range(9, NUM_IMAGES + 1)]
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert files(out) == files(source.root / "a")


@pytest.mark.parametrize(
    "options",
    [
        {"max_size_px": 25},
        {"rows_per_shard": 5},
        {"rows_per_group": 2},
        {"on_bad_box": "clip"},
        {"on_bad_image": "drop"},
        {"max_pixels": 10**6},
    ],
)
def test_other_options_start_anew(source, options):
    with pytest.raises(StopError):
        source.run("b", on_progress=stop_after(10))
    source.run("a", **options)
    calls = []
    source.run("b", on_progress=lambda done, total: calls.append(done), **options)
    assert calls[0] == 1
    assert files(source.root / "b") == files(source.root / "a")


def test_other_annotations_write_their_shards_again(source):
    with pytest.raises(StopError):
        source.run("b", on_progress=stop_after(10))
    source.data["annotations"][8]["bbox"] = [2, 2, 3, 3]  # of image 4, in the second shard
    source.write()
    calls = []
    source.run("b", on_progress=lambda done, total: calls.append(done))
    assert calls[:2] == [4, 5]
    source.run("a")
    assert files(source.root / "b") == files(source.root / "a")


@pytest.mark.parametrize("damage", ["shard is gone", "shard is cut", "note is no JSON"])
def test_what_does_not_hold_is_written_again(source, damage):
    with pytest.raises(StopError):
        source.run("b", on_progress=stop_after(10))
    shard = source.root / "b" / "shard-00001.parquet"
    if damage == "shard is gone":
        shard.unlink()
    elif damage == "shard is cut":
        shard.write_bytes(shard.read_bytes()[:-9])
    else:
        (source.root / "b" / "_import" / f"{shard.name}.json").write_text("{")
    source.run("b")
    source.run("a")
    assert files(source.root / "b") == files(source.root / "a")


def test_shard_of_which_no_image_is_left(source):
    for i in range(4, 8):
        (source.images / f"{i:02d}.png").unlink()
    with pytest.raises(StopError):
        source.run("b", on_bad_image="drop", on_progress=stop_after(14))
    dataset = source.run("b", on_bad_image="drop")
    assert dataset.num_images == NUM_IMAGES - 4
    assert dataset.report["dropped_images_by_kind"] == {"missing image": 4}
    assert [s.file for s in dataset.info.shards][:2] == [
        "shard-00000.parquet",
        "shard-00002.parquet",
    ]
    assert len(dataset.index()) == NUM_IMAGES - 4
    source.run("a", on_bad_image="drop")
    assert files(source.root / "b") == files(source.root / "a")


def test_faults_of_all_shards_are_named_and_nothing_is_left(source):
    with pytest.raises(StopError):
        source.run("b", on_progress=stop_after(10))
    (source.images / "02.png").unlink()
    (source.images / "19.png").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        source.run("b", overwrite=True, on_bad_box="error", map_shards=backwards)
    kinds = [(f.kind, f.file) for f in caught.value.faults]
    zero = "box of zero or negative size"
    assert kinds == [
        (zero, "00.png"),
        ("missing image", "02.png"),
        *((zero, f"{i:02d}.png") for i in (3, 6, 9, 12, 15, 18)),
        ("unreadable image", "19.png"),
    ]
    assert files(source.root / "b") == {}


def test_same_import_again_has_nothing_to_do(source, caplog):
    source.run("a")
    before = files(source.root / "a")
    with caplog.at_level(logging.INFO):
        calls = []
        source.run("a", on_progress=lambda done, total: calls.append(done))
    assert calls == []
    assert "complete already: the same data with the same options" in caplog.text
    for options in ({"name": "other"}, {"max_size_px": 9}, {"on_bad_box": "clip"}):
        with pytest.raises(DataError, match="complete data set already"):
            source.run("a", **options)
    source.data["categories"][0]["name"] = "object"
    source.write()
    with pytest.raises(DataError, match="complete data set already"):
        source.run("a")
    assert files(source.root / "a") == before
    assert source.run("a", overwrite=True).class_names == ("object",)


def test_storage_that_other_machines_do_not_see(source):
    """Tasks on other nodes write to their own disks: the files are not where they should be."""

    def elsewhere(function, tasks):
        for event in backwards(function, tasks):
            for path in (source.root / "a").glob("*.parquet"):
                path.unlink()
            yield event

    with pytest.raises(DataError, match="6 shards that were written are not there"):
        source.run("a", map_shards=elsewhere)
    assert files(source.root / "a") == {}


def test_shard_writer_and_importer_agree(source):
    """The same records one by one: the same shards, the same fingerprint."""
    imported = source.run("a")
    with ShardWriter(
        source.root / "b",
        name="coco",
        split="train",
        categories=imported.info.categories,
        rows_per_group=3,
        rows_per_shard=4,
    ) as writer:
        for shard, info in enumerate(imported.info.shards):
            for group in range(len(info.row_group_rows)):
                for row in imported.read_row_group(shard, group).to_pylist():
                    writer.add(record_from_row(row))
    written = PreparedDataset.open(source.root / "b")
    assert written.fingerprint == imported.fingerprint
    assert written.info.shards == imported.info.shards


KILLED = """
    import sys, time
    from retina_ray.data.importers.coco import import_coco
    from retina_ray.data.importers.options import ImportOptions

    def on_progress(done, total):
        print(done, flush=True)
        time.sleep(0.05)  # so that the end is still to come when the signal arrives

    options = ImportOptions(on_bad_box="drop", rows_per_shard=4, rows_per_group=3,
                            overwrite=len(sys.argv) > 3)
    import_coco(f"{sys.argv[1]}/a.json", f"{sys.argv[1]}/images", sys.argv[2], split="train",
                options=options, on_progress=on_progress)
"""


def kill_import(root: Path, out: Path, *options: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), root, out, *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 10:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL


def test_killed_import_looks_unfinished_and_ends_alike(source):
    """SIGKILL in the middle of the third shard: nothing can tidy up, and nothing must."""
    out = source.root / "b"
    kill_import(source.root, out)
    assert len(list(out.glob("*.partial"))) == 1
    assert not (out / "dataset.json").exists()
    with pytest.raises(DataError, match="interrupted"):
        PreparedDataset.open(out)
    calls = []
    source.run("b", on_progress=lambda done, total: calls.append(done))
    assert calls[0] == 8
    source.run("a")
    assert files(out) == files(source.root / "a")


def test_a_task_does_not_need_the_others(source):
    """What Ray sends to another process: one task, which yields its counts and its result."""
    events = []

    def one_by_one(function, tasks):
        for task in tasks:
            events.append(list(write_shard(task)))
            yield from events[-1]

    source.run("a", map_shards=one_by_one)
    assert [len(part) for part in events] == [5, 5, 5, 5, 5, 2]
    assert [part[-1].index for part in events] == [0, 1, 2, 3, 4, 5]
    assert all(event == 1 for part in events for event in part[:-1])


def assert_whole(folder: Path, fingerprint: str) -> None:
    """The set opens, and all of its content is what its fingerprint says and the one meant."""
    dataset = PreparedDataset.open(folder)
    assert dataset.fingerprint == fingerprint
    content = ContentHash(dataset.info.categories, dataset.box_type)
    for shard, info in enumerate(dataset.info.shards):
        for group in range(len(info.row_group_rows)):
            rows = dataset.read_row_group(shard, group).to_pylist()
            content.add_group([record_from_row(row) for row in rows])
    assert content.hexdigest == fingerprint


def assert_nothing_besides(folder: Path) -> None:
    named = [shard.file for shard in PreparedDataset.open(folder).info.shards]
    assert sorted(files(folder)) == ["dataset.json", *named]


def no_boxes(source: Source) -> None:
    source.data["annotations"] = []


def an_id_twice(source: Source) -> None:  # known before the first image is read
    source.data["annotations"][3]["id"] = 1


def a_bad_box(source: Source) -> None:
    source.data["annotations"][40]["bbox"] = [0, 0, 99, 7]


def a_lost_image(source: Source) -> None:
    (source.images / "19.png").unlink()


def no_categories(source: Source) -> None:
    source.data["categories"] = []


@pytest.mark.parametrize("spoil", [no_boxes, an_id_twice, a_bad_box, a_lost_image, no_categories])
@pytest.mark.parametrize("times", [1, 2])
def test_overwriting_with_faults_leaves_the_set_that_was_there(source, spoil, times):
    for _ in range(times):  # with names of either generation
        fingerprint = source.run("a", overwrite=True).fingerprint
    before = files(source.root / "a")
    spoil(source)
    source.write()
    with pytest.raises(DataError):
        source.run("a", overwrite=True, on_bad_box="drop" if spoil is no_boxes else "error")
    assert files(source.root / "a") == before
    assert_whole(source.root / "a", fingerprint)


def move_a_box(source: Source) -> str:
    """Change the annotations; returns the fingerprint of a set of them."""
    source.data["annotations"][8]["bbox"] = [2, 2, 3, 3]
    source.write()
    return source.run("changed", overwrite=True).fingerprint


def breaks_at_third(function, tasks):
    for task in tasks:
        if task.index == 2:
            raise KeyboardInterrupt
        yield from function(task)


@pytest.mark.parametrize(
    ("stop", "error"),
    [
        ({"on_progress": stop_after(10)}, StopError),
        ({"map_shards": breaks_at_third}, KeyboardInterrupt),
    ],
)
def test_interrupted_overwriting_leaves_the_old_set_and_goes_on(source, caplog, stop, error):
    old = source.run("a").fingerprint
    before = files(source.root / "a")
    new = move_a_box(source)
    with pytest.raises(error):
        source.run("a", overwrite=True, **stop)
    assert before.items() <= files(source.root / "a").items()
    assert_whole(source.root / "a", old)
    calls = []
    with caplog.at_level(logging.INFO):
        source.run("a", overwrite=True, on_progress=lambda done, total: calls.append(done))
    assert "finished 2 of 6 shards; they are kept" in caplog.text
    assert calls == [8, *range(9, NUM_IMAGES + 1)]
    assert_whole(source.root / "a", new)
    assert_nothing_besides(source.root / "a")


def test_killed_overwriting_leaves_the_old_set(source):
    out = source.root / "a"
    old = source.run("a").fingerprint
    new = move_a_box(source)
    kill_import(source.root, out, "--overwrite")
    assert len(list(out.glob("*.partial"))) == 1
    assert_whole(out, old)
    calls = []
    source.run("a", overwrite=True, on_progress=lambda done, total: calls.append(done))
    assert calls[0] == 8
    assert_whole(out, new)
    assert_nothing_besides(out)


def test_overwriting_may_end_at_any_file(source, monkeypatch):
    """Each file gets its name by a rename: before and after every one, some set is whole."""
    fingerprints = [source.run("a").fingerprint, move_a_box(source)]
    names = []
    rename = os.replace

    def stop_before(number: int):
        def replace(old, new):
            names.append(Path(new).name)
            if len(names) == number:
                raise StopError
            rename(old, new)

        return replace

    found = []
    for number in count(1):
        shutil.rmtree(source.root / "b", ignore_errors=True)
        shutil.copytree(source.root / "a", source.root / "b")
        names.clear()
        monkeypatch.setattr(os, "replace", stop_before(number))
        try:
            source.run("b", overwrite=True)
        except StopError:
            found.append(PreparedDataset.open(source.root / "b").fingerprint)
            assert_whole(source.root / "b", fingerprints[0])
        else:
            break
    assert found == 13 * fingerprints[:1]  # six shards, a note of each, and the description
    assert names[-1] == "dataset.json"
    assert_whole(source.root / "b", fingerprints[1])
    assert_nothing_besides(source.root / "b")


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_a_kill_after_the_switch_leaves_is_cleaned_up(source, monkeypatch, overwrite):
    """The new set is whole by then; shards of the old one and the account lie about."""
    source.run("a")
    new = move_a_box(source)

    def killed(*_, **__):
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "clean_up", killed)
        with pytest.raises(StopError):
            source.run("a", overwrite=True)
    assert_whole(source.root / "a", new)
    assert len(list((source.root / "a").glob("shard-*.parquet"))) == 12
    source.run("a", overwrite=overwrite)
    assert_whole(source.root / "a", new)
    assert_nothing_besides(source.root / "a")


def test_faults_after_an_interrupted_overwriting_take_its_leftovers_only(source):
    source.run("a")
    before = files(source.root / "a")
    move_a_box(source)
    with pytest.raises(StopError):
        source.run("a", overwrite=True, on_progress=stop_after(10))
    with pytest.raises(DataError):
        source.run("a", overwrite=True, on_bad_box="error")
    assert files(source.root / "a") == before


def test_shards_do_not_take_names_of_the_set_that_they_replace(source):
    names = []
    for _ in range(3):
        source.run("a", overwrite=True)
        names.append(set(files(source.root / "a")) - {"dataset.json"})
        assert_nothing_besides(source.root / "a")
    assert names[0] == {f"shard-{i:05d}.parquet" for i in range(6)}
    assert names[1] == {f"shard-1-{i:05d}.parquet" for i in range(6)}
    assert names[2] == names[0]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"shards": [{}]}'])
def test_description_that_cannot_be_read_is_replaced(source, text):
    source.run("a")
    (source.root / "a" / "dataset.json").write_text(text)
    with pytest.raises(DataError, match="complete data set already"):
        source.run("a", name="other")
    assert_whole(source.root / "a", source.run("a", overwrite=True).fingerprint)
    assert_nothing_besides(source.root / "a")


def test_set_of_a_newer_version_is_lost_to_no_fault(source):
    source.run("a")
    path = source.root / "a" / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    before = files(source.root / "a")
    with pytest.raises(DataError, match="zero or negative"):
        source.run("a", overwrite=True, on_bad_box="error")
    assert files(source.root / "a") == before
