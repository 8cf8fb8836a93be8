"""A real S3 server whose line is cut: imports, checks and readers wait, or say what is up."""

import json
import pickle
import time

import cv2
import numpy as np
import pyarrow.fs as pafs
import pytest
from s3_server import KEYS, S3Server
from typer.testing import CliRunner

from retina_ray.cli.app import app
from retina_ray.data.importers.coco import import_coco
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.errors import DataError, StorageError
from retina_ray.storage.retry import RETRY_VARIABLE
from retina_ray.storage.uris import open_filesystem

KINDS = ("refused", "hanging")
NUM_IMAGES = 60  # more than are read ahead
GAP_S = 0.6


@pytest.fixture(scope="module")
def server():
    with S3Server() as server:
        yield server


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A COCO set of small images, a box in each."""
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    images, boxes = [], []
    for i in range(1, NUM_IMAGES + 1):
        name = f"{i:03d}.jpg"
        cv2.imwrite(str(folder / name), rng.integers(0, 255, (24, 32, 3), np.uint8))
        images.append({"id": i, "file_name": name, "height": 24, "width": 32})
        box = {"id": i, "image_id": i, "category_id": 7, "iscrowd": 0, "area": 20.0}
        boxes.append({**box, "bbox": [2.0, 3.0, 4.0, 5.0]})
    content = {
        "images": images,
        "annotations": boxes,
        "categories": [{"id": 7, "name": "thing"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def remote_source(server, source):
    server.put_folder(source, "source")
    return server.uri("source")


def convert(source, out, on_progress=None):
    return import_coco(
        f"{source}/instances.json",
        source,
        out,
        split="train",
        options=ImportOptions(rows_per_group=5, rows_per_shard=10),
        on_progress=on_progress,
    )


@pytest.fixture(scope="module")
def local(source, tmp_path_factory):
    return convert(source, str(tmp_path_factory.mktemp("local") / "train"))


def test_files_come_and_go(server):
    filesystem, path = open_filesystem(server.uri("files/"))
    filesystem = pickle.loads(pickle.dumps(filesystem))
    content = np.random.default_rng(1).bytes(100_000)
    with filesystem.open_output_stream(f"{path}/a") as sink:
        sink.write(content[:60_000])
        assert server.files("files") == {}  # half of it is never seen
        sink.write(content[60_000:])
    assert server.files("files") == {"files/a": 100_000}
    with filesystem.open_input_file(f"{path}/a") as file:
        assert file.size() == 100_000
        assert file.read_at(10, 99_995) == content[-5:]
        file.seek(0)
        assert file.read() == content
    with filesystem.open_input_stream(f"{path}/a") as stream:
        assert stream.read(7) + stream.readall() == content
    (info,) = filesystem.get_file_info(pafs.FileSelector(path))
    assert (info.base_name, info.size) == ("a", 100_000)
    filesystem.delete_file(f"{path}/a")
    assert filesystem.get_file_info(f"{path}/a").type == pafs.FileType.NotFound
    for attempt in (filesystem.open_input_file, filesystem.delete_file):
        with pytest.raises(FileNotFoundError):
            attempt(f"{path}/a")


@pytest.mark.parametrize("kind", KINDS)
def test_every_question_waits_for_the_storage(server, kind):
    filesystem, path = open_filesystem(server.uri(f"wait-{kind}"))
    content = np.random.default_rng(2).bytes(3_000_000)

    def write(name):
        with filesystem.open_output_stream(f"{path}/{name}") as sink:
            sink.write(content)

    write("a")
    file = filesystem.open_input_file(f"{path}/a")
    assert file.read(1000) == content[:1000]
    for question, answer in (
        (lambda: file.read(), content[1000:]),  # an open file, from where it was
        (lambda: write("b"), None),
        (lambda: filesystem.get_file_info(f"{path}/a").size, 3_000_000),
        (lambda: len(filesystem.get_file_info(pafs.FileSelector(path))), 2),
    ):
        began = time.monotonic()
        end = server.cut_for(GAP_S, kind)
        assert question() == answer
        assert time.monotonic() - began >= GAP_S - 0.1  # it was cut indeed
        end.join()
    assert server.files(path.partition("/")[2]) == {
        f"wait-{kind}/a": 3_000_000,
        f"wait-{kind}/b": 3_000_000,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_breaks_off_in_the_middle_is_sent_again(server, kind):
    """So large that it goes in parts."""
    filesystem, path = open_filesystem(server.uri(f"large-{kind}"))
    content = np.random.default_rng(3).bytes(24_000_000)
    sink = filesystem.open_output_stream(f"{path}/a")
    sink.write(content)
    end = server.cut_at("PUT .*partNumber=2", GAP_S, kind)
    sink.close()
    end.join()
    with server.filesystem.open_input_file(f"{path}/a") as file:
        assert file.read() == content


def test_an_import_waits_and_ends_the_same(server, local, remote_source):
    cuts = []

    def on_progress(done, total):
        if done == 25 and not cuts:  # in the third of six shards
            cuts.append(server.cut_for(GAP_S, "refused"))

    dataset = convert(remote_source, server.uri("import"), on_progress)
    cuts[0].join()
    assert dataset.fingerprint == local.fingerprint
    assert dataset.num_images == NUM_IMAGES
    files = server.files("import")
    shards = {f"import/{s.file}": s.num_bytes for s in dataset.info.shards}
    assert len(shards) == 6
    info = "import/dataset.json"
    assert files == {**shards, info: files[info]}  # nothing else is left


def test_an_import_that_gives_up_leaves_nothing_that_looks_whole(
    server, local, remote_source, monkeypatch
):
    monkeypatch.setenv(RETRY_VARIABLE, "1")
    out = server.uri("given-up")

    def on_progress(done, total):
        if done == 25:
            server.refuse()

    try:
        with pytest.raises(StorageError) as caught:
            convert(remote_source, out, on_progress)
    finally:
        server.restore()
    message = str(caught.value)
    assert message.startswith(("s3://bucket/given-up/", "s3://bucket/source/"))
    assert "did not answer for 1 s" in message
    assert "give the same command again" in message
    assert f"{RETRY_VARIABLE} (now 1)" in message
    with pytest.raises(DataError, match="its preparation was interrupted"):
        PreparedDataset.open(out)
    before = server.files("given-up")
    assert [name for name in before if "shard-00002" in name] == []  # that was being written
    assert "given-up/shard-00001.parquet" in before

    steps = []
    dataset = convert(remote_source, out, lambda done, total: steps.append(done))
    assert steps[0] >= 10  # what was finished is kept
    assert dataset.fingerprint == local.fingerprint


def test_from_s3_to_a_disk(local, remote_source, tmp_path):
    dataset = convert(remote_source, str(tmp_path / "train"))
    assert dataset.fingerprint == local.fingerprint


@pytest.fixture(scope="module")
def prepared(server, local):
    """A set on S3."""
    server.put_folder(local.uri, "prepared")
    return server.uri("prepared")


def test_a_set_is_read_on_after_a_gap(server, local, prepared):
    """Row groups of open files and of others; images each by itself, several at once."""
    dataset = PreparedDataset.open(prepared)
    assert dataset.index().equals(local.index())
    assert dataset.read_row_group(0, 0).equals(local.read_row_group(0, 0))
    end = server.cut_for(GAP_S, "hanging")
    for place in ((0, 1), (4, 1)):
        assert dataset.read_row_group(*place).equals(local.read_row_group(*place))
    end.join()
    columns = (local.index()[name].to_pylist() for name in ("shard", "row_group", "row"))
    places = list(zip(*columns, strict=True))
    expected = local.read_images(places)
    assert dataset.read_images(places[:9:2]) == expected[:9:2]
    end = server.cut_for(GAP_S, "refused")
    assert dataset.read_images(places) == expected
    end.join()


def test_a_reader_that_gives_up_does_not_blame_the_data(server, prepared, monkeypatch):
    monkeypatch.setenv(RETRY_VARIABLE, "0.5")
    dataset = PreparedDataset.open(prepared)
    dataset.read_row_group(0, 0)
    with server.outage("refused"):
        with pytest.raises(StorageError, match=r"prepared/shard-00000\.parquet.*not answer"):
            dataset.read_row_group(0, 1)
        began = time.monotonic()
        with pytest.raises(StorageError):
            dataset.read_row_group(1, 0)
        assert time.monotonic() - began < 0.4  # it was waited for already
    assert dataset.read_row_group(0, 1).num_rows == 5


@pytest.mark.long
def test_a_server_that_hangs_for_ever_is_given_up(server, prepared, monkeypatch):
    monkeypatch.setenv(RETRY_VARIABLE, "1")
    began = time.monotonic()
    with (
        server.outage("hanging"),
        pytest.raises(StorageError, match=r"the storage did not answer for .*Timeout was reached"),
    ):
        PreparedDataset.open(prepared)
    assert 10 <= time.monotonic() - began < 60  # two requests of 10 s each
    assert PreparedDataset.open(prepared).num_images == NUM_IMAGES


def test_the_place_of_the_server_may_stand_in_the_uri(server, prepared, local, monkeypatch):
    for name in server.environment:
        if name != "AWS_EC2_METADATA_DISABLED":
            monkeypatch.delenv(name)
    user = ":".join(KEYS.values())
    options = f"scheme=http&region=us-east-1&endpoint_override=127.0.0.1%3A{server.port}"
    dataset = PreparedDataset.open(f"s3://{user}@bucket/prepared?{options}")
    assert dataset.read_row_group(1, 0).equals(local.read_row_group(1, 0))


def test_what_waiting_does_not_mend_is_said_at_once(server):
    began = time.monotonic()
    for attempt in (
        lambda fs: fs.open_output_stream("nosuch/a").close(),
        lambda fs: fs.create_dir("nosuch/a"),
        lambda fs: fs.get_file_info(pafs.FileSelector("nosuch/a")),
    ):
        with pytest.raises(StorageError, match=r"s3://nosuch/a: the storage refuses: .*bucket"):
            attempt(open_filesystem("s3://nosuch/a")[0])
    assert time.monotonic() - began < 5


def test_check_waits_and_gives_up(server, prepared, monkeypatch):
    whole = CliRunner().invoke(app, ["data", "check", prepared])
    assert whole.exit_code == 0, whole.output
    end = server.cut_at("", GAP_S, "refused", number=3)
    waited = CliRunner().invoke(app, ["data", "check", prepared])
    end.join()
    assert (waited.exit_code, waited.stdout) == (0, whole.stdout)
    monkeypatch.setenv(RETRY_VARIABLE, "0.5")
    with server.outage("refused"):
        failed = CliRunner().invoke(app, ["data", "check", prepared])
    assert failed.exit_code == 3
    assert "error: s3://bucket/prepared" in failed.stderr
    assert "did not answer for" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_file_that_was_replaced_is_not_read_on(server):
    filesystem, path = open_filesystem(server.uri("replaced"))

    def put(content):
        with server.filesystem.open_output_stream(f"{path}/a") as sink:
            sink.write(content)

    put(b"1" * 100)
    file = filesystem.open_input_file(f"{path}/a")
    put(b"2" * 90)
    end = server.cut_for(GAP_S, "refused")  # so it is opened again
    with pytest.raises(FileNotFoundError, match="had 100 bytes, and has 90 now"):
        file.read()
    end.join()
