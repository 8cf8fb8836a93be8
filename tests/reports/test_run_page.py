"""The page of a run says how it went and what is wrong, and works with half a folder too."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from page_inputs import Page, found, metric_lines, write_run, write_set
from rich.console import Console
from typer.testing import CliRunner

from retina_ray.cli.app import app
from retina_ray.cli.run import report_of_run
from retina_ray.config import ExperimentConfig
from retina_ray.data.synthetic.prepare import make_shapes
from retina_ray.evaluation.coco import evaluate_coco
from retina_ray.evaluation.predictions_file import PREDICTIONS_FILE
from retina_ray.reports.html.overlay import Box, make_overlay
from retina_ray.reports.run.progress import thin_out
from retina_ray.reports.run.record import changed_settings, read_run
from retina_ray.reports.run.report import run_report

# Three images of 120 x 100 pixels: two cats and a dog; a cat and a crowd of cats; nothing.
CAT, DOG = 10, 20
TRUTH = (
    [(10, 10, 50, 50, 0, 0), (60, 10, 100, 50, 0, 0), (10, 60, 50, 90, 1, 0)],
    [(20, 20, 60, 60, 0, 0), (70, 0, 120, 100, 0, 1)],
    [],
)
RESULTS = [
    found(0, CAT, (10, 10, 50, 50), 0.9),
    found(0, CAT, (60, 10, 100, 29.98), 0.8),  # IoU 0.4995, which must not read 0.50
    found(0, CAT, (10, 60, 50, 90), 0.7),  # the dog
    found(1, CAT, (20, 20, 60, 60), 0.6),
    found(1, CAT, (21, 20, 60, 60), 0.55),  # again
    found(1, CAT, (75, 10, 95, 30), 0.5),  # in the crowd
    found(2, DOG, (0, 0, 30, 30), 0.45),  # background
    found(2, DOG, (50, 50, 80, 80), 0.06),
]

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    return write_pets(tmp_path_factory.mktemp("data") / "val")


@pytest.fixture(scope="module")
def run(tmp_path_factory, pets):
    return write_run(tmp_path_factory.mktemp("runs") / "pets", pets, results=RESULTS)


@pytest.fixture
def copied(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "copy"))


@pytest.fixture(scope="module")
def whole(run):
    report = run_report(run)
    assert report.problems == []
    return Page(report.html)


def write_pets(folder, truth=TRUTH, names=("cat", "dog")):
    return write_set(folder, truth, names, size=(120, 100), name="pets")


def page_of(folder, **options):
    return Page(run_report(folder, **options).html)


def test_what_was_run(whole):
    assert "Run pets" in whole.text()
    assert whole.row("end") == ["finished"]
    assert whole.row("steps") == ["60, 3 of 3 epochs, last checkpoint at 60"]
    assert whole.row("best evaluation") == ["AP 60.0 % at step 60, of 3 evaluations"]
    assert whole.row("predictions") == ["of step 60"]
    settings = [cells for where, cells in whole.rows if where == "settings"]
    assert settings[1:] == [["loss.box_loss", "giou", "smooth_l1"], ["train.epochs", "3", "12"]]


def test_figures_are_those_of_the_evaluation(whole, pets):
    metrics = evaluate_coco(pets.ground_truth(), RESULTS)
    assert f"{100 * metrics.AP50:.1f} AP50 at IoU 0.50" in whole.text("figures")
    assert f"{100 * metrics.AP:.1f} AP mean over IoU" in whole.text("figures")
    # Cats, by score: hit, wrong place, wrong class, hit, again; three boxes, one not found.
    cats = whole.row("cat", "classes")
    ap50 = (34 + 33 * 0.5) / 101  # precision 1 up to recall 1/3, then 2/4 up to 2/3
    assert cats[1] == f"{100 * ap50:.1f}"
    assert cats[3:5] == ["3", "6"]
    assert cats[5:] == ["0.60", "50.0", "66.7", "57.1"]
    dogs = whole.row("dog", "classes")
    assert dogs == ["0.0", "0.0", "0.0", "1", "2", "-", "-", "0.0", "0.0"]


def test_errors_and_confusions(whole):
    errors = whole.text("errors")
    counts = {"wrong class": 1, "wrong place": 1, "class and place": 0, "found twice": 1}
    for kind, number in {**counts, "on background": 2, "missed": 0}.items():
        assert re.search(rf" {kind} [+-][\d.]+ AP50 · {number} ", errors), kind
    assert "score from 0.60 on" in whole.text("confusion")
    assert whole.row("cat", "confusion") == ["2", "·", "1"]
    assert whole.row("dog", "confusion") == ["1", "·", "·"]
    assert whole.row("background", "confusion") == ["1", "·", ""]


def test_worst_and_best_images_say_what_is_wrong(whole):
    worst = whole.text("worst")
    assert "The image with the lowest F1" in worst
    assert "F1 0.33: 1 of 3 boxes found, 2 detections wrong" in worst
    assert "cat in the wrong place; dog taken for cat." in worst
    assert "000.png, id 500" in worst
    best = whole.text("best")
    assert best.index("001.png") < best.index("000.png")
    assert "F1 1.00: 1 of 1 box found Nothing is wrong." in best


def test_boxes_are_drawn_where_they_are(whole):
    drawn = {(a["class"], a["points"]) for a in whole.all("polygon")}
    assert ("v-location", "60.0,10.0 100.0,10.0 100.0,30.0 60.0,30.0") in drawn
    assert ("v-class", "10.0,60.0 50.0,60.0 50.0,90.0 10.0,90.0") in drawn
    assert ("v-right", "10.0,10.0 50.0,10.0 50.0,50.0 10.0,50.0") in drawn
    assert ("v-lost lost", "60.0,10.0 100.0,10.0 100.0,50.0 60.0,50.0") in drawn
    assert ("true", "10.0,10.0 50.0,10.0 50.0,50.0 10.0,50.0") in drawn
    assert "cat 0.80: cat in the wrong place, IoU 0.49" in whole.text("worst")


def test_curves_show_what_was_logged(whole):
    curves = whole.text("curves")
    for title in ("Losses", "Validation", "Learning rate", "Images per second"):
        assert title in curves
    assert "train/loss_cls" in curves
    assert "AP is best at step 60: 0.600, and 0.600 at the last evaluation (step 60)." in curves


# Half a folder


METRIC_TEXTS = [json.dumps(line) for line in metric_lines()]
TORN = "\n".join(['{"step": "x", "metrics": {}}', *METRIC_TEXTS, '{"step'])
NO_JSON = {"config.json": "{", "checkpoints/index.json": "[]"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({PREDICTIONS_FILE: None}, ["There is no predictions.parquet", "evaluate.py"]),
        ({"metrics.jsonl": None}, ["metrics.jsonl is missing"]),
        ({"metrics.jsonl": TORN}, ["2 of 12 lines are damaged", "line 1, 12"]),
        (NO_JSON, ["config.json cannot be read", "index.json holds no JSON object"]),
        ({PREDICTIONS_FILE: "PAR1"}, ["predictions.parquet: 4 bytes that are no whole Parquet"]),
    ],
)
def test_what_is_missing_or_damaged_is_told_and_the_rest_shown(copied, changes, told):
    for name, text in changes.items():
        if text is None:
            (copied / name).unlink()
        else:
            (copied / name).write_text(text)
    made = run_report(copied)
    for words in told:
        assert any(words in problem for problem in made.problems), words
    page = Page(made.html)
    assert ("Losses" in page.text("curves")) == ("metrics.jsonl is missing" not in told)
    assert ("worst" in page.sections) == (PREDICTIONS_FILE not in changes)


def test_without_predictions_the_logged_figures_show(copied):
    (copied / PREDICTIONS_FILE).unlink()
    page = page_of(copied)
    assert "As the run logged them at step 60" in page.text("figures")
    assert page.row("cat", "classes") == ["50.0"]
    assert page.row("dog", "classes") == ["-"]
    assert page.sections == ["figures", "curves", "classes", "settings"]


def test_a_run_before_its_first_evaluation(tmp_path, pets):
    lines = [line for line in metric_lines() if "val/AP" not in line["metrics"]][:2]
    folder = write_run(tmp_path / "run", pets, results=None, lines=lines)
    (folder / "checkpoints" / "index.json").unlink()
    page = page_of(folder)
    assert "was not evaluated yet" in page.text("figures")
    assert page.row("best evaluation") == ["none yet"]
    assert "still on, or cut off" in page.row("end")[0]
    assert "20, 1 of 3 epochs" in page.row("steps")[0]


def test_a_run_that_logged_nothing(tmp_path, pets):
    folder = write_run(tmp_path / "run", pets, results=None, lines=[])
    page = page_of(folder)
    assert page.row("end") == ["nothing was logged yet"]
    assert "The run logged no metrics" in page.text("curves")


@pytest.mark.parametrize(
    ("results", "fingerprint", "told"),
    [
        ([], "0123456789abcdef", ["is of another data set than", "0123456789ab against"]),
        (
            *([found(50, 999, (0, 0, 9, 9), 0.5)], None),
            ["image_id not in the ground truth: 550", "category_id not in", "--data"],
        ),
    ],
)
def test_predictions_of_another_data_set(tmp_path, pets, results, fingerprint, told):
    run = write_run(tmp_path / "run", pets, results=results, fingerprint=fingerprint)
    problems = "\n".join(run_report(run).problems)
    assert [words for words in told if words not in problems] == []


def test_a_data_set_that_has_moved(tmp_path):
    dataset = write_pets(tmp_path / "val")
    folder = write_run(tmp_path / "run", dataset, results=RESULTS)
    shutil.move(tmp_path / "val", tmp_path / "moved")
    made = run_report(folder)
    assert any("val set cannot be opened" in p and "--data" in p for p in made.problems)
    assert "worst" not in Page(made.html).sections
    again = run_report(folder, data=str(tmp_path / "moved"))
    assert "worst" in Page(again.html).sections
    assert not any("val set" in problem for problem in again.problems)


def test_no_predictions_at_all_and_only_wrong_ones(tmp_path, pets):
    folder = write_run(tmp_path / "none", pets, results=[])
    page = page_of(folder)
    assert "Missing or damaged" not in page.text()
    assert "no AP left to compare" in page.text("errors")
    assert "No image has a box that was found" in page.text("best")
    assert "2 x cat missed; dog missed." in page.text("worst")
    folder = write_run(tmp_path / "wrong", pets, results=RESULTS[-2:])
    assert "2 x dog on background." in page_of(folder).text("worst")


def test_rotated_boxes(tmp_path):
    dataset = make_shapes(
        tmp_path / "val", num_images=3, size_px=64, seed=1, split="val", rotated=True
    )
    truth = dataset.ground_truth(box_type="rotated")["annotations"]
    results = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in truth
    ]
    made = run_report(write_run(tmp_path / "run", dataset, results=results[1:]))
    assert made.problems == []
    page = Page(made.html)
    assert "missed" in page.text("worst")
    corners = page.all("polygon", "v-right")[0]["points"]
    first = np.array([pair.split(",") for pair in corners.split()], float)
    assert len(set(first[:, 0])) == 4  # turned: no two corners above one another


def test_many_classes_show_pairs(tmp_path):
    names = [f"class {i}" for i in range(21)]
    truth = [[(10, 10, 50, 50, i, 0)] for i in range(21)]
    dataset = write_pets(tmp_path / "val", truth, names)
    results = [found(i, 10 * (i + 1), (10, 10, 50, 50), 0.9) for i in range(20)]
    results.append(found(20, 10, (10, 10, 50, 50), 0.9))
    page = page_of(write_run(tmp_path / "run", dataset, results=results))
    assert page.row("class 20 taken for class 0") == ["1", "100.0"]
    words = "Of 21 boxes, 20 are taken for what they are and 0 are not found"
    assert words in page.text("confusion")
    assert "10 more classes" in page.text("precision")  # 21 and the mean, 12 of them open


def test_no_images(run):
    made = run_report(run, num_images=0)
    assert "image/jpeg" not in made.html
    assert "errors" in Page(made.html).sections
    with pytest.raises(ValueError, match="-1 must not be negative"):
        run_report(run, num_images=-1)


# The parts


def test_settings_of_another_version():
    default = ExperimentConfig().model_dump(mode="json")
    assert changed_settings(default) == []
    newer = default | {"new": {"knob": 1}}
    newer["train"] = default["train"] | {"epochs": 5}
    assert changed_settings(newer) == [("train.epochs", 5, 12), ("new.knob", 1, None)]


@pytest.mark.parametrize(
    ("index", "steps"),
    [
        ({"last": "step-00000040", "best": "step-00000020"}, (20, 40)),
        ({"last": "a", "best": "b", "last_step": 41, "best_step": 21}, (21, 41)),
    ],
)
def test_the_best_step_is_read_from_old_and_new_indices(copied, index, steps):
    (copied / "checkpoints" / "index.json").write_text(json.dumps(index))
    record = read_run(copied)
    assert (record.best_step, record.last_step) == steps


def test_long_lines_are_averaged():
    x, y, each = thin_out(np.arange(998.0), np.arange(998.0) % 2)
    assert (each, len(x)) == (5, 200)
    assert (x[0], x[-1]) == (2, 996)  # of 0 to 4, and of the three that are left
    assert y[0] == pytest.approx(0.4)
    assert thin_out(np.arange(5.0), np.arange(5.0))[2] == 1


def square(x, side, **options):
    corners = np.array([[x, 50], [x + side, 50], [x + side, 50 + side], [x, 50 + side]], float)
    return Box(corners, "c0", str(side), **options)


def test_labels_that_have_no_room_are_left_out_and_broken_boxes_too():
    boxes = [square(10, 30, label=f"cat {i} not found") for i in range(5)]
    overlay = make_overlay([*boxes, square(np.nan, 30)], 100, 100)
    assert len(overlay.boxes) == 5
    assert 1 <= len(overlay.labels) <= 3


def test_small_boxes_lie_above_large_ones_and_equal_labels_end():
    boxes = [square(*place, label="cat") for place in ((5, 10), (200, 30), (400, 20))]
    overlay = make_overlay([*boxes, square(300, 5, label="cat", below=True)], 640, 480)
    assert [one.title for one in overlay.boxes] == ["5", "30", "20", "10"]
    assert len(overlay.labels) == 2


# The command


def call(*args):
    done = CliRunner().invoke(app, ["run", "report", *map(str, args)])
    assert done.exit_code == 0, done.output
    return done.output


def test_command_writes_into_the_run_and_says_what_is_missing(copied):
    (copied / PREDICTIONS_FILE).unlink()
    before = {path.name for path in copied.iterdir()}
    output = call(copied)
    assert str(copied / "report.html") in output
    assert "not on the page: There is no predictions.parquet" in output
    assert "Run pets" in (copied / "report.html").read_text()
    assert {path.name for path in copied.iterdir()} == {*before, "report.html"}


def test_command_takes_a_moved_set(copied, pets, tmp_path):
    text = (copied / "run.json").read_text()
    (copied / "run.json").write_text(text.replace(pets.uri, "/gone"))
    out = tmp_path / "page.html"
    call(copied, "--out", out, "--data", pets.uri, "--num-images", 1)
    assert "F1 0.33" in out.read_text()
    assert not (copied / "report.html").exists()


def test_command_reads_and_writes_a_remote_run(copied):
    call(f"file://{copied}")
    page = (copied / "report.html").read_text()
    assert f"file://{copied}" in page
    assert "F1 0.33" in page
    assert "retina_ray-" not in page  # the folder that it was fetched to


def test_a_page_that_cannot_be_made_does_not_fail_the_run(copied, tmp_path):
    out = io.StringIO()
    console = Console(file=out)
    assert report_of_run(str(copied), console=console) == str(copied / "report.html")
    assert out.getvalue() == ""
    assert report_of_run(str(tmp_path / "nothing"), console=console) is None
    assert "the run's page was not written" in out.getvalue()
    (copied / "report.html").unlink()
    (copied / "report.html").mkdir()
    assert report_of_run(str(copied), console=console) is None
