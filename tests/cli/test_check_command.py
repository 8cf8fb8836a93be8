"""`retina-ray data check` from outside: what it prints, writes and returns."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from check_sources import CocoSource, jpeg, picture
from typer.testing import CliRunner

from retina_ray.checks import findings as check_findings
from retina_ray.checks import images as check_images
from retina_ray.cli.data import check as data_check
from retina_ray.cli.data import data_app
from retina_ray.config import ExperimentConfig, with_overrides
from retina_ray.data.images.probe import probe_image


@pytest.fixture
def source(tmp_path) -> CocoSource:
    (tmp_path / "set").mkdir()
    return CocoSource(tmp_path / "set")


def run(root: Path | str, *options: str):
    return CliRunner().invoke(data_app, ["check", str(root), *options], env={"COLUMNS": "200"})


def test_an_error_ends_with_1_and_says_where_and_what_to_do(source):
    source.add_box([5, 5, 0, 8])
    result = run(source.write())
    assert result.exit_code == 1
    assert "(coco)" in result.output
    assert "box of zero or negative size" in result.output
    assert "1.jpg, image 1, annotation 999" in result.output
    assert "--on-bad-box drop" in result.output
    assert "1 error, 0 warnings" in result.output


def test_warnings_end_with_0_unless_strict(source):
    source.put("train", "3.jpg", jpeg(picture(1), 50))
    root = source.write()
    assert run(root).exit_code == 0
    strict = run(root, "--strict")
    assert strict.exit_code == 1
    assert "0 errors, 1 warning" in strict.output
    assert run(root, "--strict", "--no-decode").exit_code == 0


def test_what_is_no_data_set_ends_with_2(tmp_path):
    for place in (tmp_path, tmp_path / "absent"):
        result = run(place)
        assert result.exit_code == 2
        assert str(place) in result.output
    assert run(tmp_path, "--no-such-option").exit_code == 2


def test_what_cannot_be_read_at_all_ends_with_2(source, tmp_path, monkeypatch):
    root = source.write()
    (root / "annotations" / "instances_val.json").write_text("{")
    one = run(root)
    assert one.exit_code == 1  # the other split was checked
    assert "1 error, 0 warnings" in one.output
    (root / "annotations" / "instances_train.json").write_text("{")
    none = run(root, "--json", str(tmp_path / "report.json"))
    assert none.exit_code == 2
    assert none.output.rstrip().endswith("could not be checked: none of its splits can be read")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["verdict"], report["num_errors"], report["splits"]) == ("errors", 2, [])
    assert "cannot be read as JSON" in report["findings"][0]["cases"][1]["message"]

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(data_check, "check_dataset", refuse)
    refused = run(root)
    assert refused.exit_code == 2
    assert f"{root}: cannot be read ([Errno 13] Permission denied)" in refused.output


def test_a_storage_that_does_not_answer_ends_with_3(monkeypatch):
    """Not with 1, as elsewhere: that says that the data set has issues."""
    monkeypatch.setenv("RETINA_RAY_STORAGE_RETRY_S", "0")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    # Nobody listens at port 9, of discarding; the region is given so that nobody is asked for it.
    place = "s3://bucket/set?scheme=http&endpoint_override=127.0.0.1%3A9&region=here"
    result = run(place)
    assert result.exit_code == 3, result.output
    assert "the storage did not answer" in result.output
    assert "Traceback" not in result.output


def test_the_exit_codes_are_in_the_help():
    text = " ".join(run("--help").output.split())
    assert "3 a storage that does not answer" in text


def test_more_cases_than_are_shown_are_counted(source):
    for i in range(5):
        source.add_box([5, 5, 0, 8], id=900 + i)
    root = source.write()
    output = run(root, "--examples", "2").output
    assert "annotation 901" in output
    assert "annotation 902" not in output
    assert "and 3 more" in output
    assert "annotation 904" in run(root, "--examples", "9").output
    assert "annotation 900" not in run(root, "--examples", "0").output


def test_json_holds_every_case(source, tmp_path):
    for i in range(5):
        source.add_box([float("nan"), 5, 3, 8], id=900 + i)
    source.put("train", "3.jpg", jpeg(picture(1), 50))
    target = tmp_path / "report.json"
    assert run(source.write(), "--json", str(target)).exit_code == 1
    report = json.loads(target.read_text())
    assert (report["check_version"], report["layout"], report["verdict"]) == (2, "coco", "errors")
    assert (report["num_errors"], report["num_warnings"]) == (5, 1)
    assert report["splits"][0] == {
        "name": "train",
        "num_images": 3,
        "num_empty_images": 0,
        "num_boxes": 6,
        "num_crowd": 0,
        "class_counts": {"cat": 3, "dog": 3},
    }
    finding, other = report["findings"]
    assert (finding["kind"], finding["severity"], finding["count"]) == (
        "box is not finite",
        "error",
        5,
    )
    assert finding["cases"][4] == {
        "split": "train",
        "file": "1.jpg",
        "image_id": 1,
        "annotation_id": 904,
        "message": "XYXY (nan, 5, nan, 13) holds NaN or infinity",
    }
    assert other["kind"] == "near-duplicate images"


def test_json_of_a_kind_without_end_is_counted_but_cut(source, tmp_path, monkeypatch):
    monkeypatch.setattr(check_findings, "MAX_LISTED", 2)
    for i in range(5):
        source.add_box([5, 5, 0, 8], id=900 + i)
    target = tmp_path / "report.json"
    run(source.write(), "--json", str(target))
    (finding,) = json.loads(target.read_text())["findings"]
    assert (finding["count"], len(finding["cases"])) == (5, 2)


def test_json_takes_the_place_of_an_older_one_whole(source, tmp_path):
    target, same = tmp_path / "report.json", tmp_path / "opened before"
    target.write_text("older")
    os.link(target, same)
    assert run(source.write(), "--json", str(target)).exit_code == 0
    assert json.loads(target.read_text())["verdict"] == "clean"
    assert same.read_text() == "older"  # whoever reads it now gets all of it
    assert [path.name for path in tmp_path.iterdir() if "report" in path.name] == ["report.json"]


def test_json_is_written_through_a_link_which_stays(source, tmp_path):
    """As `/dev/stdout` is one, which must never be replaced by a file."""
    target, link = tmp_path / "report.json", tmp_path / "link"
    link.symlink_to(target)
    for _ in range(2):
        assert run(source.write(), "--json", str(link)).exit_code == 0
        assert link.is_symlink()
        assert json.loads(target.read_text())["verdict"] == "clean"
        target.write_text("older")


def test_json_that_cannot_be_written_ends_with_2(source, tmp_path):
    result = run(source.write(), "--json", str(tmp_path))
    assert result.exit_code == 2
    assert f"--json {tmp_path}: cannot be written" in result.output


def test_json_alone_is_what_goes_to_the_output(source):
    result = run(source.write(), "--json", "-")
    assert json.loads(result.stdout)["verdict"] == "clean"
    assert "clean" in result.stderr


def test_json_to_a_folder_that_is_absent_is_refused_before_anything_is_read(source, monkeypatch):
    monkeypatch.setattr(data_check, "check_dataset", lambda *_, **__: pytest.fail("was read"))
    result = run(source.write(), "--json", "/nowhere/report.json")
    assert result.exit_code == 2
    assert "--json /nowhere/report.json: there is no folder /nowhere" in result.output


@pytest.mark.parametrize(
    ("options", "is_found"),
    [
        ([], False),
        (["--train-size", "23"], True),
        (["--train-max-size", "31"], True),
        (["--recipe", "{stored}"], True),
        (["--recipe", "{stored}", "--train-size", "25"], False),
        (["--recipe", "mine", "--recipes", "{recipes}"], True),
    ],
)
def test_the_training_size_comes_from_options_or_a_recipe(source, tmp_path, options, is_found):
    source.add_box([5, 5, 2, 20])
    stored, recipes = tmp_path / "recipe.json", tmp_path / "recipes.py"
    config = with_overrides(ExperimentConfig(), {"input.train_sizes_px": [800, 23]})
    stored.write_text(config.model_dump_json())
    recipes.write_text(
        "from retina_ray.config import ExperimentConfig, from_json\n"
        f"RECIPES = {{'mine': lambda: from_json(ExperimentConfig, open({str(stored)!r}).read())}}"
    )
    options = [option.format(stored=stored, recipes=recipes) for option in options]
    assert ("under a pixel" in run(source.write(), *options).output) == is_found


def test_a_recipe_that_is_not_there_ends_with_2(source):
    result = run(source.write(), "--recipe", "absent.json")
    assert result.exit_code == 2
    assert "absent.json" in result.output


def test_names_with_brackets_are_shown_as_they_are(source):
    source.splits["train"]["images"][0]["file_name"] = "[red]1[/].jpg"
    result = run(source.write())
    assert result.exit_code == 1
    assert "[red]1[/].jpg" in result.output


def test_interrupted_it_ends_with_130(source, monkeypatch):
    """By Ctrl-C while a thread reads an image."""
    is_first = iter([True])

    def probe(*args, **options):
        if next(is_first, False):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
        return probe_image(*args, **options)

    monkeypatch.setattr(check_images, "probe_image", probe)
    # A shell starts what it runs in the background deaf to Ctrl-C, and that is inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = run(source.write())
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130, result.output
    assert "interrupted" in result.output
    assert "Traceback" not in result.output
