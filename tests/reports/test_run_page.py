"""The page of a run says how it went and what is wrong, and works with half a folder too."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from retina_ray.cli.app import app
from retina_ray.cli.run import report_of_run
from retina_ray.config import ExperimentConfig, with_overrides
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import Category, Record
from retina_ray.data.prepared.writer import ShardWriter
from retina_ray.data.synthetic.prepare import make_shapes
from retina_ray.errors import DataError
from retina_ray.evaluation.coco import evaluate_coco
from retina_ray.evaluation.predictions_file import (
    PREDICTIONS_FILE,
    PredictionsOrigin,
    predictions_to_parquet,
)
from retina_ray.reports.run.chart import Line, line_chart, thin_out
from retina_ray.reports.run.overlay import JudgedBox, judged_overlay
from retina_ray.reports.run.record import changed_settings, read_run
from retina_ray.reports.run.report import run_report

NASTY = '<script>alert("x")</script>'
runner = CliRunner()

# Three images of 120 x 100 pixels: two cats and a dog; a cat and a crowd of cats; nothing.
CAT, DOG = 10, 20
TRUTH = (
    [(10, 10, 50, 50, 0, 0), (60, 10, 100, 50, 0, 0), (10, 60, 50, 90, 1, 0)],
    [(20, 20, 60, 60, 0, 0), (70, 0, 120, 100, 0, 1)],
    [],
)


def write_set(folder, truth=TRUTH, names=("cat", "dog")):
    """A prepared set; boxes are (x0, y0, x1, y1, label, crowd)."""
    classes = [Category(id=10 * (i + 1), name=name) for i, name in enumerate(names)]
    with ShardWriter(folder, name="pets", split=folder.name, categories=classes) as writer:
        for number, rows in enumerate(truth):
            boxes = np.array([row[:4] for row in rows], np.float32).reshape(-1, 4)
            pixels = np.full((100, 120, 3), 60 + 4 * number, np.uint8)
            writer.add(
                Record(
                    image=cv2.imencode(".png", pixels)[1].tobytes(),
                    file_name=f"{number:03}.png",
                    image_id=700 + number,
                    height=100,
                    width=120,
                    boxes=boxes,
                    labels=np.array([row[4] for row in rows], np.int32),
                    iscrowd=np.array([row[5] for row in rows], bool),
                    area=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
                    annotation_id=10 * number + np.arange(1, len(rows) + 1),
                )
            )
    return PreparedDataset.open(folder)


def found(image, category, box, score):
    """A result from (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = map(float, box)
    bbox = [x0, y0, x1 - x0, y1 - y0]
    return {"image_id": 700 + image, "category_id": category, "bbox": bbox, "score": score}


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


def metric_lines():
    lines = []
    for step in range(10, 61, 10):
        metrics = {"train/loss": 3.0 / step, "train/loss_cls": 2.0 / step, "train/lr": 1e-3}
        metrics |= {"perf/images_per_s": 20.0, "train/epoch": step / 20, "perf/odd": None}
        lines.append({"step": step, "time": 1.7e9 + step, "metrics": metrics})
        if step % 20 == 0:
            figures = {"val/AP": step / 100, "val/AP50": 0.7, "val/APs": None}
            figures |= {"val/AP_cat": 0.5, "val/AP_dog": None}
            lines.append({"step": step, "time": 1.7e9 + step, "metrics": figures})
    return [*lines, {"step": 60, "time": 1.7e9 + 61, "metrics": {}, "status": "finished"}]


def write_run(folder, dataset, *, results=RESULTS, name="pets", lines=None, fingerprint=None):
    """The folder of a run of 60 steps whose best evaluation was the last one."""
    (folder / "checkpoints").mkdir(parents=True)
    config = with_overrides(ExperimentConfig(), {"train.epochs": 3, "loss.box_loss": "giou"})
    (folder / "config.json").write_text(config.model_dump_json())
    run = {"name": name, "train_uri": dataset.uri, "val_uri": dataset.uri, "run_id": "pets-1"}
    (folder / "run.json").write_text(json.dumps(run))
    texts = [json.dumps(line) for line in (metric_lines() if lines is None else lines)]
    (folder / "metrics.jsonl").write_text("".join(f"{text}\n" for text in texts))
    index = {"best": "step-00000060", "last": "step-00000060", "last_step": 60}
    (folder / "checkpoints" / "index.json").write_text(json.dumps(index))
    if results is not None:
        origin = PredictionsOrigin(60, fingerprint or dataset.info.fingerprint)
        (folder / PREDICTIONS_FILE).write_bytes(predictions_to_parquet(results, origin=origin))
    return folder


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("data") / "val")


