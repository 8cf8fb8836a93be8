"""What the scripts say to bad input, and that they say it before Ray starts."""

import json

import cv2
import numpy as np
import pytest
import ray
import torch
import typer
from builders import ROOT, save_checkpoint, small_config
from PIL import Image
from rich.console import Console
from script_process import run_script as run

from retina_ray.cli import clean_exit
from retina_ray.config import with_overrides
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.synthetic.prepare import make_shapes
from retina_ray.errors import StorageError
from retina_ray.model import RetinaNet
from retina_ray.train.checkpoint.format import Checkpoint, CheckpointMeta
from retina_ray.train.checkpoint.store import CheckpointStore
from retina_ray.train.errors import RunError, RunTerminatedError
from retina_ray.train.recovery.failures import FailureNote, cause_of

SCRIPTS = ROOT / "experiments"
BOTH = pytest.mark.parametrize("script", ["train", "sweep"])


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    """Scripts are run from the root, with their own folder on the path."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.chdir(ROOT)
    torch.set_num_threads(1)


def refused(script, *options):
    """Run a script that must refuse its options; returns what it said on stderr, in one line."""
    result = run(script, *options)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not ray.is_initialized()
    assert result.stdout.strip() == ""  # rich before 14.3 ends a progress bar with an empty line
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module", params=["aligned", "rotated"])
def trained(request, tmp_path_factory):
    """An untrained network as a run would leave it, a set of 4 images of 64 px, and their kind."""
    folder, rotated = tmp_path_factory.mktemp(request.param), request.param == "rotated"
    make_shapes(str(folder / "val"), num_images=4, size_px=64, seed=1, split="val", rotated=rotated)
    data = PreparedDataset.open(str(folder / "val"))
    run_folder = run_with_checkpoint(folder / "run", data, **{"model.box_type": request.param})
    return run_folder, folder / "val", request.param


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A prepared set of 4 images of 64 px."""
    folder = tmp_path_factory.mktemp("data") / "val"
    make_shapes(str(folder), num_images=4, size_px=64, seed=1, split="val")
    return folder


