"""COCO metrics: against hand-computed values, and against COCOeval run directly."""

import copy
import io
import json
import math
from functools import partial

import pytest
import torch
from evaluation_scenes import cat, found, random_case
from evaluation_scenes import truth as scene_truth
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

from retina_ray.evaluation import (
    CocoMetrics,
    evaluate_coco,
    metrics_table,
    to_results,
    write_results,
)
from retina_ray.evaluation.coco import COCO_METRICS
from retina_ray.structures import Detections

BOX = [0, 0, 50, 50]
ONE = (1, 1, BOX)
truth = partial(scene_truth, categories=((1, "cat"),))


def loaded(path, ground_truth):
    """The ground truth as pycocotools reads it; its ids count from 1, as 0 is its "no match"."""
    annotations = [{**a, "id": a["id"] + 1} for a in ground_truth["annotations"]]
    path.write_text(json.dumps({**ground_truth, "annotations": annotations}))
    return COCO(str(path))


def test_one_false_alarm_between_two_hits_by_hand():
    # Sorted by score: hit, false alarm, hit. Precision 1 up to recall 0.5 (51 of the 101 recall
    # points 0.00 to 0.50), then 2/3 (50 points).
    other = [100, 100, 50, 50]
    results = [cat(1, BOX, 0.9), cat(1, [60, 0, 30, 30], 0.8), cat(1, other, 0.7)]
    metrics = evaluate_coco(truth([ONE, (1, 1, other)]), results)
    expected = (51 + 50 * 2 / 3) / 101
    assert metrics.AP == pytest.approx(expected, abs=1e-9)
    assert metrics.AP50 == pytest.approx(expected, abs=1e-9)
    assert metrics.APm == pytest.approx(1.0)  # the false alarm is small, so it is not counted here
    assert metrics.AR1 == pytest.approx(0.5)
    assert metrics.AR10 == metrics.AR100 == pytest.approx(1.0)
    assert math.isnan(metrics.APs)
    assert math.isnan(metrics.APl)
    assert math.isnan(metrics.ARl)


def test_classes_are_averaged_and_named():
    ground_truth = truth(
        [(1, 7, BOX), (1, 90, [100, 0, 50, 50])],
        categories=((90, "dog"), (7, "cat"), (13, "cow")),  # ids with gaps, out of order
    )
    metrics = evaluate_coco(ground_truth, [found(1, 7, BOX, 0.9)])
    assert metrics.AP == pytest.approx(0.5)
    assert metrics.per_class == pytest.approx(
        {"cat": 1.0, "dog": 0.0, "cow": math.nan}, nan_ok=True
    )


@pytest.mark.parametrize("backend", ["pycocotools", "faster-coco-eval"])
def test_no_results_give_zeros(backend):
    if backend == "faster-coco-eval":
        pytest.importorskip("faster_coco_eval")
    boxes = [(1, 1, [0, 0, s, s], 0) for s in (20, 50, 150)]  # one of each size
    metrics = evaluate_coco(truth(boxes), [], backend=backend)
    assert not any(getattr(metrics, name) for name in COCO_METRICS)
    assert metrics.per_class == {"cat": 0.0}


