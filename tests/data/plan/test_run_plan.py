"""The plan of a run: every property that the stream, the training and the resume rely on."""

import pickle
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sets import image_classes

from retina_ray.config import ExperimentConfig, InputConfig, TrainConfig
from retina_ray.data.plan.eval_plan import build_eval_plan
from retina_ray.data.plan.layout import RunLayout
from retina_ray.data.plan.order import _DRAW, Images, epoch_batches
from retina_ray.data.plan.rows import PLAN_SCHEMA
from retina_ray.data.plan.run_plan import RunPlan, build_run_plan
from retina_ray.data.plan.sampling import make_sampler
from retina_ray.data.random_streams import random_stream
from retina_ray.errors import DataError

SETTINGS = {
    "epochs": 2,
    "batch_size": 4,
    "num_workers": 2,
    "seed": 7,
    "train_sizes_px": (64, 96),
    "train_size_sampling": "choice",
    "train_max_size_px": 160,
    "eval_size_px": 80,
    "eval_max_size_px": 120,
    "eval_batch_size": 3,
    "eval_every_epochs": 1,
    "group_by_aspect": True,
    "window_row_groups": 2,
}


def make_index(wide: list[bool], rows_per_group: int = 4) -> pa.Table:
    """An index of images of 60x40 (wide) or 40x60 pixels."""
    n = len(wide)
    flags = np.array(wide, bool)
    place = np.arange(n)
    columns = {
        "shard": place // (3 * rows_per_group),
        "row_group": place // rows_per_group % 3,
        "row": place % rows_per_group,
        "image_id": 1000 + place,
        "height": np.where(flags, 40, 60),
        "width": np.where(flags, 60, 40),
        "num_boxes": np.ones(n, int),
    }
    return pa.table({k: pa.array(v, pa.int32()) for k, v in columns.items()})


def plan_of(wide, val=5, **changes) -> RunPlan:
    val_index = None if val is None else make_index([i % 3 > 0 for i in range(val)])
    return build_run_plan(make_index(wide), val_index, **{**SETTINGS, **changes})


def rows_of(plan: RunPlan, kind: str) -> list[dict]:
    return [row for row in plan.table.to_pylist() if row["kind"] == kind]


def global_batches(plan: RunPlan) -> list[list[int]]:
    batches: dict[int, list[int]] = {}
    for row in rows_of(plan, "train"):
        batches.setdefault(row["step"], []).extend(row["images"])
    return [batches[step] for step in sorted(batches)]


@st.composite
def runs(draw) -> dict:
    """Settings of a run with its images' shapes."""
    workers = draw(st.integers(1, 3))
    batch = workers * draw(st.integers(1, 4))
    n = draw(st.integers(batch, batch * 5 + 3))
    return {
        "wide": draw(st.lists(st.booleans(), min_size=n, max_size=n)),
        "val": draw(st.integers(1, 20)),
        "epochs": draw(st.integers(1, 4)),
        "batch_size": batch,
        "num_workers": workers,
        "seed": draw(st.integers(-3, 2**40)),
        "eval_batch_size": draw(st.integers(1, 5)),
        "eval_every_epochs": draw(st.integers(1, 3)),
        "group_by_aspect": draw(st.booleans()),
        "window_row_groups": draw(st.integers(1, 5)),
    }


@st.composite
def elastic_runs(draw) -> dict:
    """Settings of a run of M micro-batches a step, for any number of workers."""
    micro = draw(st.integers(1, 6))
    run = draw(runs())
    batch = micro * draw(st.integers(1, 3))
    n = draw(st.integers(batch, batch * 3 + 2))
    wide = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    mixing = {"mosaic_prob": draw(st.sampled_from([0.0, 0.5])), "mixup_prob": 0.3}
    return {**run, **mixing, "wide": wide, "batch_size": batch, "num_micro_batches": micro}


