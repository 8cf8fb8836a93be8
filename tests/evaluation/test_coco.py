"""COCO metrics: against hand-computed values, and against COCOeval run directly."""

import contextlib
import copy
import io
import json
import math
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from builders import COCO_TINY as TINY
from evaluation_scenes import cat, found
from evaluation_scenes import truth as scene_truth
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retina_ray.evaluation import (
    CocoMetrics,
    evaluate_coco,
    metrics_table,
    to_results,
    write_results,
)
from retina_ray.evaluation.coco import COCO_METRICS
from retina_ray.structures import Detections

COCO_TINY = TINY / "annotations"


truth = partial(scene_truth, categories=((1, "cat"),))


@pytest.fixture(scope="module")
def coco_tiny(tmp_path_factory):
    """The fifteen commonest classes of a piece of COCO, and the file with them."""
    path = COCO_TINY / "instances_val2017.json"
    if not path.exists():
        pytest.skip("shared/data/coco_tiny is not there")
    truth = json.loads(path.read_text())
    counts = Counter(a["category_id"] for a in truth["annotations"])
    kept = {category for category, _ in counts.most_common(15)}
    truth["categories"] = [c for c in truth["categories"] if c["id"] in kept]
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] in kept]
    path = tmp_path_factory.mktemp("coco") / "truth.json"
    path.write_text(json.dumps(truth))
    return truth, path


def noisy_results(ground_truth, *, seed=0):
    """Boxes moved about, some dropped, some with a wrong class, some made up."""
    rng = np.random.default_rng(seed)
    categories = [c["id"] for c in ground_truth["categories"]]
    results = []
    for a in ground_truth["annotations"]:
        if rng.random() < 0.2:
            continue
        x, y, w, h = a["bbox"]
        box = [x + rng.normal(0, 0.1) * w, y, w * rng.uniform(0.8, 1.2), h]
        wrong = rng.random() < 0.1
        category = int(rng.choice(categories)) if wrong else a["category_id"]
        results.append(found(a["image_id"], category, box, float(rng.random())))
        if rng.random() < 0.5:
            results.append(found(a["image_id"], category, [x, y, w / 2, h], float(rng.random())))
    return results


