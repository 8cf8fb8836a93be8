"""From plan rows to tensors: the same bytes every time, and no bad image goes unnamed."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_sets
import torch
from planned_batches import batch_of, load, make_loader, train_row, val_row
from spoilt_sets import with_column

from retina_ray.config import ExperimentConfig, InputConfig, TrainConfig
from retina_ray.data.augment.augmenter import Augmenter
from retina_ray.data.augment.transforms import shortest_edge_size
from retina_ray.data.loading.batch_loader import BatchLoader
from retina_ray.data.loading.local_stream import iterate
from retina_ray.data.loading.packing import BATCH_SCHEMA
from retina_ray.data.loading.unpack import unpack_batch
from retina_ray.data.plan.eval_plan import build_eval_plan
from retina_ray.data.plan.run_plan import RunPlan, build_run_plan
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import Category, Record
from retina_ray.errors import DataError

SETTINGS = {
    "epochs": 2,
    "batch_size": 4,
    "num_workers": 2,
    "seed": 3,
    "train_sizes_px": (24, 40),
    "train_size_sampling": "range",
    "train_max_size_px": 64,
    "eval_size_px": 32,
    "eval_max_size_px": 48,
    "eval_batch_size": 3,
    "eval_every_epochs": 1,
    "group_by_aspect": True,
}


def make_record(i: int, **changes) -> Record:
    """Image i: wide for even i, black but for one white box; a crowd box; none where i % 5 == 4."""
    height, width = (30, 48) if i % 2 == 0 else (44, 32)
    x0, y0 = 2 + i % 7, 3 + i % 5
    picture = np.zeros((height, width, 3), np.uint8)
    picture[y0 : y0 + 18, x0 : x0 + 20] = 255
    boxes = [[x0, y0, x0 + 20, y0 + 18], [0, 0, width, 8]]
    if i % 5 == 4:
        boxes = []
    fields = {
        "image": cv2.imencode(".png", picture)[1].tobytes(),
        "file_name": f"{i:03}.png",
        "image_id": 500 + i,
        "height": height,
        "width": width,
        "labels": np.array([i % 3, 0][: len(boxes)], np.int32),
        "iscrowd": np.array([False, True][: len(boxes)]),
    }
    return tiny_sets.make_record(i, boxes, **{**fields, **changes})


def write_set(path: Path, records: list[Record]) -> PreparedDataset:
    classes = [Category(id=i + 1, name=name) for i, name in enumerate("abc")]
    options = {"categories": classes, "rows_per_group": 3, "rows_per_shard": 9}
    return tiny_sets.write_set(path, records, **options)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> tuple[PreparedDataset, PreparedDataset]:
    root = tmp_path_factory.mktemp("sets")
    train = write_set(root / "train", [make_record(i) for i in range(23)])
    val = write_set(root / "val", [make_record(i + 100) for i in range(7)])
    return train, val


@pytest.fixture(scope="module")
def plan(sets) -> RunPlan:
    return build_run_plan(sets[0].index(), sets[1].index(), **SETTINGS)


def same_bytes(a: pa.Table, b: pa.Table) -> bool:
    return a.schema == b.schema and a.combine_chunks().equals(b.combine_chunks())


def test_training_batch_by_hand(sets):
    loader = make_loader(sets[0], augmenter=Augmenter())
    table = load(loader, train_row([0, 2, 4]))
    assert table.schema == BATCH_SCHEMA
    assert table.num_rows == 1
    planned = unpack_batch(table)
    assert (planned.kind, planned.epoch, planned.step, planned.worker) == ("train", 1, 5, 1)
    assert planned.num_fill == 1
    batch = planned.batch
    assert batch.plan_index == 11
    assert batch.image_ids == [500, 502, 504]
    assert batch.original_sizes == [(30, 48)] * 3
    assert batch.bad_images == []
    # 30x48 to a shorter side of 24: 24x38.4 rounds to 24x38, padded to 32x48.
    assert batch.images.sizes.tolist() == [[24, 38]] * 3
    assert batch.images.pixels.shape == (3, 3, 32, 48)
    # Image 0 has a box at (2, 3, 22, 21), image 2 at (4, 5, 24, 23), image 4 has none; the crowd
    # boxes are no targets.
    assert batch.targets.labels.tolist() == [[0], [2], [-1]]
    sx, sy = 38 / 48, 24 / 30
    expected = torch.tensor(
        [
            [[2 * sx, 3 * sy, 22 * sx, 21 * sy]],
            [[4 * sx, 5 * sy, 24 * sx, 23 * sy]],
            [[0, 0, 0, 0]],
        ]
    )
    torch.testing.assert_close(batch.targets.boxes, expected)


def test_pixels_are_channels_last_uint8_with_zero_padding(sets):
    batch = batch_of(make_loader(sets[0]), train_row([1, 3, 0]))
    pixels = batch.images.pixels
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert pixels.shape[2] % 16 == 0
    assert pixels.shape[3] % 16 == 0
    for image, (height, width) in zip(pixels, batch.images.sizes.tolist(), strict=True):
        assert image[:, :height, :width].max() > 200
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()
    tallest, widest = batch.images.sizes.max(dim=0).values.tolist()
    assert pixels.shape[2] - tallest < 16
    assert pixels.shape[3] - widest < 16


def test_same_seed_same_bytes_whoever_loads(sets, plan):
    rows = plan.table
    whole = make_loader(*sets).load_table(rows)
    assert whole.num_rows == len(plan)
    assert whole["plan_index"].to_pylist() == list(range(len(plan)))
    copy = pickle.loads(pickle.dumps(make_loader(*sets, num_threads=3)))
    backwards = [load(copy, row) for row in rows.to_pylist()[::-1]]
    assert same_bytes(whole, pa.concat_tables(backwards[::-1]))
    assert not same_bytes(whole, make_loader(*sets, seed=4).load_table(rows))


def test_workers_do_not_change_the_images(sets):
    """The same picture comes out of one worker's batch and of another cut of the global batch."""
    loader = make_loader(*sets)

    def pictures(num_workers: int, micro: int | None = None) -> list[tuple[int, int, bytes, list]]:
        options = {**SETTINGS, "num_workers": num_workers, "num_micro_batches": micro, "epochs": 1}
        plan = build_run_plan(sets[0].index(), None, **options)
        result = []
        for planned in iterate(plan.table, loader):
            batch = planned.batch
            for i, (height, width) in enumerate(batch.images.sizes.tolist()):
                data = batch.images.pixels[i, :, :height, :width].contiguous().numpy().tobytes()
                real = batch.targets.labels[i] >= 0
                boxes = batch.targets.boxes[i][real].tolist()
                result.append((planned.step, batch.image_ids[i], data, boxes))
        return result

    assert pictures(1) == pictures(2) == pictures(4)
    # Four parts on three workers: two of them have a batch without images in each step.
    assert pictures(1) == pictures(3, micro=4)


