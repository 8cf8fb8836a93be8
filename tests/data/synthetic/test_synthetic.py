import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from retina_ray.config import SyntheticConfig
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.synthetic import drawing as shapes
from retina_ray.data.synthetic import prepare as synthetic
from retina_ray.data.synthetic.drawing import draw_image
from retina_ray.data.synthetic.prepare import make_shapes, prepare_synthetic
from retina_ray.errors import DataError


def pixels_of(record) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(record.image, np.uint8), cv2.IMREAD_COLOR).astype(float)


def test_picture_depends_on_seed_index_and_size_alone():
    base = draw_image(3, 5, size_px=64)
    draw_image(9, 1, size_px=128)
    again = draw_image(3, 5, size_px=64)
    assert again.image == base.image
    np.testing.assert_array_equal(again.boxes, base.boxes)
    others = [draw_image(4, 5, size_px=64), draw_image(3, 6, size_px=64)]
    assert len({base.image, *(other.image for other in others)}) == 3


@pytest.mark.parametrize("size_px", [32, 96])
def test_records_are_valid(size_px):
    records = [draw_image(0, i, size_px=size_px) for i in range(100)]
    boxes = np.concatenate([r.boxes for r in records])
    labels = np.concatenate([r.labels for r in records])
    areas = np.concatenate([r.area for r in records])
    ids = np.concatenate([r.annotation_id for r in records])
    sides, scale = boxes[:, 2:] - boxes[:, :2], size_px / 128
    assert 0 <= boxes.min() < boxes.max() <= size_px
    longer = sides.max(axis=1)
    assert 18 * scale - 1e-3 <= longer.min() < 20 * scale
    assert 48 * scale < longer.max() <= 51 * scale + 1e-3
    assert sides.min() > 5 * scale
    counts = np.array([len(r.labels) for r in records])
    assert counts.max() <= 6
    assert 1 <= (counts == 0).sum() <= 10
    assert np.bincount(labels, minlength=3).min() > 0.25 * len(labels)
    assert len(np.unique(ids)) == len(ids)
    assert ids.min() >= 1
    assert all(pixels_of(r).shape == (size_px, size_px, 3) for r in records[:5])
    # A disc fills pi/4 of its box, a ring less by its hole; a rotated bar no fixed share.
    disc, ring, bar = ((areas / sides.prod(axis=1))[labels == label] for label in range(3))
    np.testing.assert_allclose(disc, np.pi / 4, atol=0.01)
    assert (1 - 0.65**2) * 0.77 < ring.min() < ring.max() < (1 - 0.45**2) * np.pi / 4
    assert 0.4 < bar.min() < bar.max() <= 1.0001


def test_boxes_are_tight_around_what_is_drawn(monkeypatch):
    """Measured over a flat ground, without the losses of JPEG, on pictures of one shape."""
    monkeypatch.setattr(shapes, "_draw_ground", lambda _, size: np.full((size, size, 3), 128.0))
    monkeypatch.setattr(shapes, "encode_jpeg", lambda p: cv2.imencode(".png", p)[1].tobytes())
    measured = set()
    for i in range(120):
        record = draw_image(2, i, size_px=64)
        if len(record.labels) != 1:
            continue
        # The noise has a deviation of 3 levels; a shape differs from the ground by 110 or more.
        ys, xs = np.nonzero(np.linalg.norm(pixels_of(record) - 128, axis=2) > 20)
        extent = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]])
        np.testing.assert_allclose(extent, record.boxes, atol=1.1)
        measured.add((int(record.labels[0]), i))
    assert len(measured) >= 12
    assert {label for label, _ in measured} == {0, 1, 2}


def test_coverage_is_exact_for_a_box_of_whole_and_half_pixels():
    corners = np.array([[1.0, 2.0], [3.5, 2.0], [3.5, 5.0], [1.0, 5.0]])
    cover = shapes._coverage(corners, 8)
    expected = np.zeros((8, 8))
    expected[2:5, 1:3] = 1
    expected[2:5, 3] = 0.5
    np.testing.assert_array_equal(cover, expected)


def test_hidden_shapes_are_not_drawn(monkeypatch):
    """With every shape of the same place and size, all behind the first one are hidden."""
    square = np.array([[10.0, 10.0], [40.0, 10.0], [40.0, 40.0], [10.0, 40.0]])

    def same_place(rng, *_):
        return shapes._Shape(1, square, rng.uniform(0, 255, 3))

    monkeypatch.setattr(shapes, "_place_shape", same_place)
    counts = {len(draw_image(0, i, size_px=64).labels) for i in range(20)}
    assert counts <= {0, 1}
    assert 1 in counts


