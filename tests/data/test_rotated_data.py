"""Rotated boxes from shards to targets, and the shapes that are drawn with them.

Angles are degrees counter-clockwise as seen on the picture; y points down.
"""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_sets import make_record, write_set

from retina_ray.config import ExperimentConfig, ModelConfig, SyntheticConfig
from retina_ray.data.augment.augmenter import Augmenter
from retina_ray.data.augment.views import LazyImage
from retina_ray.data.importers.coco import import_coco
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.loading.batch_loader import BatchLoader
from retina_ray.data.loading.local_stream import iterate
from retina_ray.data.loading.packing import BATCH_SCHEMA
from retina_ray.data.loading.unpack import unpack_batch
from retina_ray.data.plan.eval_plan import build_eval_plan
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import (
    SHARD_SCHEMA,
    record_from_row,
    shard_schema,
)
from retina_ray.data.rotated_boxes import (
    cut_enclosing_boxes,
    flip_rotated,
    least_turned,
    scale_rotated,
)
from retina_ray.data.synthetic import drawing as shapes
from retina_ray.data.synthetic.drawing import TURNED_NAMES, draw_image
from retina_ray.data.synthetic.prepare import make_shapes, prepare_synthetic
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


def paint(box, height=HEIGHT, width=WIDTH) -> np.ndarray:
    """(H, W, 3) uint8: a white rectangle on black, each pixel by the share that is covered."""
    fine = np.zeros((height * 8, width * 8), np.uint8)
    cv2.fillPoly(fine, [np.rint(corners(box) * 8 - 0.5).astype(np.int32)], 255)
    coarse = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
    return np.repeat(coarse[..., None], 3, axis=2)


def find(picture: np.ndarray) -> tuple[float, float, float, float, float]:
    """Centre, longer and shorter side, and the direction of the longer one, from the moments.

    The variance of a rectangle along a side of length s is s^2 / 12.
    """
    m = cv2.moments(picture[..., 0].astype(np.float32))
    x, y = m["m10"] / m["m00"] + 0.5, m["m01"] / m["m00"] + 0.5
    spread = np.array([[m["mu20"], m["mu11"]], [m["mu11"], m["mu02"]]]) / m["m00"]
    (short, long), axes = np.linalg.eigh(spread)
    degrees = np.rad2deg(np.arctan2(-axes[1, 1], axes[0, 1]))
    return x, y, np.sqrt(12 * long), np.sqrt(12 * short), degrees


def assert_found(picture: np.ndarray, box, atol=0.5) -> None:
    """The box is where the paint is."""
    x, y, long, short, degrees = find(picture)
    bx, by, w, h, angle = (float(v) for v in box)
    if h > w:
        w, h, angle = h, w, angle + 90
    np.testing.assert_allclose([bx, by, w, h], [x, y, long, short], atol=atol)
    difference = (angle - degrees + 90) % 180 - 90
    assert abs(difference) < 1.5, (angle, degrees)


def coins(horizontal: bool, vertical: bool) -> SimpleNamespace:
    """A generator whose two draws decide the flips."""
    draws = np.array([0.0 if horizontal else 1.0, 0.0 if vertical else 1.0])
    return SimpleNamespace(random=lambda n: draws)


def transform(box, target_size, *, horizontal=False, vertical=False, **options):
    boxes = np.array([box], np.float32)
    augmenter = Augmenter(flip="both", min_box_size_px=options.get("min_box_size_px", 1.0))
    return augmented(augmenter, paint(box), boxes, target_size, coins(horizontal, vertical))


def augmented(augmenter, image, boxes, target_size, rng):
    labels = np.arange(len(boxes), dtype=np.int32)
    source = LazyImage(lambda _: image, (HEIGHT, WIDTH), boxes, labels)
    return augmenter(source, target_size=target_size, size_px=1, max_size_px=1, rng=rng)


# Transforms