def test_batches_side_by_side_are_those_made_alone_with_columns_in_one_piece(sets):
    loader = make_loader(*sets)
    rows = [train_row([0, 1, 2]), val_row([3]), train_row([4, 5]), val_row([])]
    table = load(loader, *rows)
    assert same_bytes(table, pa.concat_tables([load(loader, row) for row in rows]))
    pieces = {name: table[name].num_chunks for name in table.schema.names}
    assert pieces.pop("pixels") == len(rows)  # in one they would be a copy
    assert set(pieces.values()) == {1}


def test_a_batch_of_other_sizes_than_planned_holds_its_own_pictures(damaged):
    """Image 5 is left out, the largest of this row; 0 stands in, and moves to its place."""
    loader = make_loader(damaged, size_divisibility_px=1)
    batch = batch_of(loader, train_row([4, 5, 0]))
    alone = {i: batch_of(loader, train_row([i])).images for i in (0, 4)}
    for place, i in enumerate((4, 0, 0)):
        height, width = alone[i].sizes[0].tolist()
        picture = batch.images.pixels[place, :, :height, :width]
        assert torch.equal(picture, alone[i].pixels[0, :, :height, :width])


def test_epochs_augment_differently(sets):
    loader = make_loader(sets[0])
    tables = [load(loader, train_row([0, 1, 2, 3], epoch=e)) for e in range(4)]
    assert len({t["pixels"][0].as_py() for t in tables}) > 1


def test_validation_batch_is_not_augmented_and_has_no_targets(sets):
    loader = make_loader(*sets)
    a, b = (batch_of(loader, val_row([0, 1], epoch=e)) for e in (0, 1))
    assert torch.equal(a.images.pixels, b.images.pixels)
    assert a.targets.boxes.shape == (2, 0, 4)
    assert a.image_ids == [600, 601]
    assert a.original_sizes == [(30, 48), (44, 32)]


def test_nothing_planned_gives_nothing(sets, plan):
    loader = make_loader(*sets)
    table = loader.load_table(plan.table.slice(0, 0))
    assert table.schema == BATCH_SCHEMA
    assert table.num_rows == 0
    batch = batch_of(loader, val_row([]))
    assert len(batch.images) == len(batch.targets) == 0
    assert batch.images.pixels.shape == (0, 3, 16, 16)
    assert batch.images.sizes.shape == (0, 2)
    assert batch.image_ids == batch.original_sizes == []


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> PreparedDataset:
    """24 images: 1 is noise, 2 is cut, 5 is larger than annotated; 12 to 22 are empty files."""
    bad = {1: b"noise", 2: make_record(2).image[:100], 5: make_record(4).image}
    bad |= dict.fromkeys(range(12, 23), b"")
    records = [make_record(i, **({"image": bad[i]} if i in bad else {})) for i in range(24)]
    return write_set(tmp_path_factory.mktemp("damaged") / "set", records)