@pytest.fixture(scope="module")
def run(tmp_path_factory, pets):
    return write_run(tmp_path_factory.mktemp("runs") / "pets", pets)


@pytest.fixture
def copied(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "copy"))


@pytest.fixture(scope="module")
def whole(run):
    return run_report(run)


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def text_in(html, anchor):
    """The words of a section."""
    return text_of(f"<body>{section(html, anchor)}")


def text_of(html):
    """The words of a page with single spaces."""
    body = html.partition("<body>")[2]
    return " ".join("".join(f"{part} " for part in Page(body).text).split())


def section(html, anchor):
    found = re.search(f'<section id="{anchor}">(.*?)</section>', html, re.DOTALL)
    assert found, anchor
    return found[1]


def row_of(html, name):
    cells = re.search(f"<tr><th>{name}</th>(.*?)</tr>", html)
    assert cells, name
    return re.findall("<td[^>]*>(.*?)</td>", cells[1])


def test_what_was_run(whole):
    assert whole.problems == []
    text = text_of(whole.html)
    assert "Run pets" in text
    assert "end finished" in text
    assert "60, 3 of 3 epochs, last checkpoint at 60" in text
    assert "AP 60.0 % at step 60, of 3 evaluations" in text
    assert "of step 60" in text
    settings = section(whole.html, "settings")
    assert re.findall("<tr><th><code>(.*?)</code>", settings) == ["loss.box_loss", "train.epochs"]
    assert "<code>giou</code>" in settings
    assert "<code>smooth_l1</code>" in settings


def test_figures_are_those_of_the_evaluation(whole, pets):
    metrics = evaluate_coco(pets.ground_truth(), RESULTS)
    shown = re.findall(r"<b>(.*?)</b> <span>(\w+)</span>", section(whole.html, "figures"))
    assert len(shown) == 12
    assert dict((name, value) for value, name in shown)["AP50"] == f"{100 * metrics.AP50:.1f}"
    # Cats, by score: hit, wrong place, wrong class, hit, again; three boxes, one not found.
    cats = row_of(section(whole.html, "classes"), "cat")
    ap50 = (34 + 33 * 0.5) / 101  # precision 1 up to recall 1/3, then 2/4 up to 2/3
    assert cats[1] == f"{100 * ap50:.1f}"
    assert cats[3:5] == ["3", "6"]
    assert cats[5:] == ["0.60", "50.0", "66.7", "57.1"]
    dogs = row_of(section(whole.html, "classes"), "dog")
    assert dogs == ["0.0", "0.0", "0.0", "1", "2", "-", "-", "0.0", "0.0"]


def test_errors_and_confusions(whole):
    bars = re.findall(
        r'<div class="cost"><span>(.*?)</span>.*?<span>([^<]*?)</span><p>',
        section(whole.html, "errors"),
    )
    counts = {name: words.partition(" · ")[2] for name, words in bars}
    assert counts == {
        "wrong class": "1", "wrong place": "1", "class and place": "0", "found twice": "1",
        "on background": "2", "missed": "0", "all wrong detections": "", "all boxes not found": "",
    }  # fmt: skip
    confusion = section(whole.html, "confusion")
    assert "score from 0.60 on" in text_in(whole.html, "confusion")
    assert row_of(confusion, "cat") == ["2", "·", "1"]
    assert row_of(confusion, "dog") == ["1", "·", "·"]
    assert row_of(confusion, "background") == ["1", "·", ""]


def test_worst_and_best_images_say_what_is_wrong(whole):
    worst = text_in(whole.html, "worst")
    assert "The image with the lowest F1" in worst
    assert "F1 0.33: 1 of 3 boxes found, 2 detections wrong" in worst
    assert "cat in the wrong place; dog taken for cat." in worst
    assert "000.png, id 700" in worst
    best = text_in(whole.html, "best")
    assert best.index("001.png") < best.index("000.png")
    assert "F1 1.00: 1 of 1 box found Nothing is wrong." in best


