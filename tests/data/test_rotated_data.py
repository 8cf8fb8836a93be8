"""Rotated boxes from shards to targets, and the shapes that are drawn with them.

Angles are degrees counter-clockwise as seen on the picture; y points down.
"""

import json

import cv2
import numpy as np
import pytest
import torch
from import_sources import Box, RotatedSource, records
from planned_batches import batch_of, load, make_loader, train_row, val_row
from tiny_sets import make_record, write_set

from retina_ray.config import ExperimentConfig, ModelConfig, SyntheticConfig
from retina_ray.data.augment.augmenter import Augmenter
from retina_ray.data.loading.batch_loader import BatchLoader
from retina_ray.data.loading.packing import BATCH_SCHEMA
from retina_ray.data.loading.unpack import unpack_batch
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import (
    SHARD_SCHEMA,
    record_from_row,
    shard_schema,
)
from retina_ray.data.rotated_boxes import (
    cut_enclosing_boxes,
    flip_rotated,
    least_rotated,
    scale_rotated,
)
from retina_ray.data.synthetic import drawing as shapes
from retina_ray.data.synthetic.drawing import ROTATED_NAMES, draw_image
from retina_ray.data.synthetic.prepare import prepare_synthetic
from retina_ray.errors import DataError
from retina_ray.structures import Targets

HEIGHT, WIDTH = 96, 128


