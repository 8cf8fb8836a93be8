"""The page of a data set says what is in it, and shows what a worker gets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from page_inputs import Page, write_set
from typer.testing import CliRunner

from retina_ray.cli.app import app
from retina_ray.config import ExperimentConfig, with_overrides
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.synthetic.prepare import make_shapes
from retina_ray.errors import DataError
from retina_ray.reports.dataset.charts import box_charts, training_sides
from retina_ray.reports.dataset.choice import choose_images, find_extremes
from retina_ray.reports.dataset.images import Album, training_shots
from retina_ray.reports.dataset.report import show_dataset
from retina_ray.reports.dataset.samples import stored_sample
from retina_ray.reports.dataset.splits import open_splits, read_split

SMALL = {"input.train_sizes_px": [32], "input.train_max_size_px": 64, "input.flip": "none"}
NAMES = ("ant", "bee", "cow")
pytestmark = pytest.mark.usefixtures("no_figures")

TRUTH = (
    [(2, 3, 12, 23, 0, 0), (0, 0, 48, 8, 1, 1)],
    [],
    [(4, 4, 8, 8, 0, 0), (20, 4, 44, 28, 0, 0), (0, 0, 48, 32, 2, 0)],
    [(10, 10, 30, 20, 0, 0)],
)


def split_of(folder, truth=TRUTH, names=NAMES, **options):
    return read_split(folder.name, write_set(folder, truth, names, **options))


def small(**changes) -> ExperimentConfig:
    return with_overrides(ExperimentConfig(), {**SMALL, **changes})


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    write_set(root / "val", TRUTH[2:], NAMES)
    write_set(root / "train", TRUTH, NAMES)
    return root


@pytest.fixture(scope="module")
def train(splits):
    return read_split("train", PreparedDataset.open(splits / "train"))


@pytest.fixture(scope="module")
def html(splits) -> str:
    return show_dataset(splits, config=small(), num_images=4)


def test_counts_are_those_of_the_data(html):
    page = Page(html)
    assert page.rows[0][1] == ["", "train", "val"]
    assert page.row("images") == ["4", "2"]
    assert page.row("without boxes") == ["1", "0"]
    assert page.row("boxes") == ["5", "4"]
    assert page.row("crowd regions") == ["1", "0"]
    assert page.row("classes") == ["3", "3"]
    assert page.row("formats") == ["4 PNG", "2 PNG"]
    assert page.row("kind of boxes") == ["aligned"]
    bars = [bar["title"] for bar in page.all("div", "bar")]
    assert "train: 4 boxes in 3 images" in bars  # ant
    assert "val: 3 boxes in 2 images" in bars
    assert "train: 0 boxes in 0 images" in bars  # bee has a crowd region only
    assert "train: mean 1.25, at most 3; 1 without boxes (25 %)" in page.text("boxes")
    assert "val: mean 2, at most 3; none empty" in page.text("boxes")


def test_boxes_are_drawn_where_they_are_stored(splits, train):
    shot = Album(train).stored(0)
    assert (shot.width, shot.height) == (48, 32)
    one, region = shot.marks
    assert one.corners.tolist() == [[2, 3], [12, 3], [12, 23], [2, 23]]
    assert (one.label, one.crowd) == (0, False)
    assert (region.label, region.crowd) == (1, True)
    page = Page(show_dataset(splits / "train", config=small(), num_images=4))
    crowd = page.all("polygon", "crowd")
    assert {p["points"] for p in crowd} == {"0.0,0.0 48.0,0.0 48.0,8.0 0.0,8.0"}
    assert "bee: 1 crowd region, dashed" in page.text("samples")


def test_training_pictures_are_what_the_pipeline_makes(train):
    config = small(**{"input.train_sizes_px": [64], "input.train_max_size_px": 96})
    (one, empty) = training_shots(train.dataset, [0, 1], config, epochs=2)
    assert [(shot.width, shot.height) for shot in one] == [(96, 64)] * 2
    (mark,) = one[0].marks  # without the crowd region
    assert mark.corners.tolist() == [[4, 6], [24, 6], [24, 46], [4, 46]]
    assert [len(shot.marks) for shot in empty] == [0, 0]
    assert one[0].caption.startswith("epoch 0")
    assert one[1].caption.startswith("epoch 1")


def test_flips_and_mixed_in_images_of_a_recipe_show(train):
    """Of eight epochs, some are flipped and some are not; the box follows.

    The mosaic of an image without boxes has those of the images around it.
    """
    flipped, mosaic = {"input.flip": "horizontal"}, {"input.augment.mosaic_prob": 1.0}
    (shots,) = training_shots(train.dataset, [0], small(**flipped), epochs=8)
    assert {shot.marks[0].corners[:, 0].min() for shot in shots} == {2.0, 36.0}
    config = small(**mosaic, **{"input.augment.min_visible": 0.0})
    (shots,) = training_shots(train.dataset, [1], config, epochs=4)
    assert max(len(shot.marks) for shot in shots) > 0


def test_only_row_groups_that_are_shown_are_read(tmp_path, monkeypatch):
    dataset = write_set(tmp_path / "train", [[(1, 1, 9, 9, 0, 0)]] * 40, NAMES)
    read = set()
    read_images = PreparedDataset.read_images

    def spy(self, places):
        read.update(row_group for _, row_group, _ in places)
        return read_images(self, places)

    monkeypatch.setattr(PreparedDataset, "read_images", spy)
    list(training_shots(dataset, [5, 30], small(), epochs=2))
    assert read == {2, 15}


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    broken = {1: b"\x89PNG and no more"}
    write_set(tmp_path / "train", [[(1, 1, 20, 20, 0, 0)]] * 2, NAMES, images=broken)
    html = show_dataset(tmp_path / "train", config=small(), num_images=2)
    assert "cannot be decoded" in html
    assert html.count("001.png: ") >= 3  # the three epochs of it


def test_one_split_and_many_classes(tmp_path):
    names = [f"class {i}" for i in range(130)]
    write_set(tmp_path / "odd", [[(1, 1, 20, 20, i, 0)] for i in range(130)], names)
    html = show_dataset(tmp_path / "odd", config=small(), num_images=3)
    assert "10 more classes" in html
    assert "3 of 130 images with 3 of 130 classes" in html
    assert "Images of odd" in html


def test_a_split_without_any_boxes(train):
    none = np.zeros(0, np.int64)
    empty = replace(
        train, image_of=none, boxes=np.zeros((0, 4), np.float32), labels=none, crowd=none > 0
    )
    for others in ([empty], [train, empty]):
        notes = {chart.title: chart.notes for chart in box_charts(others, small())}
        assert len(notes) >= 6
        assert "train: mean 0, at most 0; 4 without boxes (100 %)" in notes["Boxes per image"]
    assert find_extremes([empty]) == []
    assert len(choose_images(empty, 2, seed=0)) == 2


def test_no_images_leaves_the_figures(splits):
    html = show_dataset(splits, config=small(), num_images=0)
    assert "image/jpeg" not in html
    assert "Boxes per image" in html
    assert "not looked at" in html


def test_splits_of_other_classes_are_told(tmp_path):
    write_set(tmp_path / "train", TRUTH[3:], NAMES)
    write_set(tmp_path / "val", TRUTH[3:], ("ant", "dog"))
    html = show_dataset(tmp_path, config=small(), num_images=1)
    assert "differ in their classes" in html
    assert "no such class" in html


def test_rotated_boxes(tmp_path):
    make_shapes(tmp_path / "train", num_images=4, size_px=48, seed=1, split="train", rotated=True)
    page = Page(show_dataset(tmp_path / "train", num_images=4, config=None))
    assert page.row("kind of boxes") == ["rotated"]
    assert "Turn of rotated boxes" in page.text("boxes")
    split = read_split("train", PreparedDataset.open(tmp_path / "train"))
    box = int(split.single[0])
    x, y, width, _, angle = split.boxes[box].astype(float)
    corners = Album(split).stored(int(split.image_of[box])).marks[0].corners
    assert corners.mean(axis=0) == pytest.approx([x, y], abs=1e-3)
    top = corners[1] - corners[0]  # runs along the width, counter-clockwise where y is down
    turn = np.deg2rad(angle)
    assert top == pytest.approx([width * np.cos(turn), -width * np.sin(turn)], abs=1e-3)
    aligned = small(**{"model.box_type": "aligned"})
    (shots,) = training_shots(split.dataset, [int(split.image_of[box])], aligned, epochs=1)
    assert len(shots[0].marks) == split.boxes_per_image[split.image_of[box]]


# What is chosen


def test_every_class_shows_and_the_seed_decides(tmp_path):
    truth = [[(1, 1, 9, 9, 0, 0)] for _ in range(60)]
    truth[41], truth[7] = [(1, 1, 9, 9, 1, 0)], [(1, 1, 9, 9, 2, 0)]
    truth[19], truth[23] = [], [(1, 1, 9, 9, 0, 1)]
    split = split_of(tmp_path / "train", truth)
    chosen = choose_images(split, 8, seed=0)
    assert {41, 7, 19, 23} < set(chosen)
    assert chosen == sorted(set(chosen)) == choose_images(split, 8, seed=0)
    assert choose_images(split, 8, seed=1) != chosen
    assert [len(choose_images(split, num, seed=0)) for num in (8, 100, 0)] == [8, 60, 0]


def test_few_images_show_as_many_classes_as_they_can(tmp_path):
    truth = [[(1, 1, 9, 9, i, 0)] for i in range(6)]
    truth.append([(1, 1, 9, 9, i, 0) for i in range(4)])
    split = split_of(tmp_path / "train", truth, "abcdef")
    assert 6 in choose_images(split, 2, seed=3)


def test_extremes(train):
    found = [(e.image, e.box, e.reason) for e in find_extremes([train])]
    # Boxes: 0 10 x 20, 1 crowd, 2 4 x 4, 3 24 x 24, 4 48 x 32, 5 20 x 10.
    assert found == [
        (2, 2, "smallest: 4 x 4 px"),
        (0, 0, "smallest: 10 x 20 px"),
        (3, 5, "smallest: 20 x 10 px"),
        (2, None, "most crowded: 3 boxes"),
        (0, None, "most crowded: 1 box"),
        (2, 4, "largest: 100 % of its image"),
        (0, 0, "largest: 13 % of its image"),
        (0, 0, "2 times as high as wide: 10 x 20 px"),
        (3, 5, "2 times as wide as high: 20 x 10 px"),
    ]


def test_a_small_box_is_shown_in_a_crop(tmp_path):
    split = split_of(tmp_path / "train", [[(590, 100, 598, 104, 0, 0)]], size=(600, 400))  # 8 x 4
    shot = Album(split).extreme(find_extremes([split])[0])
    assert shot.cropped
    assert (shot.width, shot.height) == (64, 64)
    (mark,) = shot.marks  # the crop ends at the image's border: x 536 to 600, y 70 to 134
    assert mark.corners.tolist() == [[54, 30], [62, 30], [62, 34], [54, 34]]


def test_training_sides():
    assert training_sides(small(**{"input.train_sizes_px": [32, 64]}).input) == (32.0, 64.0)
    drawn = {"input.train_sizes_px": [32, 64], "input.train_size_sampling": "range"}
    assert training_sides(small(**drawn).input) == (32.0, 40.0, 48.0, 56.0, 64.0)


def test_splits_of_a_folder_come_in_order(tmp_path, splits):
    assert list(open_splits(splits)) == ["train", "val"]
    assert list(open_splits(splits.as_uri())) == ["train", "val"]
    assert list(open_splits(splits / "val")) == ["val"]
    for name in ("test", "extra", "train"):
        write_set(tmp_path / name, TRUTH[3:], NAMES)
    assert list(open_splits(tmp_path)) == ["train", "test", "extra"]
    half = write_set(tmp_path / "val", TRUTH, NAMES)
    (Path(half.uri) / "dataset.json").unlink()
    with pytest.raises(DataError, match="interrupted"):
        open_splits(tmp_path)


def test_bad_boxes_do_not_stop_the_page(train):
    """Boxes without area or not finite are counted, and left out of charts and images."""
    boxes = train.boxes.copy()
    boxes[0], boxes[1], boxes[2] = [2, 3, np.inf, 23], np.nan, [4, 4, 4, 8]
    bad = replace(train, boxes=boxes)
    notes = {chart.title: chart.notes for chart in box_charts([bad], small())}
    assert "train: 2 without area or not finite, not shown" in notes["Box size as stored"]
    assert stored_sample(Album(bad), 0).image.overlay.boxes == []
    for extreme in find_extremes([bad]):
        assert Album(bad).extreme(extreme).jpeg


# The command


def test_command_takes_a_recipe(splits, tmp_path):
    recipes = tmp_path / "mine.py"
    recipes.write_text(
        "from retina_ray.config import ExperimentConfig, InputConfig\n"
        "def tiny():\n"
        "    sizes = dict(train_sizes_px=(24,), train_max_size_px=36)\n"
        "    return ExperimentConfig(input=InputConfig(**sizes))\n"
        "RECIPES = {'tiny': tiny}\n"
    )
    out = tmp_path / "page.html"

    def call(*options):
        command = ["data", "show", splits / "train", "--out", out, "--num-images", 1, *options]
        return CliRunner().invoke(app, list(map(str, command)))

    done = call("--recipe", "tiny", "--recipes", recipes, "--set", "input.flip=none")
    assert done.exit_code == 0, done.output
    assert "input.train_sizes_px = [24]" in out.read_text()
    assert "input.flip = none" in out.read_text()
    done = call("--set", "model.box_type=rotated")
    assert done.exit_code == 2
    assert "no rotated boxes" in done.output