def test_boxes_are_drawn_where_they_are(whole):
    shapes = [a for tag, a in Page(section(whole.html, "worst")).tags if tag == "polygon"]
    drawn = {(a["class"], a["points"]) for a in shapes}
    assert ("v-location", "60.0,10.0 100.0,10.0 100.0,30.0 60.0,30.0") in drawn
    assert ("v-class", "10.0,60.0 50.0,60.0 50.0,90.0 10.0,90.0") in drawn
    assert ("v-right", "10.0,10.0 50.0,10.0 50.0,50.0 10.0,50.0") in drawn
    assert ("v-lost lost", "60.0,10.0 100.0,10.0 100.0,50.0 60.0,50.0") in drawn
    assert ("true", "10.0,10.0 50.0,10.0 50.0,50.0 10.0,50.0") in drawn
    assert "cat 0.80: cat in the wrong place, IoU 0.49" in section(whole.html, "worst")


def test_nothing_is_loaded_from_elsewhere(whole):
    page = Page(whole.html)
    links = [v for _, a in page.tags for k, v in a.items() if k in ("src", "href", "srcset")]
    assert [link for link in links if not link.startswith(("data:image/", "#"))] == []
    assert not any(tag in ("script", "link") for tag, _ in page.tags)
    assert "@import" not in whole.html
    assert "url(" not in whole.html
    anchors = {a["id"] for tag, a in page.tags if tag == "section"}
    assert {a["href"][1:] for tag, a in page.tags if tag == "a"} == anchors
    assert "prefers-color-scheme: dark" in whole.html
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", whole.html)
    assert len(pictures) == 3
    for picture in pictures:
        Image.open(io.BytesIO(base64.b64decode(picture))).load()


def test_curves_show_what_was_logged(whole):
    curves = section(whole.html, "curves")
    titles = re.findall("<h3>(.*?)</h3>", curves)
    assert titles == ["Losses", "Validation", "Learning rate", "Images per second"]
    assert "AP is best at step 60: 0.600, and 0.600 at the last evaluation (step 60)." in curves
    assert "val/AP 0.4 at 40" in curves


# Half a folder


def test_without_predictions_the_logged_figures_show(copied):
    (copied / PREDICTIONS_FILE).unlink()
    made = run_report(copied)
    assert any(f"There is no {PREDICTIONS_FILE}" in problem for problem in made.problems)
    assert any("evaluate.py" in problem for problem in made.problems)
    text = text_of(made.html)
    assert "As the run logged them at step 60" in text
    assert row_of(section(made.html, "classes"), "cat") == ["50.0"]
    assert row_of(section(made.html, "classes"), "dog") == ["-"]
    assert "Losses" in text
    for anchor in ("errors", "confusion", "worst", "precision"):
        assert f'id="{anchor}"' not in made.html


def test_a_run_before_its_first_evaluation(tmp_path, pets):
    lines = [line for line in metric_lines() if "val/AP" not in line["metrics"]][:2]
    folder = write_run(tmp_path / "run", pets, results=None, lines=lines)
    (folder / "checkpoints" / "index.json").unlink()
    text = text_of(run_report(folder).html)
    assert "was not evaluated yet" in text
    assert "best evaluation none yet" in text
    assert "still on, or cut off" in text
    assert "20, 1 of 3 epochs" in text


def test_a_run_that_logged_nothing(tmp_path, pets):
    folder = write_run(tmp_path / "run", pets, results=None, lines=[])
    text = text_of(run_report(folder).html)
    assert "nothing was logged yet" in text
    assert "The run logged no figures" in text
    (folder / "metrics.jsonl").unlink()
    assert any("metrics.jsonl is missing" in p for p in run_report(folder).problems)


def test_damaged_lines_are_named_and_the_others_drawn(copied):
    path = copied / "metrics.jsonl"
    texts = path.read_text().splitlines()
    texts[1] = texts[1][:30]
    texts[3] = '{"step": "x", "metrics": {}}'
    path.write_text("\n".join([*texts, '{"step": 70, "met']))
    made = run_report(copied)
    assert any("3 of 11 lines are damaged" in problem for problem in made.problems)
    assert any("line 2, 4, 11" in p for p in made.problems)
    assert "Losses" in text_of(made.html)


def test_damaged_files_leave_the_rest(copied):
    (copied / "config.json").write_text("{")
    (copied / "checkpoints" / "index.json").write_text("[]")
    (copied / PREDICTIONS_FILE).write_bytes(b"PAR1")
    made = run_report(copied)
    text = "\n".join(made.problems)
    assert "config.json cannot be read" in text
    assert "index.json holds no JSON object" in text
    assert f"{PREDICTIONS_FILE}: 4 bytes that are no whole Parquet file" in text
    assert "Losses" in text_of(made.html)