def test_bad_training_images_are_replaced_by_the_next_good_one(damaged):
    loader = make_loader(damaged)
    batch = batch_of(loader, train_row([0, 1, 2, 3, 5]))
    assert batch.image_ids == [500, 503, 503, 503, 500]
    assert [name for name, _ in batch.bad_images] == ["001.png", "002.png", "005.png"]
    assert "not an image" in batch.bad_images[0][1]
    assert "48 x 30 pixels, its annotation says 32 x 44" in batch.bad_images[2][1]
    pixels, sizes = batch.images.pixels, batch.images.sizes
    assert torch.equal(pixels[1], pixels[3])
    assert torch.equal(pixels[4], pixels[0])
    assert sizes[1].tolist() == list(shortest_edge_size(44, 32, 24, 64))
    assert torch.equal(batch.targets.boxes[2], batch.targets.boxes[3])


def test_a_row_of_bad_images_takes_a_spare(damaged):
    loader = make_loader(damaged)
    batch = batch_of(loader, train_row([1]))  # 2 is bad too, 3 is good
    assert batch.image_ids == [503]
    assert [name for name, _ in batch.bad_images] == ["001.png"]
    last = batch_of(loader, train_row([20, 22]))  # the spare is 23
    assert last.image_ids == [523, 523]
    assert len(last.bad_images) == 2


def test_when_no_spare_helps_the_images_are_named(damaged):
    with pytest.raises(DataError, match=r"012\.png(.|\n)*plan row 11(.|\n)*013\.png") as caught:
        load(make_loader(damaged), train_row([12, 13]))
    assert "empty" in str(caught.value)
    with pytest.raises(DataError, match=r"012\.png.*empty.*plan row 11"):
        load(make_loader(damaged), train_row([12]))


def test_bad_validation_images_stay_as_black_pictures(damaged):
    loader = make_loader(val=damaged)
    batch = batch_of(loader, val_row([0, 1, 5]))
    assert batch.image_ids == [500, 501, 505]
    assert [name for name, _ in batch.bad_images] == ["001.png", "005.png"]
    assert batch.images.sizes[2].tolist() == list(shortest_edge_size(44, 32, 24, 64))
    assert batch.images.pixels[0].any()
    assert not batch.images.pixels[1:].any()
    only_bad = batch_of(loader, val_row([1]))
    assert only_bad.image_ids == [501]


def test_iterate_gives_the_plans_batches_in_order(sets, plan):
    loader = make_loader(*sets)
    rows = plan.worker_rows(1)
    for threads in (1, 4):
        batches = list(iterate(rows, loader, num_threads=threads))
        assert [b.batch.plan_index for b in batches] == rows["plan_index"].to_pylist()
        expected = batch_of(loader, rows.slice(2, 1).to_pylist()[0])
        assert torch.equal(batches[2].batch.images.pixels, expected.images.pixels)


def test_iterate_passes_errors_on_and_can_be_left_early(sets, damaged):
    loader = make_loader(damaged)
    rows = pa.Table.from_pylist([train_row([0]), train_row([12]), train_row([0])])
    batches = iterate(rows, loader)
    assert next(batches).batch.image_ids == [500]
    with pytest.raises(DataError, match=r"012\.png"):
        next(batches)
    early = iterate(rows, loader, num_threads=2)
    next(early)
    early.close()
    with pytest.raises(ValueError, match="num_threads = 0"):
        iterate(rows, loader, num_threads=0)


def test_from_config_and_evaluation_alone(sets):
    config = ExperimentConfig(
        train=TrainConfig(seed=3), input=InputConfig(flip="both", size_divisibility_px=16)
    )
    train, val = sets
    loader = BatchLoader.from_config(config, train, val, train.index(), val.index())
    row = train_row([0, 1, 2])
    assert same_bytes(load(loader, row), load(make_loader(*sets), row))
    only_val = BatchLoader.from_config(config, None, val, None, val.index())
    evaluation = build_eval_plan(
        val.index(), num_workers=1, eval_batch_size=3, eval_size_px=32, eval_max_size_px=48
    )
    ids = [i for b in iterate(evaluation.table, only_val) for i in b.batch.image_ids]
    assert sorted(ids) == list(range(600, 607))
    with pytest.raises(ValueError, match="a train row came"):
        load(only_val, row)
    with pytest.raises(ValueError, match="needed together"):
        BatchLoader.from_config(config, train, val, None, val.index())


