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
from ray.train import WorkerGroupError
from rich.console import Console
from script_process import run_script as run

from retina_ray.cli import clean_exit, load_config
from retina_ray.config import with_overrides
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.synthetic.prepare import make_shapes
from retina_ray.errors import StorageError
from retina_ray.model import RetinaNet
from retina_ray.sweep.report import TrialRow
from retina_ray.sweep.runner import SweepOutcome
from retina_ray.train.checkpoint.format import Checkpoint, CheckpointMeta
from retina_ray.train.checkpoint.store import CheckpointStore
from retina_ray.train.errors import RunError, RunTerminatedError
from retina_ray.train.recovery.failures import cause_of
from retina_ray.train.run.launch import prepare_run

SCRIPTS = ROOT / "experiments"
BOTH = pytest.mark.parametrize("script", ["train", "sweep"])
KINDS = pytest.mark.parametrize("kind", ["aligned", "rotated"])


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


def trained(folder, kind):
    """An untrained network as a run would leave it, and a set of 4 images of 64 px."""
    rotated = kind == "rotated"
    make_shapes(str(folder / "val"), num_images=4, size_px=64, seed=1, split="val", rotated=rotated)
    data = PreparedDataset.open(str(folder / "val"))
    # So that even without training something is found.
    config = small_config(**{"model.prior_prob": 0.3, "model.box_type": kind})
    torch.manual_seed(0)
    categories = [(c.id, c.name) for c in data.info.categories]
    saved = Checkpoint(
        model=RetinaNet.from_config(config.model).state_dict(),
        state={},
        config=config,
        meta=CheckpointMeta(1, 1, categories, data.info.fingerprint),
    )
    save_checkpoint(CheckpointStore(f"{folder}/run/checkpoints"), saved, metric=0.5)
    return folder / "run", folder / "val"


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("aligned"), "aligned")


@pytest.fixture(scope="module")
def rotated(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("rotated"), "rotated")


@pytest.fixture
def shapes(aligned):
    """A prepared set of 4 images of 64 px."""
    return aligned[1]


# --- bad configurations, of train.py and sweep.py alike


@BOTH
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--recipe", "shape"], ["--recipe shape", "did you mean shapes?"]),
        (["--recipe", "no/such.json"], ["no/such.json", "No such file"]),
        (["--set", "loss.focal_gamma=much"], ["loss.focal_gamma", "'much'"]),
        (
            ["--set=loss.focal_gama=2", "--set=modle.backbone=a", "--set=train.epochs=2.5"],
            ["did you mean loss.focal_gamma?", "did you mean model.backbone?", "train.epochs: "],
        ),
        (["--set", "loss.focal_gamma"], ["'loss.focal_gamma' is not of the form path=value"]),
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
def test_missing_data_set(script, tmp_path, shapes):
    base = ["--recipe", "bccd_cpu", "--storage", tmp_path]
    assert "no data set: give --set data.train=DIR" in refused(script, *base)
    given = ["--set", f"data.train={tmp_path / 'nowhere'}", "--set", f"data.val={shapes}"]
    assert str(tmp_path / "nowhere") in refused(script, *base, *given)


@BOTH
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--name", "taken"], "taken exists: choose another --name"),
        (["--resume"], "give --name"),
        (["--resume", "--name", "taken", "--set", "train.epochs=3"], "give --name"),
        (["--resume", "--name", "x"], "check --name and --storage"),
    ],
)
def test_names_that_exist_and_resuming(script, options, said, tmp_path):
    (tmp_path / "taken").mkdir()
    assert said in refused(script, "--storage", tmp_path, *options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--space", "defaults"], "--space defaults: unknown; did you mean default?"),
        (["--storage", "s3://bucket/runs"], "a sweep needs a folder"),
        (["--scheduler", "hyper"], "'hyper'"),
        (["--num-samples", 0], "--num-samples"),
        (["--set", "model.min_level=2"], "sizes for 5 pyramid levels"),
        (["--recipe", "shapes_rotated", "--space", "assigners"], "is for aligned boxes"),
    ],
)
def test_sweep_options(options, said, tmp_path):
    assert said in refused("sweep", "--storage", tmp_path, *options)