@pytest.fixture(scope="module")
def checkpoint(shapes, tmp_path_factory):
    """An untrained network for the shapes, as a run would leave it; returns the run's folder."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    return run_with_checkpoint(folder, PreparedDataset.open(str(shapes)))


def run_with_checkpoint(folder, data, *, names=None, **overrides):
    categories = [(c.id, c.name) for c in data.info.categories]
    if names is not None:
        categories = list(enumerate(names, start=1))
    # So that even without training something is found.
    config = small_config(**{"model.prior_prob": 0.3, **overrides})
    torch.manual_seed(0)
    saved = Checkpoint(
        model=RetinaNet.from_config(config.model).state_dict(),
        state={},
        config=config,
        meta=CheckpointMeta(1, 1, categories, data.info.fingerprint),
    )
    save_checkpoint(CheckpointStore(f"{folder}/checkpoints"), saved, metric=0.5)
    return folder


# --- bad configurations, of train.py and sweep.py alike


@BOTH
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--recipe", "shape"], ["--recipe shape", "did you mean shapes?"]),
        (["--recipe", "no/such.json"], ["no/such.json", "No such file"]),
        (["--set", "loss.focal_gama=2"], ["loss.focal_gama", "did you mean loss.focal_gamma?"]),
        (["--set", "loss.focal_gamma=much"], ["loss.focal_gamma", "'much'"]),
        (["--set", "loss.focal_gamma=-1"], ["loss.focal_gamma", "greater than or equal to 0"]),
        (["--set", "train.epochs=2.5"], ["train.epochs", "2.5"]),
        (["--set", "loss.focal_gamma"], ["'loss.focal_gamma' is not of the form path=value"]),
        (["--set", "model.anchors.sizes=[8,16]"], ["2 sizes for 4 pyramid levels"]),
        (["--set", "matcher.low=0.9"], ["matcher.low", "above matcher.high"]),
        (["--set", "schedule.warmup_steps=100000"], ["schedule.warmup_steps", "before the warm"]),
        (["--set", "model.num_classes=7"], ["model.num_classes", "disc, ring, bar"]),
        (["--name", "a/b"], ["--name 'a/b'", "plain folder name"]),
    ],
)
def test_bad_options(script, options, said, tmp_path):
    shapes = ["--set", "data.synthetic.num_train=8", "--set", "data.synthetic.num_val=4"]
    message = refused(script, "--storage", tmp_path, *shapes, *options)
    for part in said:
        assert part in message
    assert message.startswith("error: ")
    assert not list(tmp_path.rglob("run.json"))
    assert not list(tmp_path.rglob("sweep.json"))


@BOTH
def test_all_faults_at_once(script, tmp_path):
    message = refused(
        script,
        "--storage",
        tmp_path,
        *("--set", "loss.focal_gama=2"),
        *("--set", "optimizer.lr=fast"),
        *("--set", "modle.backbone=resnet18"),
        *("--set", "train.epochs=0"),
    )
    assert "did you mean loss.focal_gamma?" in message
    assert "optimizer.lr: " in message
    assert "did you mean model.backbone?" in message
    assert "train.epochs: " in message


@BOTH
def test_missing_data_set(script, tmp_path, shapes):
    base = ["--recipe", "bccd_cpu", "--storage", tmp_path]
    assert "no data set: give --set data.train=DIR" in refused(script, *base)
    given = ["--set", f"data.train={tmp_path / 'nowhere'}", "--set", f"data.val={shapes}"]
    assert str(tmp_path / "nowhere") in refused(script, *base, *given)


@BOTH
def test_names_that_exist_and_resuming(script, tmp_path):
    (tmp_path / "taken").mkdir()
    storage = ["--storage", tmp_path]
    message = refused(script, "--name", "taken", *storage)
    assert f"{tmp_path / 'taken'} exists: choose another --name" in message
    assert "give --name" in refused(script, "--resume", *storage)
    changed = ["--set", "train.epochs=3"]
    assert "give --name" in refused(script, "--resume", "--name", "taken", *storage, *changed)
    assert "check --name and --storage" in refused(script, "--resume", "--name", "x", *storage)


def test_sweep_options(tmp_path):
    storage = ["--storage", tmp_path]
    message = refused("sweep", "--space", "defaults", *storage)
    assert "--space defaults: unknown; did you mean default?" in message
    assert "a sweep needs a folder" in refused("sweep", "--storage", "s3://bucket/runs")
    assert "'hyper'" in refused("sweep", "--scheduler", "hyper", *storage)
    assert "--num-samples" in refused("sweep", "--num-samples", 0, *storage)
    broken = ["--set", "model.min_level=2"]
    assert "sizes for 5 pyramid levels" in refused("sweep", *broken, *storage)


def test_train_from_a_missing_checkpoint(tmp_path):
    message = refused("train", "--storage", tmp_path, "--init-from", tmp_path / "none")
    assert f"{tmp_path / 'none'}: no checkpoint there" in message


def test_the_stored_config_of_a_run_is_a_recipe(tmp_path):
    from recipes import RECIPES

    from retina_ray.cli import load_config
    from retina_ray.train.run.launch import prepare_run

    few = ["data.synthetic.num_train=8", "data.synthetic.num_val=4", "schedule.warmup_steps=1"]
    config = load_config("shapes", [*few, "loss.focal_gamma=1.25"], RECIPES)
    run_ = prepare_run(config, name="first", storage=str(tmp_path))
    stored = tmp_path / "first" / "config.json"
    again = load_config(str(stored), [], RECIPES)
    assert again == run_.config
    assert again.loss.focal_gamma == 1.25
    assert again.model.num_classes == 3
    changed = load_config(str(stored), ["loss.focal_gamma=2"], RECIPES)
    assert changed == with_overrides(again, {"loss.focal_gamma": 2.0})

    tree = json.loads(stored.read_text())
    tree["loss"]["gamma"] = 1
    stored.write_text(json.dumps(tree))
    message = refused("train", "--recipe", stored, "--storage", tmp_path)
    assert "loss.gamma" in message
    stored.write_text("{")
    assert "not valid JSON" in refused("train", "--recipe", stored, "--storage", tmp_path)


# --- evaluate.py and predict.py


def test_evaluate(trained, tmp_path):
    run_folder, data, kind = trained
    options = ["--checkpoint", run_folder, "--dataset", data, "--out", tmp_path, "--device", "cpu"]
    done = run("evaluate", *options)
    assert done.exit_code == 0, done.output
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 <= metrics["val/AP"] <= metrics["val/AP50"] <= 1
    found = json.loads((tmp_path / "predictions.json").read_text())
    dataset = PreparedDataset.open(str(data))
    assert {one["image_id"] for one in found} == set(dataset.index()["image_id"].to_pylist())
    assert {len(one["bbox"]) for one in found} == {5 if kind == "rotated" else 4}
    assert dataset.info.categories[0].name in done.stdout


def test_evaluate_refuses(checkpoint, shapes, tmp_path):
    missing = tmp_path / "none"
    message = refused("evaluate", "--checkpoint", missing, "--dataset", shapes)
    assert f"{missing}: no checkpoint there" in message
    message = refused("evaluate", "--checkpoint", checkpoint, "--dataset", missing)
    assert str(missing) in message
    data = PreparedDataset.open(str(shapes))
    other = run_with_checkpoint(tmp_path / "cells", data, names=["RBC", "WBC", "Platelets"])
    message = refused(
        "evaluate", "--checkpoint", other, "--dataset", shapes, "--out", tmp_path, "--device", "cpu"
    )
    assert "RBC, WBC, Platelets" in message
    assert "disc, ring, bar" in message
    weights = next((checkpoint / "checkpoints").glob("step-*")) / "model.safetensors"
    broken = tmp_path / "broken"
    run_with_checkpoint(broken, data)
    torn = next((broken / "checkpoints").glob("step-*")) / "model.safetensors"
    torn.write_bytes(weights.read_bytes()[:1000])
    assert "cannot be read" in refused("evaluate", "--checkpoint", broken, "--dataset", shapes)


def test_predict(trained, tmp_path):
    run_folder, data, kind = trained
    photo, out = tmp_path / "photo.jpg", tmp_path / "found"
    cv2.imwrite(str(photo), np.full((60, 90, 3), 200, np.uint8))
    done = run("predict", photo, "--checkpoint", run_folder, "--out", out, "--device", "cpu")
    assert done.exit_code == 0, done.output
    records = json.loads((out / "predictions.json").read_text())
    assert records
    names = {category.name for category in PreparedDataset.open(str(data)).info.categories}
    for record in records:
        assert record["class"] in names
        if kind == "rotated":
            assert len(record["box_rotated"]) == 5
            assert "box_xyxy" not in record
            continue
        x1, y1, x2, y2 = record["box_xyxy"]
        assert 0 <= x1 <= x2 <= 90 + 1e-3
        assert 0 <= y1 <= y2 <= 60 + 1e-3
    assert cv2.imread(str(out / "photo.png")) is not None


def test_predict_turns_photos_upright_as_the_import_does(checkpoint, tmp_path):
    stored = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(stored).save(tmp_path / "turned.jpg", exif=exif)
    upright = np.rot90(np.asarray(Image.open(tmp_path / "turned.jpg")), k=-1)
    Image.fromarray(upright).save(tmp_path / "upright.png")
    out = tmp_path / "found"
    options = ["--checkpoint", checkpoint, "--out", out, "--device", "cpu"]
    done = run("predict", tmp_path / "turned.jpg", tmp_path / "upright.png", *options)
    assert done.exit_code == 0, done.output
    records = json.loads((out / "predictions.json").read_text())
    turned, straight = (
        [one["box_xyxy"] for one in records if one["file"].endswith(name)]
        for name in ("turned.jpg", "upright.png")
    )
    assert turned
    assert turned == straight


def test_predict_names_what_it_cannot_read_and_does_the_rest(checkpoint, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not an image")
    cv2.imwrite(str(folder / "good.png"), np.zeros((64, 64, 3), np.uint8))
    out = tmp_path / "found"
    options = ["--checkpoint", checkpoint, "--out", out, "--device", "cpu"]
    done = run("predict", folder, *options)
    assert done.exit_code == 2
    assert "broken.jpg" in done.stderr
    assert "good" not in done.stderr
    assert (out / "good.png").exists()
    assert "1 images" in done.stdout
    done = run("predict", folder / "good.png", *options, "--max-pixels", 64 * 64 - 1)
    assert done.exit_code == 2
    assert "good.png: 64 x 64 pixels by its header" in done.stderr
    assert "0 images" in done.stdout

    assert "no such file or folder" in refused("predict", tmp_path / "nowhere", *options)


# --- how a run's failure reaches the user


@pytest.mark.parametrize(
    ("error", "code", "out", "err"),
    [
        (RunError("NonFiniteLossError: loss"), 1, "", "the run failed: NonFiniteLossError: loss\n"),
        (RunTerminatedError("SIGTERM"), 143, "ended: SIGTERM\n", ""),
        (StorageError("no answer"), 1, "", "error: no answer\n"),
        (KeyboardInterrupt(), 130, "interrupted\n", ""),
    ],
)
def test_how_an_end_reaches_the_user(capsys, error, code, out, err):
    with pytest.raises(typer.Exit) as end, clean_exit(Console()):
        raise error
    assert end.value.exit_code == code
    assert capsys.readouterr() == (out, err)


def test_causes_out_of_ray_trains_error():
    from ray.train import WorkerGroupError

    class WrappedError(Exception):
        def __init__(self, error):
            self._base_exc = error

    boom = WrappedError(RuntimeError("5 images could not be decoded"))
    same = WorkerGroupError("pages of traceback", {1: boom, 0: boom})
    assert cause_of(same) == "RuntimeError: 5 images could not be decoded"
    two = WorkerGroupError("pages", {1: boom, 0: WrappedError(ValueError("closed by peer"))})
    assert cause_of(two) == (
        "worker 0: ValueError: closed by peer\n"
        "worker 1: RuntimeError: 5 images could not be decoded"
    )


def test_the_note_of_a_failure(tmp_path):
    note = FailureNote(str(tmp_path / "run"))
    assert note.read() is None
    note.clear()
    note.write("ValueError: no")
    assert note.read() == "ValueError: no"
    note.clear()
    assert note.read() is None


# --- recipes and spaces


def test_every_recipe_states_the_beta_of_its_box_loss():
    from recipes import RECIPES

    for name, recipe in RECIPES.items():
        assert "smooth_l1_beta" in recipe().loss.model_fields_set, name
    assert RECIPES["coco_r50_fpn_1x"]().loss.smooth_l1_beta == 0.0  # detectron2's recipes


def test_every_space_fits_the_recipes_for_it():
    from recipes import RECIPES
    from spaces import SPACES

    from retina_ray.sweep.space import check_space

    for recipe in ("shapes", "shapes_rotated"):
        base = RECIPES[recipe]()
        for name, space in SPACES.items():
            if (recipe, name) != ("shapes_rotated", "assigners"):
                check_space(space(base), base)


def test_other_assigners_are_refused_for_rotated_boxes(tmp_path):
    options = ["--recipe", "shapes_rotated", "--space", "assigners", "--storage", tmp_path]
    message = refused("sweep", *options)
    assert 'matcher.method: "atss" is for aligned boxes' in message


def test_rotated_models_refuse_aligned_data(shapes, tmp_path):
    data = PreparedDataset.open(str(shapes))
    same_names = run_with_checkpoint(tmp_path / "run", data, **{"model.box_type": "rotated"})
    options = ["--dataset", shapes, "--out", tmp_path / "out", "--device", "cpu"]
    message = refused("evaluate", "--checkpoint", same_names, *options)
    assert f"{shapes}: has no rotated boxes" in message
    trained = ["--set", f"data.train={shapes}", "--set", f"data.val={shapes}"]
    trained += ["--set", "model.box_type=rotated", "--set", "loss.box_loss=smooth_l1"]
    message = refused("train", "--recipe", "bccd_cpu", "--storage", tmp_path, *trained)
    assert f"data.train: {shapes} has no rotated boxes" in message
    assert f"data.val: {shapes} has no rotated boxes" in message
