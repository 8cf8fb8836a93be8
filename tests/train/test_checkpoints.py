import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from retina_ray.config import ConfigError, ExperimentConfig
from retina_ray.train.checkpoints import (
    Checkpoint,
    CheckpointMeta,
    CheckpointStore,
    load_checkpoint,
)


def make(step, value=0.0):
    return Checkpoint(
        model={"weight": torch.full((2, 3), value)},
        state={"optimizer": {"state": {0: torch.ones(2)}, "lr": 0.1}, "rng": torch.get_rng_state()},
        config=ExperimentConfig(),
        meta=CheckpointMeta(
            step=step, epoch=1, categories=[(7, "cat"), (9, "dog")], dataset_fingerprint="f"
        ),
    )


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(str(tmp_path / "checkpoints"))


def folders(tmp_path):
    return sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir())


def test_what_is_saved_is_loaded(store):
    saved = make(5, 0.5)
    loaded = load_checkpoint(store.save(saved, metric=0.1))
    assert torch.equal(loaded.model["weight"], saved.model["weight"])
    assert torch.equal(loaded.state["optimizer"]["state"][0], torch.ones(2))
    assert torch.equal(loaded.state["rng"], saved.state["rng"])
    assert loaded.config == saved.config
    assert loaded.meta == saved.meta
    assert load_checkpoint(store.last, weights_only=True).state is None


def test_the_best_and_the_last_are_kept(store, tmp_path):
    assert store.last is None
    assert store.last_step == 0
    assert store.best is None
    for step, metric in ((1, 0.2), (2, 0.5), (3, 0.4), (4, None), (5, float("nan"))):
        store.save(make(step), metric=metric)
    assert store.last.endswith("step-00000005")
    assert store.last_step == 5
    assert store.best.endswith("step-00000002")
    assert store.best_metric == 0.5
    assert folders(tmp_path) == ["step-00000002", "step-00000005"]


def test_a_figure_that_is_not_a_number_is_never_the_best(store):
    store.save(make(1), metric=float("nan"))
    store.save(make(2), metric=0.1)
    assert store.best.endswith("step-00000002")
    assert store.best_metric == 0.1


def test_the_same_step_again_leaves_a_loadable_checkpoint(store):
    store.save(make(3, 1.0), metric=0.1)
    store.save(make(3, 2.0), metric=0.2)
    assert load_checkpoint(store.last).model["weight"][0, 0] == 2.0
    store.save(make(3, 3.0), metric=0.3)
    assert load_checkpoint(store.best).model["weight"][0, 0] == 3.0


def test_a_runs_folder_and_its_checkpoints_folder_mean_the_last_one(store, tmp_path):
    store.save(make(1, 1.0), metric=0.9)
    store.save(make(2, 2.0), metric=0.1)
    for uri in (str(tmp_path), str(tmp_path / "checkpoints"), store.last):
        assert load_checkpoint(uri).meta.step == 2
    assert load_checkpoint(store.best).meta.step == 1


def test_a_remote_store_works_alike():
    store = CheckpointStore("fsspec+memory://bucket/run/checkpoints")
    try:
        store.save(make(1, 1.0), metric=0.3)
    except Exception as error:
        if "fsspec" in str(error):
            pytest.skip(f"no in-memory file system here: {error}")
        raise
    store.save(make(2, 2.0), metric=0.1)
    assert load_checkpoint(store.last).meta.step == 2
    assert load_checkpoint(store.best).model["weight"][0, 0] == 1.0


def test_nothing_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no checkpoint there"):
        load_checkpoint(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt", "meta.json", "config.json"])
def test_a_file_that_is_cut_short_is_named(store, tmp_path, file):
    uri = store.save(make(1), metric=0.1)
    path = tmp_path / "checkpoints" / "step-00000001" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ConfigError, match="cannot be read"):
        load_checkpoint(uri)


def test_a_newer_format_is_refused(store, tmp_path):
    uri = store.save(make(1), metric=0.1)
    path = tmp_path / "checkpoints" / "step-00000001" / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(ConfigError, match="newer than this version"):
        load_checkpoint(uri)


def test_a_pickle_that_would_run_code_is_not_executed(store, tmp_path):
    uri = store.save(make(1), metric=0.1)
    marker = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    torch.save({"bomb": Bomb()}, tmp_path / "checkpoints" / "step-00000001" / "state.pt")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_checkpoint(uri)
    assert not marker.exists()


KILLED_WHILE_WRITING = """
import os, signal, sys
sys.path.insert(0, {here!r})
from test_checkpoints import make
from retina_ray.train import checkpoints
store = checkpoints.CheckpointStore({uri!r})
store.save(make(1, 1.0), metric=0.1)
def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
{patch}
store.save(make(2, 2.0), metric=0.2)
"""


@pytest.mark.parametrize(
    "patch",
    [
        "checkpoints.torch.save = killed",
        "checkpoints.pafs.copy_files = killed",
        "checkpoints.write_text = killed",
    ],
)
def test_a_kill_while_writing_leaves_the_previous_checkpoint(store, patch):
    script = KILLED_WHILE_WRITING.format(here=os.path.dirname(__file__), uri=store.uri, patch=patch)
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    assert load_checkpoint(store.last).model["weight"][0, 0] == 1.0
    store.save(make(3, 3.0), metric=0.0)
    assert load_checkpoint(store.last).meta.step == 3
    assert load_checkpoint(store.best).meta.step == 1