def direct_stats(path, results):
    """What a plain COCOeval run on the original file prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
        evaluator = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


def test_one_false_alarm_between_two_hits_by_hand():
    # Sorted by score: hit, false alarm, hit. Precision 1 up to recall 0.5 (51 of the 101 recall
    # points 0.00 to 0.50), then 2/3 (50 points).
    ground_truth = truth([(1, 1, [0, 0, 50, 50], 0), (1, 1, [100, 100, 50, 50], 0)])
    results = [
        cat(1, [0, 0, 50, 50], 0.9),
        cat(1, [60, 0, 30, 30], 0.8),
        cat(1, [100, 100, 50, 50], 0.7),
    ]
    metrics = evaluate_coco(ground_truth, results)
    expected = (51 + 50 * 2 / 3) / 101
    assert metrics.AP == pytest.approx(expected, abs=1e-9)
    assert metrics.AP50 == pytest.approx(expected, abs=1e-9)
    assert metrics.APm == pytest.approx(1.0)  # the false alarm is small, so it is not counted here
    assert metrics.AR1 == pytest.approx(0.5)
    assert metrics.AR10 == metrics.AR100 == pytest.approx(1.0)
    assert math.isnan(metrics.APs)
    assert math.isnan(metrics.APl)
    assert math.isnan(metrics.ARl)


def test_overlap_decides_which_thresholds_count():
    # IoU 0.62: a hit at 0.50, 0.55 and 0.60, so AP is 3/10.
    metrics = evaluate_coco(truth([(1, 1, [0, 0, 100, 100], 0)]), [cat(1, [0, 0, 100, 62], 0.5)])
    assert metrics.AP == pytest.approx(0.3)
    assert metrics.AP50 == pytest.approx(1.0)
    assert metrics.AP75 == 0.0
    assert metrics.APl == pytest.approx(0.3)


def test_classes_are_averaged_and_named():
    ground_truth = truth(
        [(1, 7, [0, 0, 50, 50], 0), (1, 90, [100, 0, 50, 50], 0)],
        categories=((90, "dog"), (7, "cat"), (13, "cow")),  # ids with gaps, out of order
    )
    metrics = evaluate_coco(ground_truth, [found(1, 7, [0, 0, 50, 50], 0.9)])
    assert metrics.AP == pytest.approx(0.5)
    assert metrics.per_class["cat"] == pytest.approx(1.0)
    assert metrics.per_class["dog"] == 0.0
    assert math.isnan(metrics.per_class["cow"])


def test_detections_in_a_crowd_are_no_false_alarms():
    crowd = (1, 1, [100, 100, 100, 100], 1)
    ground_truth = truth([(1, 1, [0, 0, 50, 50], 0), crowd])
    inside = cat(1, [110, 110, 20, 20], 0.99)
    hit = cat(1, [0, 0, 50, 50], 0.5)
    assert evaluate_coco(ground_truth, [inside, hit]).AP == pytest.approx(1.0)
    without_crowd = truth([(1, 1, [0, 0, 50, 50], 0)])
    assert evaluate_coco(without_crowd, [inside, hit]).AP == pytest.approx(0.5)


def test_false_alarms_on_an_image_without_boxes_cost_precision():
    ground_truth = truth([(1, 1, [0, 0, 50, 50], 0)], num_images=2)
    hit, false_alarm = cat(1, [0, 0, 50, 50], 0.5), cat(2, [0, 0, 50, 50], 0.9)
    assert evaluate_coco(ground_truth, [hit]).AP == pytest.approx(1.0)
    assert evaluate_coco(ground_truth, [hit, false_alarm]).AP == pytest.approx(0.5)


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
    hit = cat(1, [0, 0, 50, 50], 0.01)
    metrics = evaluate_coco(
        truth([(1, 1, [0, 0, 50, 50], 0)]),
        [*false_alarms, hit],
        max_detections=max_detections,
    )
    expected = 1 / 201 if max_detections == 300 else 0.0
    assert metrics.AP == pytest.approx(expected)
    assert metrics.AR100 == (1.0 if max_detections == 300 else 0.0)


def test_metrics_equal_a_direct_run(coco_tiny, capfd):
    ground_truth, path = coco_tiny
    results = noisy_results(ground_truth)
    before = copy.deepcopy((ground_truth, results))
    metrics = evaluate_coco(ground_truth, results)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert (ground_truth, results) == before
    stats = direct_stats(path, results)
    assert 0.05 < metrics.AP < 0.95
    assert [getattr(metrics, name) for name in COCO_METRICS] == stats.tolist()


def test_missing_area_and_crowd_flag_are_filled_in():
    ground_truth = truth([(1, 1, [0, 0, 20, 20], 0)])
    for key in ("area", "iscrowd"):
        del ground_truth["annotations"][0][key]
    assert evaluate_coco(ground_truth, [cat(1, [0, 0, 20, 20], 1.0)]).APs == pytest.approx(1.0)


def test_all_faults_of_the_results_are_named():
    ground_truth = truth([(1, 1, [0, 0, 50, 50], 0)])
    results = [
        cat(77, [0, 0, 1, 1], 0.5),
        found(1, 42, [0, 0, 1, 1], 0.5),
        cat(1, [0, 0, math.nan, 1], 0.5),
    ]
    with pytest.raises(ValueError, match="image_id not in the ground truth: 77") as error:
        evaluate_coco(ground_truth, results)
    assert "category_id not in the ground truth: 42" in str(error.value)
    assert "not finite in images 1" in str(error.value)


def test_ground_truth_that_nothing_can_be_measured_on_is_refused():
    box = [0, 0, 9, 9]
    repeated = truth([(1, 1, box)])
    repeated["images"] *= 2
    for ground_truth, fault in (
        (truth([], num_images=2), "2 images without a single box"),
        (truth([(1, 1, box, 1)]), "without a single box"),  # a crowd region alone
        (truth([(1, 1, box)], categories=()), "'categories' is empty"),
        ({"images": []}, "has no 'annotations', 'categories'"),
        (truth([(5, 1, box)]), "unknown image_id: 5"),
        (repeated, "images with the same id: 1"),
    ):
        with pytest.raises(ValueError, match=fault):
            evaluate_coco(ground_truth, [])
    with pytest.raises(ValueError, match="max_detections"):
        evaluate_coco(truth([(1, 1, box)]), [], max_detections=0)


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


def test_written_results_are_what_pycocotools_loads(tmp_path, coco_tiny):
    ground_truth, truth_path = coco_tiny
    results = noisy_results(ground_truth)[:20]
    path = write_results(tmp_path / "new" / "results.json", results)
    assert json.loads(path.read_text()) == results
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(str(truth_path)).loadRes(str(path))
    assert len(loaded.anns) == 20


def test_table_shows_percent_and_what_is_missing():
    from rich.console import Console

    metrics = CocoMetrics(
        *[0.123] * 3, math.nan, *[0.5] * 8, per_class={"[red]x": 0.25, "b": math.nan, "c": 0.75}
    )
    console = Console(file=io.StringIO(), width=80)
    console.print(metrics_table(metrics))
    rows = [line.split() for line in console.file.getvalue().splitlines() if line.strip()]
    assert "AP 12.3 mean over IoU 0.50 to 0.95".split() in rows
    assert any(row[:2] == ["APs", "-"] for row in rows)
    assert rows[-3:] == [["AP", "75.0", "c"], ["AP", "25.0", "[red]x"], ["AP", "-", "b"]]
