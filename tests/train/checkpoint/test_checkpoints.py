import hashlib
import io
import json
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import save_checkpoint, small_disk

from retina_ray.config import ConfigError, ExperimentConfig
from retina_ray.train.checkpoint.async_saver import CheckpointError, CheckpointSaver, host_copy
from retina_ray.train.checkpoint.format import (
    Checkpoint,
    CheckpointFormatError,
    CheckpointMeta,
    DamagedCheckpointError,
)
from retina_ray.train.checkpoint.index import CheckpointIndex
from retina_ray.train.checkpoint.load import load_checkpoint, load_meta
from retina_ray.train.checkpoint.store import CheckpointStore, FencedError
from retina_ray.train.errors import DiskFullError


def make(step, value=0.0, *, numbers=6):
    """A checkpoint whose every part tells its value."""
    moment = torch.full((numbers,), value + 2)
    return Checkpoint(
        model={"weight": torch.full((2, numbers // 2), value)},
        state={
            "optimizer": {"state": {0: {"step": torch.tensor(value), "exp_avg": moment}}},
            "rng": torch.get_rng_state(),
            "best": {"val/AP": value, "rounds": 3},
        },
        config=ExperimentConfig(),
        meta=CheckpointMeta(
            step=step, epoch=1, categories=[(7, "cat"), (9, "dog")], dataset_fingerprint="f"
        ),
        ema={"weight": torch.full((2, numbers // 2), value + 1)},
    )


def assert_value(checkpoint, value):
    """All of it was written together."""
    assert (checkpoint.model["weight"] == value).all()
    assert (checkpoint.ema["weight"] == value + 1).all()
    moments = checkpoint.state["optimizer"]["state"][0]
    assert moments["step"] == value
    assert (moments["exp_avg"] == value + 2).all()
    assert checkpoint.state["best"] == {"val/AP": value, "rounds": 3}


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(str(tmp_path / "checkpoints"))


def folders(store):
    return sorted(entry.name for entry in os.scandir(store.uri) if entry.is_dir())


# What is kept


def test_what_is_saved_is_loaded(store):
    saved = make(5, 0.5)
    saved = replace(saved, meta=replace(saved.meta, metrics={"val/AP": 0.25}, metrics_step=4))
    loaded = load_checkpoint(save_checkpoint(store, saved, metric=0.1))
    assert_value(loaded, 0.5)
    assert torch.equal(loaded.state["rng"], saved.state["rng"])
    assert loaded.config == saved.config
    assert loaded.meta == saved.meta
    os.unlink(f"{store.last}/state.pt")
    assert load_checkpoint(store.last, weights_only=True).state is None
    assert load_meta(store.uri) == saved.meta


@pytest.mark.parametrize(("keep", "kept"), [(1, [2, 5]), (3, [2, 3, 4, 5])])
def test_the_best_and_so_many_of_the_last_are_kept(tmp_path, keep, kept):
    store = CheckpointStore(f"{tmp_path}/checkpoints", keep=keep)
    assert (store.last, store.last_step, store.best) == (None, 0, None)
    save_checkpoint(store, make(0), metric=float("nan"))
    assert (store.best, store.index.best) == (store.last, None), "NaN is never the best"
    for step, metric in ((1, 0.2), (2, 0.5), (3, 0.4), (4, None), (5, float("nan"))):
        save_checkpoint(store, make(step, step), metric=metric)
    assert (store.last, store.last_step) == (store.uri_of("step-00000005"), 5)
    assert (store.best, store.index.best.metric) == (store.uri_of("step-00000002"), 0.5)
    assert folders(store) == [f"step-0000000{step}" for step in kept]
    for step in kept:
        assert_value(load_checkpoint(store.uri_of(f"step-0000000{step}")), step)


def test_a_run_that_goes_back_before_its_best_keeps_it():
    index = CheckpointIndex()
    for step, metric in ((10, 0.3), (20, 0.2), (25, 0.9), (30, 0.6)):
        index = index.with_entry(index.new_entry(step, metric), keep=2)
    index = index.gone_back(index.new_entry(22, None), damaged={"step-00000030"})
    for step in (23, 24, 26, 27, 28):
        index = index.with_entry(index.new_entry(step, 0.5), keep=2)
    assert [entry.step for entry in index.recent] == [27, 28]
    assert index.best.step == 25
    assert index.names == {"step-00000025", "step-00000027", "step-00000028"}


def test_what_a_run_does_again_counts_once():
    index = CheckpointIndex()
    for step, metric in ((10, 0.3), (20, 0.6), (30, 0.2), (20, 0.4)):
        index = index.with_entry(index.new_entry(step, metric), keep=3)
    assert [entry.name for entry in index.recent] == ["step-00000010", "step-00000020-2"]
    assert index.best.name == "step-00000020"
    assert CheckpointIndex.from_json(index.to_json()) == index


# Files that are not what was written


def damage(path):
    """Change one byte in the middle."""
    content = bytearray(Path(path).read_bytes())
    content[len(content) // 2] ^= 1
    Path(path).write_bytes(content)


def cut(path):
    os.truncate(path, os.path.getsize(path) // 2)


FILES = ["model.safetensors", "ema.safetensors", "state.pt", "config.json", "meta.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", [cut, damage, os.unlink])
def test_a_file_that_was_cut_short_or_changed_is_named(store, file, harm):
    uri = save_checkpoint(store, make(1), metric=0.1)
    harm(f"{uri}/{file}")
    with pytest.raises(DamagedCheckpointError) as caught:
        load_checkpoint(uri)
    for part in (uri, file, "no other checkpoint of this run can be read"):
        assert part in str(caught.value)
    if file == "meta.json":
        with pytest.raises(DamagedCheckpointError, match=file):
            load_meta(uri)


def test_a_run_goes_back_to_the_newest_that_can_be_read(tmp_path, caplog):
    store = CheckpointStore(str(tmp_path), keep=4)
    for step, metric in ((1, 0.3), (2, 0.2), (3, 0.4), (4, 0.1)):
        save_checkpoint(store, make(step, step), metric=metric)
    assert_value(store.go_back_to_whole(), 4)
    assert caplog.messages == []
    cut(f"{store.last}/model.safetensors")
    damage(store.uri_of("step-00000003/state.pt"))
    with pytest.raises(ConfigError, match=r"step-00000002 of the same run can be read"):
        load_checkpoint(store.last)
    assert_value(store.go_back_to_whole(), 2)
    (message,) = caplog.messages
    assert "step-00000004: this checkpoint cannot be read (model.safetensors has" in message
    assert "step-00000002 instead" in message
    assert store.last_step == 2
    assert store.index.best.metric == 0.3, "the damaged one is no longer the best"
    for step in (1, 2):
        damage(store.uri_of(f"step-0000000{step}/state.pt"))
    with pytest.raises(ConfigError, match="no checkpoint of this run can be read") as caught:
        store.go_back_to_whole()
    assert len(caught.value.faults) == 3, "each with its fault, and what to do"


def test_a_disk_that_fails_is_not_taken_for_a_damaged_checkpoint(store):
    save_checkpoint(store, make(1), metric=0.5)
    folder = save_checkpoint(store, make(2), metric=0.1)
    os.truncate(f"{folder}/config.json", 0)
    restamp(folder)  # of the size that the next one has
    os.unlink(f"{folder}/config.json")
    os.symlink("/proc/self/mem", f"{folder}/config.json")  # reading it is an I/O error
    for read in (lambda: load_checkpoint(store.uri), store.go_back_to_whole):
        with pytest.raises(ConfigError, match=r"cannot be had \(OSError: .*Input/output") as caught:
            read()
        assert not isinstance(caught.value, DamagedCheckpointError)
    assert store.last_step == 2, "the run did not go back"


def restamp(folder, **changes):
    """Make meta.json agree with the files, as whoever wants to deceive would."""
    path = Path(folder) / "meta.json"
    tree = {**json.loads(path.read_text()), **changes}
    for name in tree["files"]:
        content = (path.parent / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        tree["files"][name] = {"bytes": len(content), "sha256": digest}
    del tree["checksum"]
    tree["checksum"] = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(tree))


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def torch_file(bomb):
    file = io.BytesIO()
    torch.save({"bomb": bomb}, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch_file, r"state\.pt holds (posix\.)?mkdir, .*it was not executed"),
        (pickle.dumps, r"state\.pt is .*not the archive that torch writes: it was not executed"),
    ],
)
def test_a_pickle_that_would_run_code_is_not_executed(store, tmp_path, content, said):
    marker = tmp_path / "executed"
    uri = save_checkpoint(store, make(1), metric=0.1)
    (Path(uri) / "state.pt").write_bytes(content(Bomb(str(marker))))
    restamp(uri)
    with pytest.raises(ConfigError, match=said) as caught:
        load_checkpoint(uri)
    assert "weights_only" not in str(caught.value), "no advice on how to execute it after all"
    assert not marker.exists()


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (99, r"format 99 is not the one .* update retina_ray"),
        (1, r"format 1 is not the one .* take another"),
        ("2", r"format '2' is not the one .* take another"),
    ],
)
def test_another_format_is_refused(store, version, said):
    uri = save_checkpoint(store, make(1), metric=0.1)
    restamp(uri, version=version)
    with pytest.raises(CheckpointFormatError, match=said):
        load_checkpoint(uri)
    with pytest.raises(CheckpointFormatError, match=said):
        store.go_back_to_whole()


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"last": "x"}', b'{"recent": [1]}'])
def test_an_index_that_is_none_is_named(store, content):
    save_checkpoint(store, make(1), metric=0.1)
    Path(store.uri_of("index.json")).write_bytes(content)
    with pytest.raises(ConfigError, match=r"index\.json: not an index of checkpoints"):
        load_checkpoint(store.uri)


# In the background


def test_the_copy_is_apart_from_what_goes_on_changing():
    class Kind(dict):
        pass

    weight = torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tree = Kind(a=weight, b=[{"c": torch.zeros(2)}, (1, None)], d=weight, e="x")
    tree.mark = 1
    copied, arrived = host_copy(tree)
    weight.fill_(7)
    tree["b"][0]["c"].fill_(7)
    tree["b"].append(3)
    arrived()
    assert isinstance(copied, Kind)
    assert copied.mark == 1
    assert (copied["a"] == 1).all()
    assert copied["a"].stride() == weight.stride()
    assert copied["a"].data_ptr() != copied["d"].data_ptr()
    assert copied["b"] == [{"c": copied["b"][0]["c"]}, (1, None)]
    assert (copied["b"][0]["c"] == 0).all()
    assert copied["e"] == "x"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_copy_of_a_gpu_is_of_its_moment_and_waits_for_nothing():
    weight = torch.ones(2**20, device="cuda")
    torch.cuda.synchronize()
    torch.cuda._sleep(2 * 10**9)  # about a second of work before the copy
    start = time.monotonic()
    copied, arrived = host_copy({"weight": weight})
    weight.fill_(7)  # the next step
    assert time.monotonic() - start < 0.5
    arrived()
    assert copied["weight"].is_pinned()
    assert (copied["weight"] == 1).all()


def test_a_checkpoint_counts_when_it_is_written_and_training_does_not_wait(store):
    save_checkpoint(store, make(1, 1.0), metric=0.1)
    saver, go, order = CheckpointSaver(store), threading.Event(), []

    def record():
        assert go.wait(10)
        order.append(store.last_step)

    second = make(2, 2.0)
    uri = saver.save(second, metric=0.5, before_switch=record)
    second.model["weight"].fill_(99)  # the next step
    second.state["optimizer"]["state"][0]["exp_avg"].fill_(99)
    assert store.last_step == 1, "still under way"
    assert not saver.is_better(0.4), "what is under way counts already"
    assert saver.is_better(0.6)
    third = threading.Thread(target=lambda: saver.save(make(3, 3.0), metric=0.2))
    third.start()
    third.join(0.2)
    assert third.is_alive(), "only one is under way"
    go.set()
    third.join(10)
    saver.close(has_failed=False)
    assert order == [1], "the record before the index"
    assert uri == store.best
    assert_value(load_checkpoint(store.best), 2.0)
    assert_value(load_checkpoint(store.last), 3.0)


def test_an_error_in_the_background_is_raised_with_the_next_checkpoint(store, caplog):
    saver = CheckpointSaver(store)
    saver.save(make(1, 1.0), metric=0.1)
    saver.wait()

    def fail():
        raise OSError(5, "Input/output error", "/disk/metrics.jsonl")

    saver.save(make(2, 2.0), metric=0.2, before_switch=fail)
    with pytest.raises(CheckpointError) as caught:
        saver.save(make(3, 3.0), metric=0.3)
    for part in (
        f"step 2 could not be written to {store.uri}: ",
        "Input/output error: '/disk/metrics.jsonl'",
        f"MiB are free in {store.uri}",
        f"kept is {store.uri}/step-00000001 (step 1)",
    ):
        assert part in str(caught.value)
    assert folders(store) == ["step-00000001"]
    assert not saver.is_better(0.05), "the failed one is not the best: the first still is"
    assert saver.is_better(0.15)
    # At the end of a run it is raised, or logged where the run's own error goes before.
    saver.save(make(3, 3.0), metric=0.3, before_switch=fail)
    saver.close(has_failed=True)
    assert "step 3 could not be written" in caplog.text
    saver.save(make(3, 3.0), metric=0.3, before_switch=fail)
    with pytest.raises(CheckpointError, match="step 3"):
        saver.close(has_failed=False)
    saver.close(has_failed=False)
    assert_value(load_checkpoint(store.last), 1.0)


def test_who_was_given_up_for_lost_may_not_write_any_more(store):
    lost = CheckpointSaver(store)
    lost.save(make(1, 1.0), metric=0.1)
    lost.wait()
    successor = CheckpointSaver(store)
    successor.save(make(2, 2.0), metric=0.2)
    successor.wait()
    uploads = []
    lost.save(make(9, 9.0), metric=0.9, before_switch=lambda: uploads.append(1))
    with pytest.raises(FencedError, match="another process has taken this run over"):
        lost.wait()
    assert uploads == []
    assert store.last_step == 2
    assert folders(store) == ["step-00000002"]
    successor.save(make(3, 3.0), metric=0.3)
    successor.close(has_failed=False)
    assert_value(load_checkpoint(store.last), 3.0)


# No room


def test_no_room_on_the_disk(tmp_path):
    with small_disk(tmp_path / "disk", size="2m") as disk:
        run_out_of_room(
            CheckpointStore(str(disk / "checkpoints")),
            reason="No space left on device",
            room="2 of 2 MiB are free",
            remedy="beside those that are kept",
        )


def test_no_room_for_a_file(store):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**21, hard))
    try:
        run_out_of_room(
            store,
            reason="File too large",
            room="MiB are free",
            remedy="so a quota or a limit to the size of files",
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_out_of_room(store, *, reason, room, remedy):
    saver = CheckpointSaver(store)
    saver.save(make(1, 1.0), metric=0.1)
    saver.wait()
    large = make(2, 2.0, numbers=10**6)
    for weights_fit, num_mib in ((False, 11), (True, 4)):  # 3 x 4 MB, 1 x 4 MB
        if weights_fit:  # then it is torch that runs out, and hides the system's word
            large = replace(large, model=make(2).model, ema=make(2).ema)
        saver.save(large, metric=0.2)
        with pytest.raises(DiskFullError, match=reason) as caught:
            saver.wait()
        for part in (f"{room} in {store.uri}", f"takes {num_mib} MiB, {remedy}"):
            assert part in str(caught.value)
        assert sorted(os.listdir(store.uri)) == ["index.json", "step-00000001"], "no leavings"
        assert_value(load_checkpoint(store.last), 1.0)
    saver.save(make(3, 3.0), metric=0.3)
    saver.close(has_failed=False)
    assert_value(load_checkpoint(store.last), 3.0)


# Killed at any moment


def test_the_index_is_never_seen_half_written(store):
    save_checkpoint(store, make(1), metric=0.1)
    writer = threading.Thread(target=lambda: [store.acquire_lease() for _ in range(50)])
    writer.start()
    while writer.is_alive():
        assert store.last_step == 1


def save_and_die(uri, step, at_operation):
    """Save a checkpoint, and end at the so-manieth operation on a file of the run."""
    seen = 0

    def watch(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename", "os.mkdir") and uri in str(arguments[0]):
            seen += 1
            if seen == at_operation:
                os.kill(os.getpid(), signal.SIGKILL)

    saver = CheckpointSaver(CheckpointStore(uri, keep=2))
    sys.addaudithook(watch)
    saver.save(make(step, float(step)), metric=step / 1000)
    saver.close(has_failed=False)


def test_a_kill_at_any_file_operation_leaves_a_whole_checkpoint(tmp_path):
    store, outcomes = CheckpointStore(str(tmp_path), keep=2), []
    save_checkpoint(store, make(1, 1.0), metric=0.1)
    context = multiprocessing.get_context("fork")
    for operation in range(1, 100):
        before, step = store.last_step, 10 * operation
        process = context.Process(target=save_and_die, args=(store.uri, step, operation))
        process.start()
        process.join(60)
        assert store.last_step in (before, step)
        for entry in store.index.entries:
            assert_value(load_checkpoint(store.uri_of(entry.name)), entry.step)
        outcomes.append(store.last_step == step)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert len(outcomes) > 15, "each of five files is opened more than twice"
    assert outcomes == sorted(outcomes), "the old one until the index is switched, then the new one"
    assert outcomes.count(True) > 1, "one died after the switch"
    assert outcomes.count(False) > 10
    assert set(folders(store)) == store.index.names, "the next one clears what was left half done"