def test_predictions_of_another_data_set(tmp_path, pets):
    folder = write_run(tmp_path / "one", pets, fingerprint="0123456789abcdef")
    problems = "\n".join(run_report(folder).problems)
    assert "is of another data set than" in problems
    assert "0123456789ab against" in problems
    foreign = [found(50, 999, (0, 0, 9, 9), 0.5)]
    folder = write_run(tmp_path / "two", pets, results=foreign)
    problems = "\n".join(run_report(folder).problems)
    assert "image_id not in the ground truth: 750" in problems
    assert "category_id not in the ground truth: 999" in problems
    assert "--data" in problems


def test_a_data_set_that_has_moved(tmp_path):
    dataset = write_set(tmp_path / "val")
    folder = write_run(tmp_path / "run", dataset)
    shutil.move(tmp_path / "val", tmp_path / "moved")
    made = run_report(folder)
    assert any("val set cannot be opened" in p and "--data" in p for p in made.problems)
    assert 'id="worst"' not in made.html
    again = run_report(folder, data=str(tmp_path / "moved"))
    assert 'id="worst"' in again.html
    assert not any("val set" in problem for problem in again.problems)


def test_no_predictions_at_all_and_only_wrong_ones(tmp_path, pets):
    folder = write_run(tmp_path / "none", pets, results=[])
    made = run_report(folder)
    assert made.problems == []
    assert "no AP left to compare" in made.html
    assert "No image has a box that was found" in made.html
    assert "2 x cat missed; dog missed." in text_in(made.html, "worst")
    folder = write_run(tmp_path / "wrong", pets, results=RESULTS[-2:])
    assert "2 x dog on background." in text_in(run_report(folder).html, "worst")


def test_rotated_boxes(tmp_path):
    dataset = make_shapes(
        tmp_path / "val", num_images=3, size_px=64, seed=1, split="val", rotated=True
    )
    dataset = PreparedDataset.open(tmp_path / "val") if dataset is None else dataset
    truth = dataset.ground_truth(box_type="rotated")["annotations"]
    results = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in truth
    ]
    made = run_report(write_run(tmp_path / "run", dataset, results=results[1:]))
    assert made.problems == []
    assert "missed" in text_in(made.html, "worst")
    corners = re.findall(r'class="v-right" points="([^"]+)"', made.html)
    assert corners
    first = np.array([pair.split(",") for pair in corners[0].split()], float)
    assert len(set(first[:, 0])) == 4  # turned: no two corners above one another


def test_many_classes_show_pairs(tmp_path):
    names = [f"class {i}" for i in range(25)]
    truth = [[(10, 10, 50, 50, i, 0)] for i in range(25)]
    dataset = write_set(tmp_path / "val", truth, names)
    results = [found(i, 10 * (i + 1), (10, 10, 50, 50), 0.9) for i in range(24)]
    results.append(found(24, 10, (10, 10, 50, 50), 0.9))
    made = run_report(write_run(tmp_path / "run", dataset, results=results))
    assert row_of(made.html, "class 24 taken for class 0") == ["1", "100.0"]
    assert "Of 25 boxes, 24 are taken for what they are and 0 are not found" in text_of(made.html)
    assert "14 more classes" in made.html  # 25 and the mean, 12 of them open


def test_html_in_names_stays_text(tmp_path):
    dataset = write_set(tmp_path / "val", names=(NASTY, "a&b"))
    folder = write_run(tmp_path / "run", dataset, name=NASTY)
    (folder / "failure.txt").write_text(f"boom {NASTY}")
    (folder / "bad_images.json").write_text(json.dumps({f"{NASTY}.jpg": NASTY}))
    made = run_report(folder)
    page = Page(made.html)
    assert not any(tag == "script" for tag, _ in page.tags)
    text = "".join(page.text)
    assert f"The run failed: boom {NASTY}" in text
    assert f"{NASTY}.jpg: {NASTY}" in text
    assert text.count(NASTY) > 8
    assert "a&b" in text


def test_no_images(run):
    made = run_report(run, num_images=0)
    assert "image/jpeg" not in made.html
    assert 'id="errors"' in made.html
    with pytest.raises(ValueError, match="-1 must not be negative"):
        run_report(run, num_images=-1)


