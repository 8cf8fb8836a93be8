import json

import cv2
import numpy as np
import pytest

from retina_ray.data.importers.coco import import_coco
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.importers.writing import convert
from retina_ray.data.importers.writing.ray_tasks import (
    MIN_IMAGES_FOR_RAY,
    map_in_process,
    ray_map,
    shard_mapper,
)
from retina_ray.data.importers.writing.write_shard import write_shard
from retina_ray.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def ray_instance():
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield ray
    ray.shutdown()


@pytest.fixture
def source(tmp_path):
    """Nine images of 30 x 20 pixels, with a box each; the sixth box is no box."""
    images = []
    annotations = []
    (tmp_path / "images").mkdir()
    for i in range(9):
        pixels = np.full((20, 30, 3), 20 * i, np.uint8)
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), pixels)
        images.append({"id": i, "file_name": f"{i}.png"})
        box = [1, 1, 5, 0 if i == 5 else 6]
        annotations.append({"id": i + 1, "image_id": i, "category_id": 1, "bbox": box})
    data = {"images": images, "annotations": annotations}
    data["categories"] = [{"id": 1, "name": "thing"}]
    (tmp_path / "a.json").write_text(json.dumps(data))

    def run(out, **options):
        place = tmp_path / "a.json", tmp_path / "images", tmp_path / out
        more = {"on_progress": options.pop("on_progress", None)}
        with pytest.MonkeyPatch.context() as patch:
            if "map_shards" in options:
                map_shards = options.pop("map_shards")
                patch.setattr(convert, "shard_mapper", lambda _: map_shards)
            options = ImportOptions(rows_per_shard=2, **options)
            return import_coco(*place, split="train", options=options, **more)

    run.root = tmp_path
    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.ray
@pytest.mark.parametrize("num_workers", [None, 1, 3])
def test_ray_writes_the_same_bytes(ray_instance, source, num_workers):
    calls = []
    source("a", on_bad_box="drop")
    dataset = source(
        "b",
        on_bad_box="drop",
        map_shards=lambda *args: ray_map(*args, num_workers=num_workers),
        on_progress=lambda done, total: calls.append((done, total)),
    )
    assert contents(source.root / "b") == contents(source.root / "a")
    assert dataset.report["dropped_boxes"] == 1
    assert calls[-1] == (9, 9)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


@pytest.mark.ray
def test_faults_come_back_from_the_tasks(ray_instance, source):
    (source.root / "images" / "8.png").unlink()
    with pytest.raises(DataError) as caught:
        source("a", num_workers=2)
    assert [(f.kind, f.file) for f in caught.value.faults] == [
        ("box of zero or negative size", "5.png"),
        ("missing image", "8.png"),
    ]
    assert contents(source.root / "a") == {}


@pytest.mark.ray
def test_what_breaks_in_a_task_breaks_the_import(ray_instance, source):
    """A full disk, say: no fault of the data, so what is finished stays for the next attempt."""

    def fails_at_third(task, *, num_threads):
        if task.index == 2:
            raise OSError("no space left")
        yield from write_shard(task, num_threads=num_threads)

    def full_disk(function, tasks):
        yield from ray_map(fails_at_third, tasks, num_workers=1)

    with pytest.raises(OSError, match="no space left"):
        source("a", on_bad_box="drop", map_shards=full_disk)
    assert sorted(contents_of_shards(source.root / "a")) == [
        "shard-00000.parquet",
        "shard-00001.parquet",
    ]
    source("a", on_bad_box="drop")
    source("b", on_bad_box="drop")
    assert contents(source.root / "b") == contents(source.root / "a")


def contents_of_shards(folder):
    return {path.name for path in folder.glob("shard-*")}


def test_small_imports_do_not_start_ray(source, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "init", None)
    assert shard_mapper(0) is map_in_process
    assert MIN_IMAGES_FOR_RAY > 9
    source("a", on_bad_box="drop")
    with pytest.raises(ConfigError, match="num_workers"):
        ImportOptions(num_workers=-1)


@pytest.mark.parametrize(
    ("limit", "address", "cpus", "expected"),
    [
        (9, "", 8, "ray"),
        (9, "ray://head", 1, "ray"),
        (9, "", 2, "here"),
        (10, "ray://head", 64, "here"),
    ],
)
def test_large_imports_take_ray_where_there_are_cpus(
    source, monkeypatch, limit, address, cpus, expected
):
    chosen = []

    def note(name):
        def mapper(function, tasks, **_):
            chosen.append(name)
            return map_in_process(function, tasks)

        return mapper

    module = "retina_ray.data.importers.writing.ray_tasks"
    monkeypatch.setattr(f"{module}.MIN_IMAGES_FOR_RAY", limit)
    monkeypatch.setattr(f"{module}.ray_map", note("ray"))
    monkeypatch.setattr(f"{module}.map_in_process", note("here"))
    monkeypatch.setattr("os.cpu_count", lambda: cpus)
    monkeypatch.setenv("RAY_ADDRESS", address)
    source("a", on_bad_box="drop")
    assert chosen == [expected]
