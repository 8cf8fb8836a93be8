"""`retina-ray data import` from outside: what it writes, prints and returns."""

import shutil
from pathlib import Path

import pytest
from import_sources import DOG, SOURCES, Box, VocSource, YoloSource, contents
from typer.testing import CliRunner

from retina_ray.cli.data import data_app
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.prepared.dataset import PreparedDataset

ZERO = Box((5, 5, 5, 9))


def places(source) -> list[str]:
    """The format and where the source lies, as options of the command."""
    root = source.write()
    if source.format == "coco":
        json, images = root / "annotations/instances_train.json", root / "train"
        return ["coco", "--annotations", str(json), "--images", str(images)]
    if source.format == "voc":
        return ["voc", "--source", str(root)]
    return ["yolo", "--data", str(root / "data.yaml")]


def run(source, *options):
    return invoke(*places(source), "--out", source.root.parent / "out", *options)


def invoke(*arguments):
    command = ["import", *map(str, arguments)]
    return CliRunner().invoke(data_app, command, env={"COLUMNS": "200"})


def opened(source, split="train") -> PreparedDataset:
    return PreparedDataset.open(source.root.parent / "out" / split)


@pytest.fixture(params=["coco", "voc", "yolo"])
def source(request, tmp_path):
    return SOURCES[request.param](tmp_path)


def test_the_command_writes_what_the_importer_writes(source):
    done = run(source, "--name", "mine", "--max-size", 32, "--rows-per-group", 2)
    assert done.exit_code == 0, done.output
    assert f"boxes of {DOG}" in done.output
    expected = source.run(out="api", name="mine", max_size_px=32, rows_per_group=2)
    assert opened(source).fingerprint == expected.fingerprint
    assert opened(source).info.name == "mine"


def test_faults_end_with_2_and_can_be_dropped(source):
    source.add("c", ZERO)
    done = run(source)
    assert done.exit_code == 2
    assert "Nothing was written." in done.output
    assert f"{source.file_name('c')}, image 3, annotation 4" in done.output
    assert "--on-bad-box drop" in done.output
    assert not contents(source.root.parent / "out")
    done = run(source, "--on-bad-box", "drop")
    assert done.exit_code == 0, done.output
    assert opened(source).report["dropped_boxes"] == 1


def test_every_shared_option_is_an_option_of_every_command():
    for format in ("coco", "voc", "yolo"):
        text = invoke(format, "--help").output
        for name in ImportOptions.model_fields:
            assert f"--{name.removesuffix('_px').replace('_', '-')}" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["coco", "--source", "nowhere"], "no such folder of images"),
        (["coco"], "either --source"),
        (["voc", "--source", "nowhere"], "not a VOC data set"),
        (["voc", "--source", "nowhere", "--splits", ","], "at least one split"),
        (["voc", "--source", "nowhere", "--on-bad-box", "mend"], "mend"),
        (["voc", "--source", "nowhere", "--max-size", "0"], "--max-size"),
        (["voc", "--source", "nowhere", "--name", ""], "name"),
        (["yolo", "--data", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["yolo", "--data", "nosuch://a/b.yaml"], "not a storage that pyarrow knows"),
    ],
)
def test_wrong_usage_ends_with_2(tmp_path, arguments, message):
    done = invoke(*arguments, "--out", tmp_path)
    assert done.exit_code == 2
    assert message in done.output


def test_a_split_that_is_there_stays_and_the_missing_one_is_written(tmp_path):
    source = YoloSource(tmp_path)
    assert run(source).exit_code == 0
    before = contents(tmp_path / "out" / "train")
    (tmp_path / "out" / "val" / "dataset.json").unlink()  # as after a kill between the splits
    assert run(source).exit_code == 0
    assert contents(tmp_path / "out" / "train") == before
    assert opened(source, "val").num_images == 1
    shutil.rmtree(tmp_path / "out" / "val")
    source.splits["val"]["d"].append(ZERO)
    assert run(source).exit_code == 2
    assert contents(tmp_path / "out" / "train") == before  # it was there before
    assert not contents(tmp_path / "out" / "val")


def test_overwriting_loses_no_split_to_faults_of_another(tmp_path):
    source, out = VocSource(tmp_path), tmp_path / "out"
    assert run(source, "--overwrite").exit_code == 0
    first = contents(out)
    source.splits["val"]["d"] = [ZERO]
    source.splits["train"]["c"] = [ZERO]
    done = run(source, "--overwrite")
    assert done.exit_code == 2
    assert "Nothing was written. As it was before: train, val. 2 faults" in done.output
    assert contents(out) == first
    source.splits["train"]["c"] = [Box((1, 1, 6, 6))]
    done = run(source, "--overwrite")
    assert done.exit_code == 2
    assert "in place of what was there: train; nothing else. As it was before: val." in done.output
    assert contents(out / "val") == {n[4:]: b for n, b in first.items() if n.startswith("val/")}
    assert opened(source).ground_truth()["annotations"][2]["bbox"] == [1, 1, 5, 5]


def test_new_splits_go_again_where_another_has_faults(tmp_path):
    source = VocSource(tmp_path)
    assert run(source, "--splits", "val").exit_code == 0
    before = contents(tmp_path / "out")
    source.splits["val"]["d"] = [ZERO]
    assert run(source, "--overwrite").exit_code == 2
    assert contents(tmp_path / "out") == before


def test_what_stops_an_overwriting_leaves_the_set_that_was_there(tmp_path):
    source = VocSource(tmp_path)
    options = ("--splits", "train", "--overwrite")
    in_the_way = Path(tmp_path / "out" / "train" / "_import")  # where a folder has to be made
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("")
    done = run(source, *options)
    assert done.exit_code == 1
    assert "train: stopped: " in done.output
    assert "as it was" not in done.output
    in_the_way.unlink()
    assert run(source, *options).exit_code == 0
    before = contents(tmp_path / "out")
    in_the_way.write_text("")
    done = run(source, *options)
    assert done.exit_code == 1
    assert "Until then, the set that was there is as it was." in done.output
    in_the_way.unlink()
    assert before.items() <= contents(tmp_path / "out").items()


def test_an_interrupt_ends_with_130_and_the_same_command_resumes(tmp_path, monkeypatch):
    source = VocSource(tmp_path)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("retina_ray.data.importers.writing.convert.finish_dataset", interrupted)
        done = run(source, "--splits", "train")
    assert done.exit_code == 130
    assert not (tmp_path / "out" / "train" / "dataset.json").exists()
    done = run(source, "--splits", "train")
    assert done.exit_code == 0, done.output
    assert opened(source).num_images == 3


def test_names_are_not_the_markup_of_the_terminal(tmp_path):
    source = VocSource(tmp_path)
    source.add("c", Box((1, 1, 5, 5), "[red]x[/red]"))
    done = run(source, "--splits", "train", "--classes", "cat,dog,[red]x[/red]")
    assert done.exit_code == 0, done.output
    assert "[red]x[/red]" in done.output