@pytest.mark.parametrize("max_detections", [1, 5, 300])
def test_only_the_best_detections_of_an_image_count(max_detections):
    false_alarms = [cat(1, [150, 150, 9, 9], 1 - i / 1000) for i in range(200)]
    results = [*false_alarms, cat(1, BOX, 0.01)]
    metrics = evaluate_coco(truth([ONE]), results, max_detections=max_detections)
    expected = 1 / 201 if max_detections == 300 else 0.0
    assert metrics.AP == pytest.approx(expected)
    assert metrics.AR100 == (1.0 if max_detections == 300 else 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_a_direct_run(seed, tmp_path, capfd):
    ground_truth, results = random_case(seed)
    before = copy.deepcopy((ground_truth, results))
    metrics = evaluate_coco(ground_truth, results)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert (ground_truth, results) == before
    coco = loaded(tmp_path / "truth.json", ground_truth)
    evaluator = COCOeval(coco, coco.loadRes(results), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    assert 0.05 < metrics.AP < 0.95
    expected = [math.nan if value == -1 else value for value in evaluator.stats]  # no such boxes
    assert [getattr(metrics, name) for name in COCO_METRICS] == pytest.approx(
        expected, abs=0, nan_ok=True
    )


def test_missing_area_and_crowd_flag_are_filled_in():
    ground_truth = truth([(1, 1, [0, 0, 20, 20], 0)])
    for key in ("area", "iscrowd"):
        del ground_truth["annotations"][0][key]
    assert evaluate_coco(ground_truth, [cat(1, [0, 0, 20, 20], 1.0)]).APs == pytest.approx(1.0)


def test_all_faults_of_the_results_are_named():
    ground_truth, box = truth([ONE]), [0, 0, 1, 1]
    results = [cat(77, box, 0.5), found(1, 42, box, 0.5), cat(1, [0, 0, math.nan, 1], 0.5)]
    with pytest.raises(ValueError, match="image_id not in the ground truth: 77") as error:
        evaluate_coco(ground_truth, results)
    assert "category_id not in the ground truth: 42" in str(error.value)
    assert "not finite in images 1" in str(error.value)


def test_ground_truth_that_nothing_can_be_measured_on_is_refused():
    repeated = truth([ONE])
    repeated["images"] *= 2
    for ground_truth, fault in (
        (truth([], num_images=2), "2 images without a single box"),
        (truth([(*ONE, 1)]), "without a single box"),  # a crowd region alone
        (truth([ONE], categories=()), "'categories' is empty"),
        ({"images": []}, "has no 'annotations', 'categories'"),
        (truth([(5, 1, BOX)]), "unknown image_id: 5"),
        (repeated, "images with the same id: 1"),
    ):
        with pytest.raises(ValueError, match=fault):
            evaluate_coco(ground_truth, [])
    with pytest.raises(ValueError, match="max_detections"):
        evaluate_coco(truth([ONE]), [], max_detections=0)


def test_metric_keys_stay_apart():
    names = ((1, "a/b"), (2, "a_b"), (3, "dog"), (4, "dog"), (5, "dog_3"), (6, ""))
    ground_truth = truth([(1, 3, [0, 0, 9, 9], 0)], categories=names)
    keys = set(evaluate_coco(ground_truth, []).per_class)
    assert keys == {"a_b_1", "a_b_2", "dog_3_", "dog_4", "dog_3", "class_6"}


def test_metrics_under_a_prefix():
    metrics = CocoMetrics(*[i / 12 for i in range(12)], per_class={"cat": 0.5})
    logged = metrics.as_metrics(prefix="test/")
    assert set(logged) == {f"test/{name}" for name in COCO_METRICS} | {"test/AP_cat"}
    assert (logged["test/AP"], logged["test/ARl"], logged["test/AP_cat"]) == (0.0, 11 / 12, 0.5)


def test_boxes_go_back_to_the_original_image():
    detections = Detections(
        torch.tensor([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 100.5, 50.0]]),
        torch.tensor([0.75, 0.5]),
        torch.tensor([1, 0]),
    )
    results = to_results(
        detections,
        image_id=9,
        original_size=(200, 50),  # twice as high, half as wide
        resized_size=(100, 100),
        category_ids=[3, 90],
    )
    assert results == [
        {"image_id": 9, "category_id": 90, "bbox": [5.0, 40.0, 10.0, 80.0], "score": 0.75},
        # the right edge lay half a pixel outside
        {"image_id": 9, "category_id": 3, "bbox": [0.0, 0.0, 50.0, 100.0], "score": 0.5},
    ]
    assert type(results[0]["score"]) is float
    json.dumps(results)


def test_results_without_detections_and_with_faults():
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    place = {"image_id": 5, "original_size": (9, 9), "resized_size": (9, 9), "category_ids": [1, 2]}
    assert to_results(none, **place) == []
    with pytest.raises(ValueError, match="image 5: sizes"):
        to_results(none, **place | {"resized_size": (0, 9)})
    other = Detections(torch.zeros(1, 4), torch.ones(1), torch.tensor([2]))
    with pytest.raises(ValueError, match=r"image 5: labels \[2\] .* 0 to 1"):
        to_results(other, **place)


def test_written_results_are_what_pycocotools_loads(tmp_path):
    ground_truth, results = random_case(0)
    path = write_results(tmp_path / "new" / "results.json", results)
    assert json.loads(path.read_text()) == results
    coco = loaded(tmp_path / "truth.json", ground_truth)
    assert len(coco.loadRes(str(path)).anns) == len(results)


def test_table_shows_percent_and_what_is_missing():
    metrics = CocoMetrics(
        *[0.123] * 3, math.nan, *[0.5] * 8, per_class={"[red]x": 0.25, "b": math.nan, "c": 0.75}
    )
    console = Console(file=io.StringIO(), width=80)
    console.print(metrics_table(metrics))
    rows = [line.split() for line in console.file.getvalue().splitlines() if line.strip()]
    assert "AP 12.3 mean over IoU 0.50 to 0.95".split() in rows
    assert any(row[:2] == ["APs", "-"] for row in rows)
    assert rows[-3:] == [["AP", "75.0", "c"], ["AP", "25.0", "[red]x"], ["AP", "-", "b"]]