def test_there_is_no_run(tmp_path):
    with pytest.raises(DataError, match=r"holds neither config\.json nor run\.json"):
        run_report(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        run_report(tmp_path / "nothing")


# The parts


def test_settings_of_another_version():
    default = ExperimentConfig().model_dump(mode="json")
    assert changed_settings(default) == []
    newer = default | {"new": {"knob": 1}}
    newer["train"] = default["train"] | {"epochs": 5}
    assert changed_settings(newer) == [("train.epochs", 5, 12), ("new.knob", 1, None)]


def test_the_best_step_is_read_from_old_and_new_indices(copied):
    index = copied / "checkpoints" / "index.json"
    index.write_text(json.dumps({"last": "step-00000040", "best": "step-00000020"}))
    record = read_run(copied)
    assert (record.best_step, record.last_step) == (20, 40)
    index.write_text(json.dumps({"last": "a", "best": "b", "last_step": 41, "best_step": 21}))
    record = read_run(copied)
    assert (record.best_step, record.last_step) == (21, 41)


def test_long_lines_are_averaged():
    x, y, each = thin_out(np.arange(1000.0), np.arange(1000.0) % 2)
    assert each == 5
    assert len(x) == 200
    assert x[0] == 2  # of 0 to 4
    assert y[0] == pytest.approx(0.4)
    x, y, each = thin_out(np.arange(483.0), np.ones(483))
    assert (each, len(x), x[-1]) == (3, 161, 481)
    assert thin_out(np.arange(5.0), np.arange(5.0))[2] == 1


def test_points_stand_where_their_values_are():
    line = Line(np.array([0.0, 10.0]), np.array([0.0, 4.0]), "a", dots=True)
    svg = line_chart([line], x_label="step")
    width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', svg).groups())
    (x0, y0), (x1, y1) = (
        tuple(map(float, point.split(","))) for point in
        re.search('points="(.*?)"', svg)[1].split()
    )  # fmt: skip
    assert 0 < x0 < x1 < width
    assert 0 < y1 < y0 < height  # up is less
    assert svg.count("<circle") == 2
    assert "a 4 at 10" in svg
    flat = line_chart([Line(np.array([5.0]), np.array([0.0]), "b")], x_label="step")
    assert "nan" not in flat.lower()
    assert "nothing to draw" in line_chart([], x_label="step")


def test_words_that_have_no_room_are_left_out_and_broken_boxes_too():
    corners = np.array([[10.0, 10], [40, 10], [40, 40], [10, 40]])
    boxes = [JudgedBox(corners, "lost", "cat not found", "w") for _ in range(5)]
    boxes.append(JudgedBox(np.full((4, 2), np.nan), "right", "x", "w"))
    svg = judged_overlay(boxes, width=100, height=100)
    assert svg.count("<polygon") == 5
    assert 1 <= svg.count("<text") <= 3
    assert "nan" not in svg


# The command


def call(*args):
    return runner.invoke(app, ["run", "report", *map(str, args)])


def test_command_writes_into_the_run(copied):
    done = call(copied)
    assert done.exit_code == 0, done.output
    assert str(copied / "report.html") in done.output
    assert "Run pets" in (copied / "report.html").read_text()
    before = {path.name for path in copied.iterdir()}
    (copied / PREDICTIONS_FILE).unlink()
    done = call(copied)
    assert done.exit_code == 0
    assert "not on the page: There is no predictions.parquet" in done.output
    assert {path.name for path in copied.iterdir()} == before - {PREDICTIONS_FILE}


def test_command_writes_elsewhere_and_takes_a_moved_set(copied, pets, tmp_path):
    text = (copied / "run.json").read_text()
    (copied / "run.json").write_text(text.replace(pets.uri, "/gone"))
    out = tmp_path / "new" / "page.html"
    done = call(copied, "--out", out, "--data", pets.uri, "--num-images", 1)
    assert done.exit_code == 0, done.output
    assert "F1 0.33" in out.read_text()
    assert not (copied / "report.html").exists()


def test_command_reads_and_writes_a_remote_run(copied):
    done = call(f"file://{copied}")
    assert done.exit_code == 0, done.output
    page = (copied / "report.html").read_text()
    assert f"file://{copied}" in page
    assert "F1 0.33" in page
    assert "retina_ray-" not in page  # the folder that it was fetched to


def test_command_says_what_is_wrong(copied, tmp_path):
    for args, words in (
        ((tmp_path / "nothing",), "no such folder"),
        ((tmp_path,), "there is no run"),
        ((f"file://{tmp_path}/nothing",), "there is no run"),
        ((copied, "--out", tmp_path), "is a folder"),
        ((copied, "--out", "s3://bucket/page.html"), "a local file is needed"),
        ((copied, "--num-images", -1), "num-images"),
    ):
        done = call(*args)
        assert done.exit_code == 2, (args, done.output)
        assert words in done.output, done.output
        assert "Traceback" not in done.output


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