@pytest.mark.parametrize("horizontal", [False, True])
@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("angle", [-150, -60, -20, 0, 35, 90, 120, 210])
def test_flips_and_equal_resizing_keep_the_box_on_its_paint(angle, horizontal, vertical):
    box = (50, 44, 46, 15, angle)
    for target in ((HEIGHT, WIDTH), (144, 192), (72, 96)):
        sample = transform(box, target, horizontal=horizontal, vertical=vertical)
        assert sample.boxes.shape == (1, 5)
        assert sample.boxes.dtype == np.float32
        assert_found(sample.image, sample.boxes[0])
        # The angle itself, not only the rectangle: turned over by each flip.
        assert sample.boxes[0, 4] == angle * (-1) ** (horizontal + vertical)


@pytest.mark.parametrize("angle", [-180, -90, 0, 90, 180, 270])
@pytest.mark.parametrize("target", [(192, 128), (96, 64), (60, 160)])
def test_unequal_resizing_is_exact_for_quarter_turns(angle, target):
    sample = transform((50, 44, 46, 15, angle), target, horizontal=True)
    assert_found(sample.image, sample.boxes[0], atol=0.8)  # enlarging blurs the edges
    f, g = target[1] / WIDTH, target[0] / HEIGHT
    w, h = (46 * f, 15 * g) if angle % 180 == 0 else (46 * g, 15 * f)
    expected = [(WIDTH - 50) * f, 44 * g, w, h]
    np.testing.assert_allclose(sample.boxes[0, :4], expected, rtol=1e-6)


@pytest.mark.parametrize("angle", [-170, -80, -25, 10, 45, 100])
def test_unequal_resizing_keeps_the_middle_lines(angle):
    """By moving the middles of two sides: their distances, and the direction along the height."""
    box, f, g = (50, 44, 46, 15, angle), 1.5, 0.75
    scaled = scale_rotated(np.array([box]), f, g)[0]
    a = corners(box) * [f, g]
    across, along = (a[1] + a[2] - a[0] - a[3]) / 2, (a[2] + a[3] - a[0] - a[1]) / 2
    turn = np.rad2deg(np.arctan2(along[0], along[1]))
    expected = [75, 33, np.hypot(*across), np.hypot(*along), turn]
    np.testing.assert_allclose(scaled, expected, rtol=1e-5)
    x, y, *_ = find(transform(box, (72, 192)).image)
    np.testing.assert_allclose(scaled[:2], [x, y], atol=0.5)