@pytest.mark.parametrize(
    ("aps", "exit_code", "said"),
    [
        ([0.5, None], 0, "1 of 2 trials failed"),
        ([None, None], 1, "2 of 2 trials failed"),
        ([0.5, 0.4], 0, None),
    ],
)
def test_a_sweep_without_any_result_has_failed(aps, exit_code, said, tmp_path, monkeypatch, caplog):
    """What the trials came to is given; all else is the script's own."""
    rows = [
        TrialRow(
            f"trial_{n:02d}", {}, "finished" if ap else "failed", metrics={"AP": ap} if ap else {}
        )
        for n, ap in enumerate(aps)
    ]
    plans = []

    def run_sweep(plan, *, resume):
        plans.append(plan)
        return SweepOutcome(rows, interrupted=False)

    monkeypatch.setattr("retina_ray.sweep.runner.run_sweep", run_sweep)
    few = ["data.synthetic.num_train=8", "data.synthetic.num_val=4", "schedule.warmup_steps=1"]
    options = [part for setting in [*few, "loss.focal_gamma=3"] for part in ("--set", setting)]
    result = run("sweep", "--storage", tmp_path, "--space", "losses", *options)
    assert result.exit_code == exit_code, result.output
    if said is None:
        assert "failed" not in result.stdout
    else:
        assert result.stdout.splitlines()[-1] == said
    assert plans[0].num_samples == 4  # the space has no more points
    assert "the space has 4 points" in caplog.text
    assert "loss.focal_gamma lies outside the space" in caplog.text


def test_the_stored_config_of_a_run_is_a_recipe(tmp_path):
    from recipes import RECIPES

    few = ["data.synthetic.num_train=8", "data.synthetic.num_val=4", "schedule.warmup_steps=1"]
    config = load_config("shapes", [*few, "loss.focal_gamma=1.25"], RECIPES)
    first = prepare_run(config, name="first", storage=str(tmp_path))
    stored = tmp_path / "first" / "config.json"
    assert load_config(str(stored), [], RECIPES) == first.config
    assert (first.config.loss.focal_gamma, first.config.model.num_classes) == (1.25, 3)
    changed = load_config(str(stored), ["loss.focal_gamma=2"], RECIPES)
    assert changed == with_overrides(first.config, {"loss.focal_gamma": 2.0})

    tree = json.loads(stored.read_text())
    tree["loss"]["gamma"] = 1
    for text, said in ((json.dumps(tree), "loss.gamma"), ("{", "not valid JSON")):
        stored.write_text(text)
        assert said in refused("train", "--recipe", stored, "--storage", tmp_path)


# --- evaluate.py and predict.py


@KINDS
def test_evaluate(request, kind, tmp_path):
    run_folder, data = request.getfixturevalue(kind)
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


def test_evaluate_refuses(aligned, tmp_path):
    run_folder, data = aligned
    missing = tmp_path / "none"
    message = refused("evaluate", "--checkpoint", missing, "--dataset", data)
    assert f"{missing}: no checkpoint there" in message
    message = refused("evaluate", "--checkpoint", run_folder, "--dataset", missing)
    assert str(missing) in message


@KINDS
def test_predict(request, kind, tmp_path):
    run_folder, data = request.getfixturevalue(kind)
    photo, out = tmp_path / "photo.jpg", tmp_path / "found"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter: 60 pixels wide, and 90 high
    Image.fromarray(np.full((60, 90, 3), 200, np.uint8)).save(photo, exif=exif)
    done = run("predict", photo, "--checkpoint", run_folder, "--out", out, "--device", "cpu")
    assert done.exit_code == 0, done.output
    records = json.loads((out / "predictions.json").read_text())
    names = {category.name for category in PreparedDataset.open(str(data)).info.categories}
    assert {record["class"] for record in records} <= names
    assert {key for record in records for key in record if key.startswith("box_")} == {
        "box_rotated" if kind == "rotated" else "box_xyxy"
    }
    if kind == "aligned":
        boxes = np.array([record["box_xyxy"] for record in records])
        assert (boxes >= 0).all()
        assert (boxes <= np.array([60, 90, 60, 90]) + 1e-3).all()
    height, width, _ = cv2.imread(str(out / "photo.png")).shape
    assert height > width


def test_predict_names_what_it_cannot_read_and_does_the_rest(aligned, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "found"
    folder.mkdir()
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not an image")
    cv2.imwrite(str(folder / "good.png"), np.zeros((64, 64, 3), np.uint8))
    options = ["--checkpoint", aligned[0], "--out", out, "--device", "cpu"]
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
    class WrappedError(Exception):
        def __init__(self, error):
            self._base_exc = error

    boom, closed = WrappedError(RuntimeError("bad images")), WrappedError(ValueError("closed"))
    same = WorkerGroupError("pages of traceback", {1: boom, 0: boom})
    assert cause_of(same) == "RuntimeError: bad images"
    two = WorkerGroupError("pages", {1: boom, 0: closed})
    assert cause_of(two) == "worker 0: ValueError: closed\nworker 1: RuntimeError: bad images"


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


def test_rotated_models_refuse_aligned_data_and_sets_of_other_classes(aligned, rotated, tmp_path):
    options = ["--set", f"data.train={aligned[1]}", "--set", f"data.val={rotated[1]}"]
    options += ["--set", "model.box_type=rotated", "--set", "loss.box_loss=smooth_l1"]
    message = refused("train", "--recipe", "bccd_cpu", "--storage", tmp_path, *options)
    assert (
        f'data.train: {aligned[1]} has no rotated boxes: set model.box_type to "aligned"' in message
    )
    assert "data.val: its classes are not those of data.train" in message
