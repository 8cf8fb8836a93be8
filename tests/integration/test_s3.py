"""Training with data and run folder on a real S3 server that is cut in the middle."""

import json
import sys
import threading
import time

import pytest
import ray
import ray.cloudpickle
import torch
from builders import logged, run_here
from faulty_runs import ONE, injected
from s3_server import BUCKET, S3Server

from retina_ray.config import DataConfig
from retina_ray.data.export import export_coco
from retina_ray.data.importers.coco import import_coco
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.errors import DataError
from retina_ray.storage.retry import RETRY_VARIABLE
from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.errors import RunError
from retina_ray.train.run import trainer
from retina_ray.train.run.launch import prepare_run, resume_run
from retina_ray.train.run.resources import connect
from retina_ray.train.tracking.metrics_file import read_metrics

pytestmark = pytest.mark.ray
# Workers cannot import a test module: its functions travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

RETRY_S = 20
"""Of all processes of this module: they are started with it."""
GAP_S = 5
NUM_STEPS = 6


@pytest.fixture(scope="module")
def server(shapes_set):
    with S3Server() as server:
        server.put_folder(shapes_set, "shapes")
        yield server


@pytest.fixture(scope="module")
def s3_ray(server, tiny_config):
    """Ray whose processes know the server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RETRY_VARIABLE, str(RETRY_S))
        assert connect(tiny_config()).cpus >= 2
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def config_of(tiny_config):
    """Make the config of a run of 6 steps in 2 epochs over the data at a place."""

    def make(uri):
        config = tiny_config(**{"train.epochs": 2, "train.max_failures": 0})
        data = DataConfig(synthetic=None, train=uri, val=uri)
        return config.model_copy(update={"data": data})

    return make


@pytest.fixture(scope="module")
def uncut(config_of, shapes_set, tmp_path_factory):
    """Losses and weights of the same run from and to the disk, in this process."""
    storage = str(tmp_path_factory.mktemp("uncut"))
    spec = prepare_run(config_of(shapes_set), name="run", storage=storage)
    run_here(spec)
    return dict(logged(spec, "train/loss")), load_checkpoint(spec.run_uri).model


def losses_on(server, run, folder):
    path = folder / "metrics.jsonl"
    with server.filesystem.open_input_file(f"{BUCKET}/results/{run}/metrics.jsonl") as file:
        path.write_bytes(file.read())
    records = read_metrics(path)
    return {r["step"]: r["metrics"]["train/loss"] for r in records if "train/loss" in r["metrics"]}


def kept_step(server, run):
    """The step of the last checkpoint that counts."""
    path = f"{BUCKET}/results/{run}/checkpoints/index.json"
    with server.filesystem.open_input_file(path) as file:
        return json.loads(file.read()).get("last_step")


def stop_before(step, monkeypatch, folder, then):
    """Let the worker stop before a step until `then` was called in this process."""
    arrived, go = folder / "arrived", folder / "go"

    def stopping(loop, do_step):
        if loop.step == step:
            arrived.touch()
            while not go.exists():
                time.sleep(0.05)
        do_step()

    def watch():
        while not arrived.exists():
            time.sleep(0.05)
        then()
        go.touch()

    threading.Thread(target=watch, daemon=True).start()
    return injected(monkeypatch, folder, stopping)


def assert_same_end(server, run, uncut, folder):
    expected, weights = uncut
    found = losses_on(server, run, folder)
    assert sorted(found) == list(range(1, NUM_STEPS + 1))  # none left out
    assert found == pytest.approx(expected)
    checkpoint = load_checkpoint(server.uri(f"results/{run}"))
    assert checkpoint.meta.step == NUM_STEPS
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, checkpoint.model[name], msg=name)


def test_an_export_to_a_bucket_goes_on_and_comes_back(server, shapes_set, tmp_path):
    first = PreparedDataset.open(server.uri("shapes"))
    out, images = server.uri("exported/b.json"), server.uri("exported/img")

    def interrupt(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_coco(first, out, images_dir=images, on_progress=interrupt)
    num_left = len(server.files("exported"))
    assert 4 <= num_left <= 10
    assert "exported/b.json" not in server.files("exported")
    done = export_coco(first, out, images_dir=images)
    assert (done.num_written, done.num_kept) == (10 - num_left, num_left)
    names = {f"exported/img/{name}" for name in first.index()["file_name"].to_pylist()}
    assert set(server.files("exported")) == {*names, "exported/b.json"}
    again = import_coco(out, images, tmp_path / "again", split="train")
    assert again.fingerprint == PreparedDataset.open(shapes_set).fingerprint
    one = sorted(names)[0]
    with server.filesystem.open_output_stream(f"{BUCKET}/{one}") as sink:
        sink.write(b"mine")
    before = server.files("exported")
    with pytest.raises(DataError, match=f"{one}: is there already, with other content"):
        export_coco(first, out, images_dir=images)
    assert server.files("exported") == before


def test_an_import_by_ray_tasks_waits_through_an_outage(server, s3_ray, shapes_set, tmp_path):
    original = PreparedDataset.open(shapes_set)
    export_coco(original, tmp_path / "source" / "a.json", images_dir=tmp_path / "source" / "img")
    server.put_folder(tmp_path / "source", "source")
    end = server.cut_at(r"PUT /bucket/by-tasks/shard", GAP_S, "refused")
    began = time.monotonic()
    dataset = import_coco(
        server.uri("source/a.json"),
        server.uri("source/img"),
        server.uri("by-tasks"),
        split="train",
        options=ImportOptions(rows_per_shard=2, num_workers=2),
    )
    took_s = time.monotonic() - began
    end.join()
    assert took_s > GAP_S, "it was not cut"
    assert dataset.index()["file_name"].equals(original.index()["file_name"])
    shards = [f"by-tasks/{shard.file}" for shard in dataset.info.shards]
    assert len(shards) == 5
    assert set(server.files("by-tasks")) == {"by-tasks/dataset.json", *shards}


def test_a_run_waits_through_both_kinds_of_outage(
    server, s3_ray, config_of, uncut, tmp_path, monkeypatch
):
    spec = prepare_run(config_of(server.uri("shapes")), name="cut", storage=server.uri("results"))
    ends = [server.cut_at(r"GET /bucket/shapes/shard", GAP_S, "refused")]

    def hang():
        ends.append(server.cut_for(GAP_S, "hanging"))

    with stop_before(4, monkeypatch, tmp_path, hang):
        trainer.fit(spec, ONE)
    for end in ends:
        end.join()
    assert len(ends) == 2
    assert_same_end(server, "cut", uncut, tmp_path)


@pytest.mark.long
def test_a_run_gives_up_and_is_carried_on(server, s3_ray, config_of, uncut, tmp_path, monkeypatch):
    """It fails while the checkpoint of step 6 is to be written."""

    def refuse():
        while kept_step(server, "given-up") != 3:  # it is written behind the training
            time.sleep(0.05)
        server.refuse()

    spec = prepare_run(
        config_of(server.uri("shapes")), name="given-up", storage=server.uri("results")
    )
    try:
        with stop_before(4, monkeypatch, tmp_path, refuse), pytest.raises(RunError) as caught:
            trainer.fit(spec, ONE)
    finally:
        server.restore()
    message = str(caught.value)
    assert message.startswith("StorageError: s3://bucket/")
    assert "the storage did not answer for 20 s" in message
    assert "--resume" in message
    assert "Traceback" not in message
    files = server.files("results/given-up/checkpoints")
    assert kept_step(server, "given-up") == 3
    assert {name.split("/")[3] for name in files} == {"index.json", "step-00000003"}
    again = resume_run(server.uri("results/given-up"))
    assert again.start_step() == 3
    trainer.fit(again, ONE)
    assert_same_end(server, "given-up", uncut, tmp_path)