def test_boxes_are_not_cut_and_small_ones_are_dropped():
    boxes = np.array(
        [
            [-10, 50, 60, 20, 30],  # its centre is outside
            [120, 90, 80, 60, -45],  # sticks out
            [50, 50, 40, 1.9, 10],  # 0.95 px high after halving
            [50, 50, 40, 2.0, 10],
            [50, 50, 0, 20, 10],
            [50, 50, 20, 20, np.nan],
            [np.inf, 50, 20, 20, 0],
        ],
        np.float32,
    )
    blank = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    half = (HEIGHT // 2, WIDTH // 2)
    sample = augmented(Augmenter(), blank, boxes, half, coins(True, True))
    assert sample.labels.tolist() == [0, 1, 3]
    np.testing.assert_array_equal(sample.boxes, boxes[[0, 1, 3]] * np.float32([0.5] * 4 + [1]))


def test_no_boxes_stay_five_wide():
    none = np.zeros((0, 5), np.float32)
    assert scale_rotated(none, 2, 3).shape == (0, 5)
    assert flip_rotated(none, 9, 9, horizontal=True, vertical=True).shape == (0, 5)
    assert least_turned(none).shape == (0, 5)
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
    least = least_turned(box[None])[0]
    assert -45 <= least[4] < 45
    points = {tuple(p) for p in corners(box).round(6)}
    assert {tuple(p) for p in corners(least).round(6)} == points


# Shards


def record(i: int, rotated=((50, 44, 46, 15, 30), (120, 50, 40, 20, -70)), **changes):
    rotated = np.array(rotated, np.float32).reshape(-1, 5)
    fields = {
        "image": cv2.imencode(".png", paint(rotated[0] if len(rotated) else [0] * 5))[1].tobytes(),
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
        lambda: make_loader(dataset, box_type="rotated"),
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


def test_an_unknown_box_type_is_not_a_data_set(tmp_path):
    write(tmp_path / "a", [record(0)])
    path = tmp_path / "a" / "dataset.json"
    path.write_text(path.read_text().replace('"rotated"', '"tilted"'))
    with pytest.raises(DataError, match="not the description of a prepared data set"):
        PreparedDataset.open(tmp_path / "a")


# Batches


def load(loader: BatchLoader, row: dict) -> pa.Table:
    """The batch of one plan row."""
    return loader.load_table(pa.Table.from_pylist([row]))


def make_loader(dataset, **options) -> BatchLoader:
    index = dataset.index()
    settings = {"seed": 3, "augmenter": Augmenter(flip="both"), "size_divisibility_px": 16}
    return BatchLoader(
        train=dataset, val=dataset, train_index=index, val_index=index, **{**settings, **options}
    )


def row(kind: str, images: list[int], **changes) -> dict:
    place = {"plan_index": 0, "kind": kind, "epoch": 0, "step": 0, "worker": 0, "num_fill": 0}
    return {**place, "images": images, "mixed": False, "size_px": 72, "max_size_px": 999, **changes}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> PreparedDataset:
    records = [
        record(0, [(50, 44, 46, 15, 30), (70, 20, 30, 12, -60)], iscrowd=np.array([False, True])),
        record(1, []),
        record(2, [(90, 60, 20, 50, 100)]),
    ]
    return write(tmp_path_factory.mktemp("sets") / "rotated", records)


def test_training_targets_are_rotated_boxes(dataset):
    table = load(make_loader(dataset, box_type="rotated"), row("train", [0, 1, 2]))
    assert table.schema == BATCH_SCHEMA
    assert table["box_dim"].to_pylist() == [5]
    batch = unpack_batch(table).batch
    assert batch.targets.labels.tolist() == [[0], [-1], [0]]  # without the crowd region
    assert batch.targets.boxes.shape == (3, 1, 5)
    assert batch.targets.boxes.dtype == torch.float32
    assert not batch.targets.boxes[1].any()
    for i in (0, 2):
        height, width = batch.images.sizes[i].tolist()
        assert (height, width) == (72, 96)
        picture = batch.images.pixels[i, :, :height, :width].permute(1, 2, 0).numpy()
        assert_found(picture, batch.targets.boxes[i, 0])


def test_the_same_set_trains_on_aligned_boxes(dataset):
    batch = unpack_batch(
        load(make_loader(dataset, augmenter=Augmenter()), row("train", [0, 1, 2]))
    ).batch
    assert batch.targets.boxes.shape == (3, 1, 4)
    around = cut_enclosing_boxes(np.array([[50, 44, 46, 15, 30]]), HEIGHT, WIDTH) * 0.75
    np.testing.assert_allclose(batch.targets.boxes[0].numpy(), around, rtol=1e-6)


def test_batches_without_boxes_or_images_keep_five_numbers(dataset):
    loader = make_loader(dataset, box_type="rotated")
    for one, images in ((row("train", [1]), 1), (row("val", [0, 2]), 2), (row("val", []), 0)):
        targets = unpack_batch(load(loader, one)).batch.targets
        assert targets.boxes.shape == (images, 0, 5)


def test_the_config_chooses_the_boxes(dataset):
    index = dataset.index()
    for box_type, box_dim in (("aligned", 4), ("rotated", 5)):
        config = ExperimentConfig(model=ModelConfig(num_classes=2, box_type=box_type))
        loader = BatchLoader.from_config(config, None, dataset, None, index)
        plan = build_eval_plan(
            index, num_workers=1, eval_batch_size=2, eval_size_px=64, eval_max_size_px=99
        )
        batches = list(iterate(plan.worker_rows(0), loader))
        assert {b.batch.targets.boxes.shape[2] for b in batches} == {box_dim}


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


def test_a_set_of_turned_shapes(tmp_path):
    options = {"num_images": 6, "size_px": 64, "seed": 1, "split": "val"}
    turned = make_shapes(tmp_path / "a", rotated=True, **options)
    assert turned.box_type == "rotated"
    assert turned.class_names == TURNED_NAMES
    assert make_shapes(tmp_path / "b", rotated=True, **options).fingerprint == turned.fingerprint
    upright = make_shapes(tmp_path / "c", **options)
    assert upright.box_type == "aligned"
    pictures = [set(d.read_row_group(0, 0)["image"].to_pylist()) for d in (turned, upright)]
    assert not pictures[0] & pictures[1]


def test_the_config_draws_turned_shapes(tmp_path):
    settings = {"num_train": 4, "num_val": 3, "size_px": 32}
    turned = prepare_synthetic(SyntheticConfig(rotated=True, **settings), tmp_path)
    upright = prepare_synthetic(SyntheticConfig(**settings), tmp_path)
    assert [PreparedDataset.open(uri).box_type for uri in turned] == ["rotated"] * 2
    assert [PreparedDataset.open(uri).box_type for uri in upright] == ["aligned"] * 2


# Import


def coco_file(tmp_path, boxes, size=(HEIGHT, WIDTH)) -> dict:
    """An annotation file with one image that shows the first box."""
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), paint(boxes[0]))
    data = {
        "images": [{"id": 7, "file_name": "a.png", "height": size[0], "width": size[1]}],
        "annotations": [
            {"id": i + 1, "image_id": 7, "category_id": 4, "bbox": box}
            for i, box in enumerate(boxes)
        ],
        "categories": [{"id": 4, "name": "ship"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    return {
        "annotations_json": tmp_path / "a.json",
        "images_dir": tmp_path / "images",
        "out_uri": tmp_path / "out",
        "split": "train",
    }


def test_coco_with_five_numbers_becomes_a_set_of_rotated_boxes(tmp_path):
    boxes = [[50, 44, 46, 15, 30], [-3.5, 50, 40, 20, -70]]
    dataset = import_coco(**coco_file(tmp_path, boxes))
    assert dataset.box_type == "rotated"
    truth = dataset.ground_truth(box_type="rotated")["annotations"]
    assert [a["bbox"] for a in truth] == boxes
    assert [a["area"] for a in truth] == [46 * 15, 40 * 20]
    aligned = [a["bbox"] for a in dataset.ground_truth()["annotations"]]
    expected = cut_enclosing_boxes(np.array(boxes), HEIGHT, WIDTH)
    expected[:, 2:] -= expected[:, :2]
    np.testing.assert_allclose(aligned, expected, atol=1e-4)
    assert dataset.report["clipped_boxes"] == dataset.report["rounded_boxes"] == 0


def test_imported_rotated_boxes_shrink_with_their_image(tmp_path):
    files = coco_file(tmp_path, [[50, 44, 46, 15, 30]])
    dataset = import_coco(**files, options=ImportOptions(max_size_px=WIDTH // 2))
    row = dataset.read_row_group(0, 0).to_pylist()[0]
    assert row["rotated_boxes"] == [[25, 22, 23, 7.5, 30]]
    picture = cv2.imdecode(np.frombuffer(row["image"], np.uint8), cv2.IMREAD_COLOR)
    assert_found(picture, row["rotated_boxes"][0])


def test_bad_rotated_annotations_are_named_or_dropped(tmp_path):
    boxes = [
        [50, 44, 46, 15, 30],
        [50, 44, 46, 15],
        [50, 44, 0, 15, 30],
        [50, 44, 46, -15, 30],
        [50, 44, 46, 15, float("nan")],
        [-200, 44, 46, 15, 30],
        [50, 44, 46, 1e-60, 30],
    ]
    files = coco_file(tmp_path, boxes)
    with pytest.raises(DataError) as caught:
        import_coco(**files)
    kinds = {fault.annotation_id: fault.kind for fault in caught.value.faults}
    assert kinds == {
        2: "malformed box",
        3: "box of zero or negative size",
        4: "box of zero or negative size",
        5: "box is not finite",
        6: "box out of the image",
        7: "box of zero or negative size",
    }
    assert "is not five numbers" in str(caught.value)
    dataset = import_coco(**files, options=ImportOptions(on_bad_box="drop"))
    assert dataset.info.num_boxes == 1
    assert dataset.report["dropped_boxes"] == 6