def test_unpack_wants_one_row_and_copies_nothing_big(sets):
    table = load(make_loader(sets[0]), train_row([0]), train_row([1]))
    with pytest.raises(ValueError, match="2 rows"):
        unpack_batch(table)
    second = unpack_batch(table.slice(1, 1))
    assert second.batch.image_ids == [501]
    record_batch = table.combine_chunks().to_batches()[0].slice(1, 1)
    pixels = unpack_batch(record_batch).batch.images.pixels
    assert torch.equal(pixels, second.batch.images.pixels)
    start = record_batch.column("pixels").buffers()[2].address
    first_bytes = len(table["pixels"][0].as_py())
    assert pixels.data_ptr() == start + first_bytes
    # The tensor keeps Arrow's memory alive.
    expected = pixels.clone()
    del record_batch, table, second
    assert torch.equal(pixels, expected)


def test_unpacked_batch_moves_as_a_whole(sets):
    planned = unpack_batch(load(make_loader(sets[0]), train_row([0, 1])))
    moved = planned.to("meta")
    assert moved.batch.images.pixels.device.type == "meta"
    assert moved.batch.targets.boxes.device.type == "meta"
    assert (moved.kind, moved.step, moved.num_fill) == ("train", 5, 1)


@pytest.mark.parametrize(
    ("column", "values", "kind"),
    [
        ("boxes", [2.0, 3, 90, 21], "box out of the image"),
        ("boxes", [float("nan"), 3, 9, 21], "box is not finite"),
        ("labels", 3, "label out of range"),
    ],
)
def test_bad_targets_of_a_damaged_shard_are_named_before_augmentation(
    tmp_path, column, values, kind
):
    """The writer refuses them, so the shard is changed behind its back."""
    train = write_set(tmp_path / "set", [make_record(i) for i in range(3)])
    (path,) = (tmp_path / "set").glob("*.parquet")
    rows = pq.read_table(path)
    nested = rows[column].to_pylist()
    nested[2][0] = values
    pq.write_table(with_column(rows, column, nested), path)
    loader = make_loader(train)
    load(loader, train_row([0, 1]))
    with pytest.raises(DataError, match=r"image 1 of the batch \(id 502\), box 0: ") as error:
        load(loader, train_row([1, 2]))
    assert [fault.kind for fault in error.value.faults] == [kind]


# Mixed images, and repeats


def test_a_mixed_row_holds_the_boxes_of_all_its_images(sets):
    loader = make_loader(*sets, augmenter=Augmenter(mosaic_scale=(0.5, 0.5), min_visible=0.01))
    alone = batch_of(loader, train_row([0, 4]))
    row = train_row([0, 4]) | {"partners": [[1, 2, 3], [6]]}
    mixed = batch_of(loader, row)
    assert mixed.image_ids == alone.image_ids
    assert mixed.images.sizes.tolist() == alone.images.sizes.tolist()
    assert not torch.equal(mixed.images.pixels[0], alone.images.pixels[0])
    assert not torch.equal(mixed.images.pixels[1], alone.images.pixels[1])
    counts = [(b.targets.labels >= 0).sum(1).tolist() for b in (alone, mixed)]
    blended = batch_of(loader, train_row([6]))
    assert counts[1][1] == counts[0][1] + int((blended.targets.labels >= 0).sum())
    again = batch_of(loader, row)
    assert torch.equal(again.images.pixels, mixed.images.pixels)
    assert torch.equal(again.targets.boxes, mixed.targets.boxes)


def test_a_bad_image_is_left_out_of_the_one_that_it_was_to_be_mixed_into(damaged):
    loader = make_loader(damaged)
    alone = batch_of(loader, train_row([0, 3]))
    row = train_row([0, 3]) | {"partners": [[1], [4, 6, 2]]}
    batch = batch_of(loader, row)
    assert batch.image_ids == [500, 503]
    assert torch.equal(batch.images.pixels, alone.images.pixels)
    assert [name for name, _ in batch.bad_images] == ["001.png", "002.png"]
    # A bad image itself is replaced, whatever was to be mixed into it.
    batch = batch_of(loader, train_row([0, 1]) | {"partners": [[], [3]]})
    assert batch.image_ids == [500, 500]


def test_repeats_of_an_image_are_changed_differently(sets):
    loader = make_loader(*sets, augmenter=Augmenter(scale_jitter=(0.5, 2)))
    row = train_row([0, 0, 0])
    alike = batch_of(loader, row).images.pixels
    assert torch.equal(alike[0], alike[1])
    pixels = batch_of(loader, row | {"repeats": [0, 1, 2]}).images.pixels
    assert torch.equal(pixels[0], alike[0])
    assert not torch.equal(pixels[0], pixels[1])
    assert not torch.equal(pixels[1], pixels[2])