@settings(max_examples=60, deadline=None)
@given(runs() | elastic_runs())
def test_each_image_once_an_epoch_apart_from_marked_fills(run):
    plan = plan_of(**run)
    n, size = len(run["wide"]), run["batch_size"]
    parts = run.get("num_micro_batches", run["num_workers"])
    assert plan.steps_per_epoch == -(-n // size)
    assert plan.num_steps == plan.steps_per_epoch * run["epochs"]
    for epoch in range(run["epochs"]):
        rows = [r for r in rows_of(plan, "train") if r["epoch"] == epoch]
        assert sum(row["images"] != [] for row in rows) == plan.steps_per_epoch * parts
        planned = [i for r in rows for i in r["images"][: len(r["images"]) - r["num_fill"]]]
        assert sorted(planned) == list(range(n))
        assert sum(r["num_fill"] for r in rows) == -n % size
        assert len({r["step"] for r in rows if r["num_fill"]}) <= 1
        assert {len(r["images"]) for r in rows} - {0} == {size // parts}
    for batch in global_batches(plan):
        assert len(set(batch)) == size, "a batch holds an image twice"


@settings(max_examples=60, deadline=None)
@given(runs())
def test_only_marked_batches_mix_aspects(run):
    plan = plan_of(**{**run, "group_by_aspect": True})
    steps = {row["step"]: row for row in rows_of(plan, "train")}
    mixed_steps = Counter()
    for step, batch in enumerate(global_batches(plan)):
        mixes = len({run["wide"][i] for i in batch}) == 2
        assert steps[step]["mixed"] == mixes
        mixed_steps[steps[step]["epoch"]] += mixes
    num_wide = sum(run["wide"])
    if min(num_wide, len(run["wide"]) - num_wide) >= run["batch_size"]:
        assert all(count <= 1 for count in mixed_steps.values())


@settings(max_examples=40, deadline=None)
@given(runs())
def test_global_batches_do_not_depend_on_the_workers(run):
    size = run["batch_size"]
    plans = [plan_of(**{**run, "num_workers": w}) for w in range(1, size + 1) if size % w == 0]
    reference = global_batches(plans[0])
    for plan in plans[1:]:
        assert global_batches(plan) == reference
        sizes = {r["step"]: r["size_px"] for r in rows_of(plan, "train")}
        assert sizes == {r["step"]: r["size_px"] for r in rows_of(plans[0], "train")}


@settings(max_examples=40, deadline=None)
@given(runs())
def test_validation_rounds(run):
    plan = plan_of(**run)
    rows = rows_of(plan, "val")
    ends = {e for e in range(1, run["epochs"] + 1) if e % run["eval_every_epochs"] == 0}
    ends.add(run["epochs"])
    by_step: dict[int, list[dict]] = {}
    for row in rows:
        by_step.setdefault(row["step"], []).append(row)
    assert set(by_step) == {e * plan.steps_per_epoch for e in ends}
    assert plan.num_val_rounds == len(ends)
    for step, members in by_step.items():
        assert sorted(i for r in members for i in r["images"]) == list(range(run["val"]))
        counts = Counter(r["worker"] for r in members)
        assert set(counts.values()) == {plan.num_val_rows_per_worker}
        assert len(counts) == run["num_workers"]
        assert {r["epoch"] for r in members} == {step // plan.steps_per_epoch - 1}
        assert {r["num_fill"] for r in members} == {0}
        sizes = [len(r["images"]) for r in members]
        assert max(sizes) <= run["eval_batch_size"]
        # Only the last row with images is short, and fewer rows than workers are empty.
        assert sizes == sorted(sizes, reverse=True)
        assert sizes.count(0) < run["num_workers"]
        for row in members:
            wide = {i % 3 > 0 for i in row["images"]}
            assert row["mixed"] == (len(wide) == 2)
            assert (row["size_px"], row["max_size_px"]) == (80, 120)


@settings(max_examples=40, deadline=None)
@given(runs() | elastic_runs(), st.integers(1, 5), st.data())
def test_blocks_serve_every_worker_its_rows_and_resume(run, rows_per_block, data):
    plan = plan_of(**run)
    step = data.draw(st.integers(0, plan.num_steps))
    validate_first = data.draw(st.booleans())
    assert plan.table.schema == PLAN_SCHEMA
    assert plan.table["plan_index"].to_pylist() == list(range(plan.layout.num_rows))
    times = [(row["step"], row["kind"] == "train") for row in plan.table.to_pylist()]
    assert times == sorted(times), "a round of validation comes before the step of its number"
    blocks = list(plan.layout.blocks(rows_per_block, step, validate_first=validate_first))
    for rank in range(run["num_workers"]):
        mine = [i for b in blocks[rank :: run["num_workers"]] for i in b.tolist()]
        expected = [
            row["plan_index"]
            for row in plan.table.to_pylist()
            if row["worker"] == rank
            and (
                row["step"] >= step
                if row["kind"] == "train" or validate_first or step == 0
                else row["step"] > step
            )
        ]
        assert mine == expected
        assert list(plan.layout.worker_rows(rank, step, validate_first=validate_first)) == expected
        rows = plan.worker_rows(rank, step, validate_first=validate_first)
        assert rows["plan_index"].to_pylist() == expected
        assert rows.equals(plan.table.take(expected) if expected else PLAN_SCHEMA.empty_table())
    kinds = plan.table["kind"].to_pylist()
    for start in range(0, len(blocks), run["num_workers"]):
        group = blocks[start : start + run["num_workers"]]
        # Whoever has fewest rows gets the next block: that keeps the order only while equal.
        assert len({len(b) for b in group}) == 1
        assert 1 <= len(group[0]) <= rows_per_block
        assert all(len({kinds[i] for i in b}) == 1 for b in group)


def test_same_seed_same_plan_other_seed_another():
    wide = [i % 2 == 0 for i in range(40)]
    assert plan_of(wide).table.equals(plan_of(wide).table)
    assert not plan_of(wide).table.equals(plan_of(wide, seed=8).table)


def test_epochs_differ_and_a_longer_run_starts_the_same():
    wide = [i % 3 > 0 for i in range(48)]
    batches = global_batches(plan_of(wide, epochs=2))
    assert batches[:12] != batches[12:]
    assert global_batches(plan_of(wide, epochs=5))[:24] == batches


@pytest.mark.parametrize("num_windows", [1, 300, 2**16 + 1])
def test_windows_are_sorted_and_shuffled_within_whatever_their_number(num_windows):
    number = np.arange(150_000)
    side = np.full(len(number), 10)
    images = Images(group=number * 2 * num_windows // len(number), height=side, width=side)
    options = {"batch_size": 1, "seed": 3, "sizes_px": [10], "size_sampling": "choice"}
    batches = epoch_batches(
        images, 2, window_row_groups=2, group_by_aspect=False, **options
    ).images.ravel()
    assert sorted(batches) == number.tolist()
    groups = images.group[batches]
    first_seen = np.unique(groups, return_index=True)[1]
    window = np.argsort(np.argsort(first_seen)) // 2
    same_window = np.diff(window[groups]) == 0
    assert (~same_window).sum() == num_windows - 1, "a window lies in several places"
    assert 0.4 < (np.diff(batches)[same_window] > 0).mean() < 0.6


def test_batch_order_mixes_aspect_groups_over_the_epoch():
    plan = plan_of([i < 200 for i in range(400)], val=None, epochs=1, window_row_groups=100)
    wide = [batch[0] < 200 for batch in global_batches(plan)]
    changes = sum(a != b for a, b in pairwise(wide))
    assert changes > 20  # 99 neighbours, half of which differ on average; sorted order would have 1


def test_sizes_are_drawn_per_global_batch():
    choice = plan_of([True] * 400, val=None, train_sizes_px=(64, 80, 96), epochs=1)
    counts = Counter(r["size_px"] for r in rows_of(choice, "train") if r["worker"] == 0)
    assert set(counts) == {64, 80, 96}
    assert min(counts.values()) > 15  # 100 draws of 3
    span = plan_of(
        [True] * 400, val=None, train_sizes_px=(64, 67), train_size_sampling="range", epochs=1
    )
    assert {r["size_px"] for r in rows_of(span, "train")} == {64, 65, 66, 67}
    assert {r["max_size_px"] for r in rows_of(span, "train")} == {160}


def test_evaluation_puts_like_aspects_together():
    wide = [i % 2 == 0 for i in range(24)]
    plan = build_eval_plan(
        make_index(wide), num_workers=2, eval_batch_size=4, eval_size_px=80, eval_max_size_px=120
    )
    assert plan.num_steps == 0
    assert plan.num_val_rows_per_worker == 3
    assert not any(plan.table["mixed"].to_pylist())
    # Of equal shape: in the order of storage.
    assert plan.table["images"][0].as_py() == [1, 3, 5, 7]
    assert len(plan.layout.blocks(2)) == 4


def test_from_config_reads_what_it_should():
    config = ExperimentConfig(
        train=TrainConfig(
            epochs=3, batch_size=4, num_workers=2, seed=7, eval_every_epochs=2, eval_batch_size=3
        ),
        input=InputConfig(
            train_sizes_px=(64, 96), train_max_size_px=160, eval_size_px=80, eval_max_size_px=120
        ),
    )
    wide = [i % 3 > 0 for i in range(30)]
    train, val = make_index(wide), make_index([i % 3 > 0 for i in range(5)])
    plan = RunPlan.from_config(config, train, val)
    expected = plan_of(wide, val=5, epochs=3, eval_every_epochs=2, window_row_groups=16)
    assert plan.table.equals(expected.table)
    without = RunPlan.from_config(config, train, None)
    assert (without.num_val_rounds, without.num_val_rows_per_worker) == (0, 0)
    assert set(without.table["kind"].to_pylist()) == {"train"}


def test_faults_are_named():
    with pytest.raises(DataError, match="training set has no images"):
        plan_of([])
    with pytest.raises(DataError, match="validation set has no images"):
        plan_of([True] * 8, val=0)
    with pytest.raises(DataError, match="3 images, fewer than one batch of 4"):
        plan_of([True] * 3)
    with pytest.raises(ValueError, match="epochs = 0, eval_every_epochs = -1"):
        plan_of([True] * 8, epochs=0, eval_every_epochs=-1)
    with pytest.raises(ValueError, match="4 is not a multiple of 3 micro-batches"):
        plan_of([True] * 8, num_workers=3)
    with pytest.raises(ValueError, match="num_micro_batches = 0"):
        plan_of([True] * 8, num_micro_batches=0)
    with pytest.raises(ValueError, match="eval_batch_size = 0"):
        plan_of([True] * 8, eval_batch_size=0)
    bad = make_index([True] * 8).set_column(4, "height", pa.array([40] * 7 + [0], pa.int32()))
    with pytest.raises(DataError, match="position 7 with 60 x 0"):
        build_run_plan(bad, None, **SETTINGS)
    plan = plan_of([True] * 8)
    with pytest.raises(ValueError, match="start_step = 5 is not within the run's 0 to 4"):
        plan.layout.blocks(1, start_step=5)
    with pytest.raises(ValueError, match="rows_per_block = 0"):
        plan.layout.blocks(0)
    with pytest.raises(ValueError, match="rank 2"):
        plan.worker_rows(2)


def test_random_streams_are_apart():
    draws = {random_stream(*parts).random() for parts in [(0, 1), (1, 0), (0, 1, 2), (-1, 1)]}
    assert len(draws) == 4
    assert random_stream(3, 1, 5).random() == np.random.default_rng([3, 1, 5]).random()


# Sampling, and images that are mixed


@settings(max_examples=40, deadline=None)
@given(runs(), st.data())
def test_each_image_as_often_as_the_sampler_says_and_repeats_are_numbered(run, data):
    n = len(run["wide"])
    labels = data.draw(st.lists(st.sets(st.integers(0, 3)), min_size=n, max_size=n))
    sampling = data.draw(st.sampled_from(["repeat_factor", "class_balanced"]))
    labels[0].add(0)
    sampler = make_sampler(
        n, None, image_classes(labels, 4), sampling=sampling, repeat_threshold=0.7
    )
    plan = plan_of(**run, sampler=sampler)
    assert plan.steps_per_epoch == -(-sampler.size // run["batch_size"])
    for epoch in range(run["epochs"]):
        rows = [r for r in rows_of(plan, "train") if r["epoch"] == epoch]
        planned = []
        for row in rows:
            repeats = row["repeats"] or [0] * len(row["images"])
            pairs = list(zip(row["images"], repeats, strict=True))
            planned += pairs[: len(pairs) - row["num_fill"]]
        drawn = sampler.draw(random_stream(run["seed"], epoch, 0, _DRAW)).tolist()
        assert sorted(i for i, _ in planned) == drawn
        assert sorted(planned) == sorted(
            (i, k) for i, count in Counter(drawn).items() for k in range(count)
        )


def test_repeats_are_spread_over_the_epoch():
    # One image of 400 that comes 40 times must not fill the batches of its own window.
    labels = [{0}] * 399 + [{1}]
    sampler = make_sampler(
        400, None, image_classes(labels, 2), sampling="class_balanced", repeat_threshold=1.0
    )
    plan = plan_of([True] * 400, sampler=sampler, epochs=1, batch_size=8, num_workers=1)
    steps = [s for s, batch in enumerate(global_batches(plan)) if 399 in batch]
    assert len(steps) > plan.steps_per_epoch * 0.8


@settings(max_examples=40, deadline=None)
@given(runs(), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0]))
def test_partners_of_mixed_images(run, mosaic, mixup):
    plan = plan_of(**run, mosaic_prob=mosaic, mixup_prob=mixup)
    assert global_batches(plan) == global_batches(plan_of(**run))
    n, allowed = len(run["wide"]), set()
    for with_mosaic in {mosaic > 0, mosaic == 1.0}:
        for with_mixup in {mixup > 0, mixup == 1.0}:
            allowed.add(3 * with_mosaic + with_mixup)
    counts = set()
    for row in rows_of(plan, "train"):
        partners = row["partners"] or [[]] * len(row["images"])
        assert len(partners) == len(row["images"])
        for image, own in zip(row["images"], partners, strict=True):
            counts.add(len(own))
            assert all(0 <= p < n for p in own)
            if run["window_row_groups"] * 4 >= n > 1:
                assert image not in own
    assert counts <= allowed | ({0, 1, 3} if 0.5 in (mosaic, mixup) else set())
    if mosaic in (0.0, 1.0) and mixup in (0.0, 1.0):
        assert counts == {int(3 * mosaic + mixup)}
    assert not any(p for row in rows_of(plan, "val") for p in row["partners"])


def test_partners_come_from_the_same_window():
    plan = plan_of(
        [True] * 80, epochs=1, num_workers=1, mosaic_prob=1.0, val=None, window_row_groups=1
    )
    for row in rows_of(plan, "train"):
        for image, own in zip(row["images"], row["partners"], strict=True):
            assert {p // 4 for p in own} == {image // 4}, "row groups of four images"


# Another number of workers than planned


def of_steps(plan: RunPlan, start_step: int = 0) -> dict[int, list[list[dict]]]:
    """The training rows of each step from one on: of each worker those of its own, in order."""
    steps: dict[int, list[list[dict]]] = {}
    for rank in range(plan.num_workers):
        for row in plan.worker_rows(rank, start_step).to_pylist():
            if row["kind"] == "train":
                of_workers = steps.setdefault(row["step"], [[] for _ in range(plan.num_workers)])
                of_workers[rank].append(row)
    return steps


@settings(max_examples=30, deadline=None)
@given(elastic_runs(), st.data())
def test_a_step_is_the_same_for_any_number_of_workers(run, data):
    micro, size = run["num_micro_batches"], run["batch_size"] // run["num_micro_batches"]
    whole = of_steps(plan_of(**{**run, "num_workers": 1}))
    workers = data.draw(st.integers(1, micro))
    plan = plan_of(**{**run, "num_workers": workers})
    start = data.draw(st.integers(0, plan.num_steps))
    steps = of_steps(plan, start)
    assert list(steps) == list(range(start, plan.num_steps))
    for step, of_workers in steps.items():
        assert {len(rows) for rows in of_workers} == {plan.layout.rows_per_step}
        assert plan.layout.rows_per_step == -(-micro // workers)
        # In turn: the first row of each worker, the second of each, ...
        turns = [row for turn in zip(*of_workers, strict=True) for row in turn]
        assert [row["plan_index"] for row in turns] == sorted(row["plan_index"] for row in turns)
        full, empty = turns[:micro], turns[micro:]
        assert [len(row["images"]) for row in full] == [size] * micro
        for row, same in zip(full, whole[step][0], strict=True):
            assert {**row, "worker": 0, "plan_index": 0} == {**same, "plan_index": 0}
        for row in empty:
            assert (row["images"], row["repeats"], row["partners"]) == ([], [], [])
            assert row["num_fill"] == 0
            assert row["size_px"] == full[0]["size_px"]


def test_from_config_the_micro_batches_are_those_of_all_workers_that_may_be():
    config = ExperimentConfig(
        train=TrainConfig(epochs=2, batch_size=24, num_workers=3, min_workers=1, accumulate=2)
    )
    train, val = make_index([True] * 48), make_index([True] * 11)
    for workers, rows in ((None, 2), (3, 2), (2, 3), (1, 6)):
        plan = RunPlan.from_config(config, train, val, num_workers=workers)
        layout = RunLayout.from_config(config, 48, 11, num_workers=workers)
        assert layout == plan.layout
        assert layout.num_rows == plan.table.num_rows
        assert (layout.num_workers, layout.rows_per_step) == (workers or 3, rows)
        assert {len(row["images"]) for row in rows_of(plan, "train")} == {4}


def test_a_plan_travels_without_the_rows_that_were_made():
    plan = plan_of([True] * 3000, num_workers=1)
    size = len(pickle.dumps(plan))
    table = plan.table
    assert len(pickle.dumps(plan)) < size + 1000 < table.nbytes
    assert pickle.loads(pickle.dumps(plan)).take([5, 700]).equals(table.take([5, 700]))