def corners(box) -> np.ndarray:
    """(4, 2) float64: centre, plus and minus half the width, plus and minus half the height."""
    x, y, w, h, degrees = np.asarray(box, np.float64)
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    middle = np.array([x, y])
    right, down = w / 2 * np.array([cos, -sin]), h / 2 * np.array([sin, cos])
    return np.stack(
        [middle + r * right + d * down for r, d in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    )


# Transforms


@pytest.mark.parametrize("angle", [-150, 0, 90, 210])
def test_flips_move_the_centre_and_turn_the_angle_over(angle):
    box = np.array([[50, 44, 46, 15, angle]])
    for across in (False, True):
        for down in (False, True):
            flipped = flip_rotated(box, HEIGHT, WIDTH, horizontal=across, vertical=down)
            centre = [WIDTH - 50 if across else 50, HEIGHT - 44 if down else 44]
            assert flipped.tolist() == [[*centre, 46, 15, angle * (-1) ** (across + down)]]


@pytest.mark.parametrize("angle", [-170, -90, -80, -25, 0, 10, 45, 90, 100, 180])
def test_unequal_resizing_keeps_the_middle_lines(angle):
    """By moving the middles of two sides: their distances, and the direction along the height."""
    box, f, g = (50, 44, 46, 15, angle), 1.5, 0.75
    scaled = scale_rotated(np.array([box]), f, g)[0]
    a = corners(box) * [f, g]
    across, along = (a[1] + a[2] - a[0] - a[3]) / 2, (a[2] + a[3] - a[0] - a[1]) / 2
    turn = np.rad2deg(np.arctan2(along[0], along[1]))
    expected = [75, 33, np.hypot(*across), np.hypot(*along), turn]
    expected[4] += 360 * round((scaled[4] - turn) / 360)
    np.testing.assert_allclose(scaled, expected, rtol=1e-5, atol=1e-5)


def test_no_boxes_stay_five_wide():
    none = np.zeros((0, 5), np.float32)
    assert scale_rotated(none, 2, 3).shape == (0, 5)
    assert flip_rotated(none, 9, 9, horizontal=True, vertical=True).shape == (0, 5)
    assert least_rotated(none).shape == (0, 5)
    assert cut_enclosing_boxes(none, 9, 9).shape == (0, 4)


def test_enclosing_boxes_hold_the_corners_and_are_cut():
    boxes = [(60, 40, 40, 10, 25), (60, 40, 40, 10, 90), (2, 90, 40, 30, -45), (-90, 40, 9, 9, 3)]
    for box, around in zip(boxes, cut_enclosing_boxes(np.array(boxes), HEIGHT, WIDTH), strict=True):
        points = np.clip(corners(box), 0, [WIDTH, HEIGHT])
        expected = [*points.min(axis=0), *points.max(axis=0)]
        np.testing.assert_allclose(around, expected, atol=1e-4)


@pytest.mark.parametrize("angle", [-405, -135, -46, -45, -10, 44, 45, 90, 135, 180, 271])
def test_the_least_turn_names_the_same_rectangle(angle):
    box = np.array([60, 40, 40, 10, angle])
    least = least_rotated(box[None])[0]
    assert -45 <= least[4] < 45
    points = {tuple(p) for p in corners(box).round(6)}
    assert {tuple(p) for p in corners(least).round(6)} == points


# Shards


def record(i: int, rotated=((50, 44, 46, 15, 30), (120, 50, 40, 20, -70)), **changes):
    rotated = np.array(rotated, np.float32).reshape(-1, 5)
    fields = {
        "image": cv2.imencode(".png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))[1].tobytes(),
        "height": HEIGHT,
        "width": WIDTH,
        "iscrowd": np.arange(len(rotated)) == 1,
        "rotated_boxes": rotated,
    }
    boxes = cut_enclosing_boxes(rotated, HEIGHT, WIDTH)
    return make_record(i, boxes, **{**fields, **changes})


def write(uri, records, box_type="rotated") -> PreparedDataset:
    return write_set(uri, records, box_type=box_type, rows_per_group=2)


def test_a_set_keeps_both_kinds_of_boxes(tmp_path):
    # The last has no boxes: an empty array, or none at all.
    records = [record(0), record(1, [(-5, 40, 30, 20, 190)]), record(2, [], rotated_boxes=None)]
    dataset = write(tmp_path / "a", records)
    assert dataset.box_type == "rotated"
    stored = json.loads((tmp_path / "a" / "dataset.json").read_text())
    assert (stored["format_version"], stored["box_type"]) == (2, "rotated")
    group = dataset.read_row_group(0, 0)
    assert group.schema.equals(shard_schema("rotated"))
    for row, original in zip(group.to_pylist(), records[:2], strict=True):
        back = record_from_row(row)
        np.testing.assert_array_equal(back.rotated_boxes, original.rotated_boxes)
        np.testing.assert_array_equal(back.boxes, original.boxes)
    last = record_from_row(dataset.read_row_group(0, 1).to_pylist()[0])
    assert last.rotated_boxes.shape == (0, 5)
    assert "rotated_boxes" in dataset.annotations().column_names


def test_ground_truth_of_both_kinds(tmp_path):
    dataset = write(tmp_path / "a", [record(0)])
    rotated = dataset.ground_truth(box_type="rotated")
    json.dumps(rotated)
    assert [a["bbox"] for a in rotated["annotations"]] == [
        [50, 44, 46, 15, 30],
        [120, 50, 40, 20, -70],
    ]
    aligned = dataset.ground_truth()
    around = cut_enclosing_boxes(record(0).rotated_boxes, HEIGHT, WIDTH).astype(np.float64)
    around[:, 2:] -= around[:, :2]
    np.testing.assert_allclose([a["bbox"] for a in aligned["annotations"]], around)
    for one, other in zip(aligned["annotations"], rotated["annotations"], strict=True):
        assert {**one, "bbox": None} == {**other, "bbox": None}


def test_an_aligned_set_is_written_as_ever_and_refused_for_rotated_boxes(tmp_path):
    dataset = write(tmp_path / "a", [record(0, rotated_boxes=None)], box_type="aligned")
    stored = json.loads((tmp_path / "a" / "dataset.json").read_text())
    assert stored["format_version"] == 1
    assert "box_type" not in stored
    assert dataset.read_row_group(0, 0).schema.equals(SHARD_SCHEMA)
    assert record_from_row(dataset.read_row_group(0, 0).to_pylist()[0]).rotated_boxes is None
    assert dataset.box_type == "aligned"
    dataset.require_box_type("aligned")
    for refused in (
        lambda: dataset.require_box_type("rotated"),
        lambda: dataset.ground_truth(box_type="rotated"),
        lambda: make_loader(dataset, dataset, box_type="rotated"),
    ):
        with pytest.raises(DataError, match=r"has no rotated boxes: set model\.box_type to alig"):
            refused()


def test_the_fingerprint_depends_on_the_rotated_boxes(tmp_path):
    moved = record(0).rotated_boxes + np.float32([0, 0, 0, 0, 0.5])
    prints = [
        write(tmp_path / "a", [record(0)]).fingerprint,
        write(tmp_path / "b", [record(0, rotated_boxes=moved)]).fingerprint,
        write(tmp_path / "c", [record(0, rotated_boxes=None)], "aligned").fingerprint,
    ]
    assert len(set(prints)) == 3
    assert write(tmp_path / "d", [record(0)]).fingerprint == prints[0]


@pytest.mark.parametrize(
    ("rotated", "message"),
    [
        ([[50, 44, 46, 15, 30]], "columns of different lengths"),
        (None, "columns of different lengths"),
        (np.zeros((2, 4)), r"shape \(2, 4\): expected \(M, 5\)"),
        ([[50, 44, 46, 15, 30], [50, 44, 0, 15, 30]], "annotation 2: .*sides above 0"),
        ([[50, 44, 46, -1, 30], [50, 44, 5, 15, 30]], "annotation 1: .*sides above 0"),
        ([[50, 44, 46, 15, np.nan], [50, 44, 5, 15, 30]], "annotation 1: .*must be finite"),
        ([[50, 44, 46, 15, 0], [np.inf, 44, 5, 15, 30]], "annotation 2: .*must be finite"),
        ([[50, 44, 46, 15, 0], [5, 44, 1e-60, 15, 30]], "annotation 2"),  # 0 as float32
    ],
)
def test_bad_rotated_boxes_are_refused(tmp_path, rotated, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path / "a", [record(0, rotated_boxes=rotated)])
    assert list((tmp_path / "a").iterdir()) == []


def test_rotated_boxes_in_an_aligned_set_are_refused(tmp_path):
    with pytest.raises(DataError, match='without box_type="rotated"'):
        write(tmp_path / "a", [record(0)], box_type="aligned")
    with pytest.raises(ValueError, match="box_type = 'tilted'"):
        write(tmp_path / "a", [record(0)], box_type="tilted")


# Batches


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> PreparedDataset:
    records = [
        record(0, [(50, 44, 46, 15, 30), (70, 20, 30, 12, -60)], iscrowd=np.array([False, True])),
        record(1, []),
        record(2, [(90, 60, 20, 50, 100)]),
    ]
    return write(tmp_path_factory.mktemp("sets") / "rotated", records)


LARGE = {"size_px": 72, "max_size_px": 999}
BOX = [50, 44, 46, 15, 30]


def test_training_targets_are_rotated_boxes(dataset):
    loader = make_loader(dataset, dataset, augmenter=Augmenter(), box_type="rotated")
    table = load(loader, train_row([0, 1, 2], **LARGE))
    assert table.schema == BATCH_SCHEMA
    assert table["box_dim"].to_pylist() == [5]
    targets = unpack_batch(table).batch.targets
    assert targets.labels.tolist() == [[0], [-1], [0]]  # without the crowd region
    assert targets.boxes.dtype == torch.float32
    expected = [[[*(0.75 * x for x in BOX[:4]), 30]], [[0] * 5], [[67.5, 45, 15, 37.5, 100]]]
    assert targets.boxes.tolist() == expected
    for row, images in ((train_row([1]), 1), (val_row([0, 2]), 2), (val_row([]), 0)):
        assert batch_of(loader, row).targets.boxes.shape == (images, 0, 5)


def test_the_same_set_trains_on_aligned_boxes(dataset):
    loader = make_loader(dataset, augmenter=Augmenter())
    boxes = batch_of(loader, train_row([0, 1, 2], **LARGE)).targets.boxes
    assert boxes.shape == (3, 1, 4)
    around = cut_enclosing_boxes(np.array([BOX]), HEIGHT, WIDTH) * 0.75
    np.testing.assert_allclose(boxes[0].numpy(), around, rtol=1e-6)


@pytest.mark.parametrize(("box_type", "box_dim"), [("aligned", 4), ("rotated", 5)])
def test_the_config_chooses_the_boxes(dataset, box_type, box_dim):
    config = ExperimentConfig(model=ModelConfig(num_classes=2, box_type=box_type))
    loader = BatchLoader.from_config(config, None, dataset, None, dataset.index())
    assert batch_of(loader, val_row([0, 1])).targets.boxes.shape[2] == box_dim


def test_targets_pad_boxes_of_five_numbers():
    boxes = [torch.rand(2, 5), torch.zeros(0, 5)]
    labels = [torch.tensor([1, 0]), torch.zeros(0, dtype=torch.int64)]
    targets = Targets.from_lists(boxes, labels)
    assert targets.boxes.shape == (2, 2, 5)
    torch.testing.assert_close(targets.boxes[0], boxes[0])
    assert targets.labels.tolist() == [[1, 0], [-1, -1]]
    assert Targets.from_lists([], []).boxes.shape == (0, 0, 4)
    assert Targets.from_lists([], [], box_dim=5).boxes.shape == (0, 0, 5)
    with pytest.raises(ValueError, match=r"boxes of \[4, 5\] numbers"):
        Targets.from_lists([torch.rand(2, 5), torch.rand(1, 4)], labels)
    with pytest.raises(ValueError, match=r"\[5\] numbers: expected 4"):
        Targets.from_lists(boxes, labels, box_dim=4)


# Drawn shapes


def test_turned_shapes_are_valid_and_turned_to_all_sides():
    records = [draw_image(0, i, size_px=64, rotated=True) for i in range(120)]
    boxes = np.concatenate([r.rotated_boxes for r in records])
    labels = np.concatenate([r.labels for r in records])
    assert boxes.dtype == np.float32
    w, h, angle = boxes[:, 2:].T
    longer, shorter = np.maximum(w, h), np.minimum(w, h)
    assert 9 - 1e-3 <= longer.min() < longer.max() <= 25.5 + 1e-3
    # A class knows itself by its form: no shape is nearly square.
    for label, (low, high) in enumerate([(1.6, 2.4), (1.4, 2.0), (2.2, 3.2)]):
        aspect = (longer / shorter)[labels == label]
        assert len(aspect) > 60
        assert low - 1e-3 <= aspect.min() < aspect.max() <= high + 1e-3
    assert -45 <= angle.min() < angle.max() <= 45
    directions = np.where(w > h, angle, angle + 90) % 180
    counts, _ = np.histogram(directions, bins=6, range=(0, 180))
    assert counts.min() > 0.7 * len(boxes) / 6
    for r in records:
        expected = cut_enclosing_boxes(r.rotated_boxes, 64, 64)
        np.testing.assert_array_equal(r.boxes, expected)
        assert (r.area <= r.rotated_boxes[:, 2:4].prod(axis=1) * 1.001).all()
    ids = np.concatenate([r.annotation_id for r in records])
    assert len(np.unique(ids)) == len(ids)


def test_rotated_boxes_are_tight_around_what_is_drawn(monkeypatch):
    """Measured in the box's own frame, over a flat ground and without the losses of JPEG."""
    monkeypatch.setattr(shapes, "_draw_ground", lambda _, size: np.full((size, size, 3), 128.0))
    monkeypatch.setattr(shapes, "encode_jpeg", lambda p: cv2.imencode(".png", p)[1].tobytes())
    measured = []
    for i in range(80):
        drawn = draw_image(2, i, size_px=64, rotated=True)
        if len(drawn.labels) != 1:
            continue
        pixels = cv2.imdecode(np.frombuffer(drawn.image, np.uint8), cv2.IMREAD_COLOR)
        ys, xs = np.nonzero(np.linalg.norm(pixels.astype(float) - 128, axis=2) > 60)
        x, y, w, h, degrees = drawn.rotated_boxes[0].astype(float)
        cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        dx, dy = xs + 0.5 - x, ys + 0.5 - y
        across, along = dx * cos - dy * sin, dx * sin + dy * cos
        extent = [across.min(), across.max(), along.min(), along.max()]
        np.testing.assert_allclose(extent, [-w / 2, w / 2, -h / 2, h / 2], atol=1.3)
        measured.append(int(drawn.labels[0]))
    assert len(measured) >= 8
    assert set(measured) == {0, 1, 2}


def test_upright_pictures_stay_as_they_were():
    """To change them is to raise PICTURE_VERSION: results on record were measured on these."""
    assert shapes.PICTURE_VERSION == 5
    drawn = draw_image(0, 2, size_px=128)
    assert drawn.rotated_boxes is None
    assert drawn.labels.tolist() == [1, 1, 2]
    expected = [
        [15.780, 73.032, 46.687, 103.939],
        [19.934, 12.293, 52.738, 45.096],
        [105.783, 44.595, 124.285, 90.394],
    ]
    np.testing.assert_allclose(drawn.boxes, expected, atol=2e-3)


def test_a_set_of_turned_shapes_is_another_than_that_of_upright_ones(tmp_path):
    def prepared(**options) -> list[PreparedDataset]:
        config = SyntheticConfig(num_train=4, num_val=3, size_px=32, **options)
        return [PreparedDataset.open(uri) for uri in prepare_synthetic(config, tmp_path)]

    turned, upright = prepared(rotated=True), prepared()
    assert [dataset.box_type for dataset in turned + upright] == ["rotated"] * 2 + ["aligned"] * 2
    assert turned[0].class_names == ROTATED_NAMES
    pictures = [set(d.read_row_group(0, 0)["image"].to_pylist()) for d in (turned[1], upright[1])]
    assert not pictures[0] & pictures[1]


# Import


def test_imported_rotated_boxes_keep_their_angle_and_shrink_with_their_image(tmp_path):
    source = RotatedSource(tmp_path)
    boxes = np.array([[30, 20, 16, 8, 30], [-3.5, 20, 40, 20, -70]])
    source.put("a", *(Box(raw=box) for box in boxes.tolist()))
    dataset = source.run()
    first = records(dataset)[0]
    np.testing.assert_array_equal(first.rotated_boxes, boxes)
    np.testing.assert_array_equal(first.area, boxes[:, 2] * boxes[:, 3])
    around = cut_enclosing_boxes(boxes, 48, 64)
    np.testing.assert_allclose(first.boxes, around, atol=1e-4)
    np.testing.assert_allclose(first.bbox[:, :2], around[:, :2], atol=1e-4)  # for evaluation, XYWH
    np.testing.assert_allclose(first.bbox[:, 2:], around[:, 2:] - around[:, :2], atol=1e-4)
    assert dataset.report["clipped_boxes"] == dataset.report["rounded_boxes"] == 0
    half = records(source.run(out="half", max_size_px=32))[0]
    np.testing.assert_array_equal(half.rotated_boxes, boxes * [0.5, 0.5, 0.5, 0.5, 1])