def test_make_shapes_and_its_splits(tmp_path):
    options = {"num_images": 12, "size_px": 64, "seed": -3, "rows_per_group": 5}
    train = make_shapes(tmp_path / "a", split="train", **options)
    again = make_shapes(tmp_path / "b", split="train", **options)
    val = make_shapes(tmp_path / "c", split="val", **options)
    assert train.fingerprint == again.fingerprint
    pictures = [set(d.read_row_group(0, 0)["image"].to_pylist()) for d in (train, val)]
    assert not pictures[0] & pictures[1]
    assert train.class_names == ("disc", "ring", "bar")
    assert train.info.shards[0].row_group_rows == (5, 5, 2)
    with pytest.raises(ValueError, match="split = 'dev'"):
        make_shapes(tmp_path / "d", split="dev", **options)
    with pytest.raises(ValueError, match="num_images = 0"):
        make_shapes(tmp_path / "d", split="val", **{**options, "num_images": 0})


def test_more_pictures_begin_with_the_same_ones(tmp_path):
    few, many = (
        make_shapes(tmp_path / str(n), num_images=n, size_px=32, seed=0, split="train")
        for n in (4, 6)
    )
    assert many.index()["image_id"].to_pylist()[:4] == few.index()["image_id"].to_pylist()
    tables = [d.read_row_group(0, 0).slice(0, 4) for d in (few, many)]
    assert tables[0].equals(tables[1])


CONFIG = SyntheticConfig(num_train=6, num_val=5, size_px=32, seed=1)


def test_prepare_writes_once(tmp_path):
    train, val = prepare_synthetic(CONFIG, str(tmp_path / "new" / "root"))
    assert PreparedDataset.open(train).num_images == 6
    assert PreparedDataset.open(val).num_images == 5
    stamp = Path(train, "dataset.json").stat().st_mtime_ns
    assert prepare_synthetic(CONFIG, str(tmp_path / "new" / "root")) == (train, val)
    assert Path(train, "dataset.json").stat().st_mtime_ns == stamp
    other, _ = prepare_synthetic(CONFIG.model_copy(update={"seed": 2}), tmp_path / "new" / "root")
    assert other != train
    folders = [p.name for p in (tmp_path / "new" / "root").iterdir()]
    assert len(folders) == 2, f"only the two sets may be left: {folders}"


def test_prepare_takes_a_uri(tmp_path):
    uri = f"fsspec+memory://{tmp_path}/cloud"
    train, val = prepare_synthetic(CONFIG, uri)
    assert train.startswith(uri)
    local, _ = prepare_synthetic(CONFIG, tmp_path)
    assert PreparedDataset.open(train).fingerprint == PreparedDataset.open(local).fingerprint
    assert PreparedDataset.open(val).num_images == 5
    assert prepare_synthetic(CONFIG, uri) == (train, val)


def test_processes_may_prepare_at_once(tmp_path):
    code = (
        "import sys; from retina_ray.config import SyntheticConfig\n"
        "from retina_ray.data.synthetic.prepare import prepare_synthetic\n"
        "config = SyntheticConfig(num_train=30, num_val=5, size_px=32)\n"
        "print(*prepare_synthetic(config, sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = {process.communicate()[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(outputs) == 1
    assert PreparedDataset.open(outputs.pop().split()[0]).num_images == 30
    assert len(list(tmp_path.iterdir())) == 1


def test_lost_race_keeps_the_first_set(tmp_path, monkeypatch):
    """Another process puts its set into place while this one still draws."""
    draw, sets = synthetic._draw, []

    def late(config, folder):
        monkeypatch.setattr(synthetic, "_draw", draw)
        sets.append(prepare_synthetic(config, tmp_path))
        draw(config, folder)

    monkeypatch.setattr(synthetic, "_draw", late)
    train, _ = prepare_synthetic(CONFIG, tmp_path)
    assert sets[0][0] == train
    assert PreparedDataset.open(train).num_images == 6
    assert len(list(tmp_path.iterdir())) == 1


def test_damaged_set_is_reported(tmp_path):
    train, _ = prepare_synthetic(CONFIG, tmp_path)
    Path(train, "dataset.json").unlink()
    with pytest.raises(DataError, match="delete the folder"):
        prepare_synthetic(CONFIG, tmp_path)
