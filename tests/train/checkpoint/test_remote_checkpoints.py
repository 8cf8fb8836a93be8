"""Checkpoints and records of a run on a real S3 server."""

import json
import time

import pytest
from builders import save_checkpoint
from s3_server import BUCKET, S3Server
from test_checkpoints import assert_value, make

from retina_ray.errors import StorageError
from retina_ray.storage.retry import RETRY_VARIABLE
from retina_ray.train.checkpoint.async_saver import CheckpointSaver
from retina_ray.train.checkpoint.format import DamagedCheckpointError
from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.checkpoint.store import CheckpointStore
from retina_ray.train.tracking.run_folder import RunFolder


@pytest.fixture(scope="module")
def server():
    with S3Server() as server:
        yield server


def folders(server, run):
    files = server.files(f"{run}/checkpoints")
    return {name.removeprefix(f"{run}/checkpoints/").split("/")[0] for name in files}


def test_a_bucket_keeps_what_a_disk_keeps(server):
    store = CheckpointStore(server.uri("kept/checkpoints"))
    for step, metric in ((1, 0.3), (2, 0.1), (3, None)):
        save_checkpoint(store, make(step, step), metric=metric)
    assert folders(server, "kept") == {"index.json", "step-00000001", "step-00000003"}
    assert_value(load_checkpoint(server.uri("kept")), 3)
    assert_value(load_checkpoint(store.best), 1)
    assert load_checkpoint(store.best, weights_only=True).state is None
    path = f"{BUCKET}/kept/checkpoints/step-00000003/state.pt"
    with server.filesystem.open_output_stream(path) as file:
        file.write(b"cut short")
    with pytest.raises(DamagedCheckpointError, match=r"state\.pt has 9 bytes, but .*00001 of the"):
        load_checkpoint(store.uri)
    assert_value(store.go_back_to_whole(), 1)
    server.filesystem.delete_dir(f"{BUCKET}/kept/checkpoints/step-00000001")
    with pytest.raises(DamagedCheckpointError, match=r"meta\.json is missing"):
        load_checkpoint(store.last)


def test_training_goes_on_while_the_bucket_is_away(server, monkeypatch):
    store = CheckpointStore(server.uri("away/checkpoints"))
    saver = CheckpointSaver(store)
    saver.save(make(1, 1.0), metric=0.1)
    saver.wait()
    with server.outage("refused"):
        start = time.monotonic()
        uri = saver.save(make(2, 2.0), metric=0.2)
        assert time.monotonic() - start < 0.5, "the step did not wait for it"
        time.sleep(0.5)
    saver.wait()
    assert uri == store.last
    assert_value(load_checkpoint(uri), 2.0)
    monkeypatch.setenv(RETRY_VARIABLE, "0.5")
    with server.outage("refused"):
        saver.save(make(3, 3.0), metric=0.3)
        with pytest.raises(StorageError, match="did not answer"):
            saver.close(has_failed=False)
    assert_value(load_checkpoint(store.last), 2.0)


def test_a_checkpoint_that_was_sent_in_part_does_not_count(server, monkeypatch):
    """Cut off after its first file; the process is gone, and another one goes on."""
    monkeypatch.setenv(RETRY_VARIABLE, "0")
    store = CheckpointStore(server.uri("part/checkpoints"))
    save_checkpoint(store, make(1, 1.0), metric=0.1)
    end = server.cut_at(r"PUT /bucket/part/checkpoints/step-00000002/", 1, "refused")
    with pytest.raises((StorageError, OSError)):
        save_checkpoint(store, make(2, 2.0), metric=0.2)
    end.join()
    assert_value(load_checkpoint(store.last), 1.0)
    CheckpointSaver(store)
    assert folders(server, "part") == {"index.json", "step-00000001"}


def test_the_records_are_continued_on_another_machine(server):
    uri = server.uri("records")
    first = RunFolder(uri)
    (first.path / "metrics.jsonl").write_text('{"step": 1}\n')
    (first.path / "pictures").mkdir()
    (first.path / "pictures" / "1.png").write_bytes(b"picture")
    first.note_bad_images({"a.jpg": "not an image"})
    first.upload(all_files=False)
    assert set(server.files("records")) == {"records/metrics.jsonl", "records/bad_images.json"}
    second = RunFolder(uri)  # the first one was killed
    assert (second.path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    second.note_bad_images({"b.jpg": "cut short"})
    second.close()
    assert not second.path.exists()
    third = RunFolder(uri)
    known = json.loads((third.path / "bad_images.json").read_text())
    assert known == {"a.jpg": "not an image", "b.jpg": "cut short"}
    third.close()
    first.close()
    assert "records/pictures/1.png" in server.files("records")


def test_the_records_of_a_local_run_lie_in_its_folder(tmp_path):
    folder = RunFolder(str(tmp_path))
    folder.note_bad_images({"a.jpg": "not an image"})
    folder.write("predictions.parquet", b"content")
    folder.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad_images.json", "predictions.parquet"]
    assert (tmp_path / "predictions.parquet").read_bytes() == b"content"
