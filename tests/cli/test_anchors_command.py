import json

import pytest
from anchor_sets import simple_config, squares, write_set
from typer.testing import CliRunner

from retina_ray.cli.data import data_app

RECIPES = """
from retina_ray.config import AnchorConfig, ExperimentConfig, ModelConfig, InputConfig

def small():
    anchors = AnchorConfig(sizes=(8.0, 16.0, 32.0))
    return ExperimentConfig(
        model=ModelConfig(max_level=5, anchors=anchors),
        input=InputConfig(train_sizes_px=(256,), train_max_size_px=300),
    )

RECIPES = {"small": small}
"""


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """A folder of splits: squares of 100 px in `train`, a few others in `val`."""
    root = tmp_path_factory.mktemp("splits")
    write_set(root / "train", squares(100, 12), size=(256, 256))
    write_set(root / "val", squares(30, 3), size=(256, 256))
    (root / "recipes.py").write_text(RECIPES)
    return root


def run(*options):
    arguments = ["anchors", *map(str, options)]
    return CliRunner().invoke(data_app, arguments, env={"COLUMNS": "160"})


def test_a_recipe_whose_anchors_are_too_small(splits, tmp_path):
    """Anchors of up to 51 px under squares of 100: 2581 / 10000 at most."""
    file = tmp_path / "new" / "metrics.json"
    result = run(splits, "--recipe", "small", "--recipes", splits / "recipes.py", "--json", file)
    assert result.exit_code == 0, result.output
    assert f"{splits}/train: all 12 images, shorter side 256 px, 12 boxes" in result.output
    assert "Proposed: 100.0 % of the boxes of a class reached instead of 0.0 %" in result.output
    assert "--set model.anchors." in result.output
    tree = json.loads(file.read_text())
    assert tree["current"]["overall"]["recall"] == 0
    assert tree["current"]["overall"]["mean_iou"] == pytest.approx(0.258, abs=0.001)
    assert tree["proposed"]["overall"]["recall"] == 1
    assert tree["clusters"]["width_height_px"][0] == pytest.approx([100, 100])

    changes = [part for change in tree["set"] for part in ("--set", change)]
    assert " ".join(changes) in result.output
    better = run(
        splits, "--recipe", "small", "--recipes", splits / "recipes.py", *changes, "--json", file
    )
    assert "keep them" in better.output
    assert json.loads(file.read_text())["current"]["overall"]["recall"] == 1


def test_recipes_are_looked_for_where_the_command_runs(splits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(splits, "--recipe", "small")
    assert result.exit_code == 2
    assert "experiments/recipes.py" in result.output
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "recipes.py").write_text(RECIPES)
    assert run(splits, "--recipe", "small").exit_code == 0


def test_a_stored_config_and_a_single_split(splits, tmp_path):
    stored = tmp_path / "config.json"
    config = simple_config(**{"input.train_sizes_px": (256,), "input.train_max_size_px": 256})
    stored.write_text(config.model_dump_json())
    result = run(splits / "val", "--recipe", stored, "--images", 2)
    assert result.exit_code == 0, result.output
    assert "2 images drawn from 3" in result.output


def test_without_a_recipe_the_plain_config_is_taken(splits):
    result = run(splits, "--images", 2)
    assert result.exit_code == 0, result.output
    assert "640, 672, 704, 736, 768, 800 px, 12 boxes, each counted at each size" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--recipe", "smal"), "did you mean small?"),
        (("--recipe", "nowhere.json"), "nowhere.json"),
        (("--set", "model.anchors.scael=2"), "did you mean model.anchors.scale?"),
        (("--set", "model.anchors.scale=-1"), "model.anchors.scale"),
        (("--set", "model.box_type=rotated"), "aligned boxes only"),
        (("--set", "input.min_box_size_px=5000"), "no box is left"),
    ],
)
def test_faults_of_the_user_end_with_2(splits, options, message):
    result = run(splits, "--recipes", splits / "recipes.py", *options)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_what_is_no_data_set_ends_with_2(tmp_path):
    empty = run(tmp_path)
    assert empty.exit_code == 2
    assert "holds no dataset.json" in empty.output
    absent = run(tmp_path / "absent")
    assert absent.exit_code == 2
    assert "no such folder" in absent.output


def test_metrics_that_cannot_be_written_end_with_2(splits, tmp_path):
    (tmp_path / "file").write_text("")
    result = run(splits, "--images", 1, "--json", tmp_path / "file" / "metrics.json")
    assert result.exit_code == 2
    assert "--json" in result.output
