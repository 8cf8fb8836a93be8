"""Rotated boxes: metrics by hand, against the aligned evaluation, and overlaps against OpenCV."""

import json
import math

import numpy as np
import pytest
import torch
from evaluation_scenes import cat, found, truth

from retina_ray.evaluation import evaluate_coco, to_results
from retina_ray.evaluation.rotated import overlaps
from retina_ray.structures import Detections

BY_90, BY_180 = np.array([0, 0, 0, 0, 90]), np.array([0, 0, 0, 0, 180])
THREE = ((1, "c1"), (2, "c2"), (3, "c3"))


def perfect(ground_truth, change=lambda box: box):
    return [
        found(a["image_id"], a["category_id"], change(np.array(a["bbox"])), 1.0 - a["id"] / 1e4)
        for a in ground_truth["annotations"]
        if not a["iscrowd"]
    ]


@pytest.fixture(scope="module")
def bars() -> dict:
    """Long bars at all angles, some with the longer side as their height."""
    rng = np.random.default_rng(0)
    boxes = []
    for i in range(60):
        sides = (60, 12) if i % 2 else (12, 60)
        place = rng.uniform(0, 300, 2)
        boxes.append((i % 9 + 1, i % 3 + 1, [*place, *sides, rng.uniform(-200, 200)]))
    return truth(boxes, num_images=10, categories=THREE)


@pytest.mark.parametrize(
    "change", [lambda box: box, lambda box: box - BY_180, lambda box: box[[0, 1, 3, 2, 4]] + BY_90]
)
def test_the_same_rectangles_score_one(bars, change):
    metrics = evaluate_coco(bars, perfect(bars, change))
    assert metrics.AP == pytest.approx(1.0)
    assert metrics.AR100 == pytest.approx(1.0)
    assert list(metrics.per_class.values()) == pytest.approx([1.0] * 3)


def test_a_square_rotated_by_45_degrees_by_hand():
    # The overlap is an octagon of 2 (sqrt 2 - 1) of the square's area, so the IoU is 1 / sqrt 2:
    # a hit at 0.50, 0.55, 0.60, 0.65 and 0.70.
    ground_truth = truth([(1, 1, [100, 100, 50, 50, 10])])
    metrics = evaluate_coco(ground_truth, [cat(1, [100, 100, 50, 50, 55], 0.5)])
    assert metrics.AP == pytest.approx(0.5)
    assert (metrics.AP50, metrics.AP75) == pytest.approx((1.0, 0.0))


def as_aligned(entries):
    """The same with (x, y, width, height) boxes."""
    boxes = [entry["bbox"] for entry in entries]
    aligned = [[x - w / 2, y - h / 2, w, h] for x, y, w, h, _ in boxes]
    return [{**entry, "bbox": box} for entry, box in zip(entries, aligned, strict=True)]


@pytest.mark.parametrize("max_detections", [4, 100])
def test_without_angles_the_metrics_are_those_of_aligned_boxes(max_detections):
    rng = np.random.default_rng(1)
    boxes = []
    for i in range(70):
        box = [*rng.uniform(0, 300, 2), *rng.choice([20, 60, 130], 2), 0]
        boxes.append((i % 8 + 1, i % 3 + 1, box, i % 11 == 0))
    ground_truth = truth(boxes, num_images=9, categories=THREE)
    results = []
    for image, category, box, _ in boxes:
        for _ in range(int(rng.integers(0, 4))):
            moved = np.array(box) * [1, 1, *rng.uniform(0.8, 1.25, 2), 0]
            moved[:2] += rng.normal(0, 4, 2)
            results.append(found(image, category, moved, float(rng.integers(20)) / 20))
    annotations = ground_truth["annotations"]
    aligned = evaluate_coco(
        {**ground_truth, "annotations": as_aligned(annotations)},
        as_aligned(results),
        max_detections=max_detections,
    )
    rotated = evaluate_coco(ground_truth, results, max_detections=max_detections)
    assert 0.1 < aligned.AP < 0.9
    assert not math.isnan(aligned.APs + aligned.APm + aligned.APl)
    assert rotated.as_metrics() == pytest.approx(aligned.as_metrics(), abs=1e-6)


def test_detections_in_a_rotated_crowd_are_no_false_alarms():
    hit, region = (1, 1, [40, 40, 30, 10, 30]), (1, 1, [200, 200, 100, 30, 45], 1)
    ground_truth = truth([hit, region])
    # Along the crowd region, whose enclosing box they do not fill.
    inside = [cat(1, [200 + d, 200 - d, 20, 8, 40], 0.9) for d in (-20, 0, 20)]
    results = [*inside, cat(1, hit[2], 0.5)]
    assert evaluate_coco(ground_truth, results).AP == pytest.approx(1.0)
    # Within the enclosing box of the region, but not within the region.
    outside = [cat(1, [200 + d, 200 + d, 20, 8, 40], 0.9) for d in (-25, 25)]
    assert evaluate_coco(ground_truth, [*outside, results[-1]]).AP == pytest.approx(1 / 3)


def test_detections_without_an_area_overlap_nothing():
    flat = np.array([[10, 10, 0, 5, 0], [10, 10, -4, 5, 0]], np.float64)
    crowd = np.array([False, True])
    boxes = np.array([[10, 10, 20, 20, 0], [10, 10, 20, 20, 0]], np.float64)
    assert not overlaps(flat, boxes, crowd).any()


def test_sizes_are_those_of_the_areas():
    # 30 x 30 is small, 40 x 40 medium, 100 x 100 large, however they are rotated.
    boxes = [(1, 1, [70 + 75 * i, 150, s, s, 45]) for i, s in enumerate((30, 40, 100))]
    ground_truth = truth(boxes)
    only_small = [r for r in perfect(ground_truth) if r["bbox"][2] == 30]
    metrics = evaluate_coco(ground_truth, only_small)
    assert (metrics.APs, metrics.APm, metrics.APl) == pytest.approx((1.0, 0.0, 0.0))
    # A detection that matches nothing counts as a false alarm in its own size.
    big = cat(1, [250, 60, 99, 99, 45], 1.0)
    metrics = evaluate_coco(ground_truth, [*perfect(ground_truth), big])
    assert (metrics.APs, metrics.APm) == pytest.approx((1.0, 1.0))
    assert metrics.APl == pytest.approx(0.5)


def test_no_results_give_zeros_and_areas_may_be_missing(bars):
    assert evaluate_coco(bars, []).AP == 0.0
    annotations = [{k: v for k, v in a.items() if k != "area"} for a in bars["annotations"]]
    without_area = {**bars, "annotations": annotations}
    assert evaluate_coco(without_area, perfect(bars)).AP == pytest.approx(1.0)


def test_boxes_of_both_kinds_are_refused():
    rotated, aligned = [50, 50, 20, 10, 30], [10, 10, 20, 10]
    for ground_truth, results in (
        (truth([(1, 1, rotated)]), [cat(1, aligned, 0.5)]),
        (truth([(1, 1, aligned)]), [cat(1, rotated, 0.5)]),
        (truth([(1, 1, rotated), (1, 1, aligned)]), []),
        (truth([(1, 1, rotated)]), [cat(1, rotated, 0.5), cat(1, aligned, 0.5)]),
    ):
        with pytest.raises(ValueError, match="have 4 numbers"):
            evaluate_coco(ground_truth, results)


def test_boxes_of_other_lengths_and_without_an_area_are_refused():
    box = [50, 50, 20, 10, 30]
    for annotated, detected, fault in (
        (box, [1, 2, 3], r"results: a bbox of .* images 1"),
        ([1, 2, 3, 4, 5, 6], box, r"truth: a bbox of .* annotations 0"),
        ([50, 50, 0, 10, 30], box, "without an area in annotations 0"),
        ([50, 50, 20, -1, 30], box, "without an area in annotations 0"),
        ([50, 50, 20, 10, math.nan], box, "without an area in annotations 0"),
        (box, [50, 50, 20, 10, math.inf], "not finite in images 1"),
    ):
        with pytest.raises(ValueError, match=fault):
            evaluate_coco(truth([(1, 1, annotated)]), [cat(1, detected, 0.5)])


def test_the_other_backend_has_no_rotated_boxes(bars):
    with pytest.raises(ValueError, match="backend"):
        evaluate_coco(bars, perfect(bars), backend="faster-coco-eval")


def test_results_go_back_to_the_original_image():
    detections = Detections(
        torch.tensor([[50.0, 20.0, 30.0, 10.0, 25.0], [-5.0, 20.0, 30.0, 10.0, 90.0]]),
        torch.tensor([0.75, 0.5]),
        torch.tensor([1, 0]),
    )
    place = {"image_id": 9, "resized_size": (100, 100), "category_ids": [3, 90]}
    results = to_results(detections, original_size=(200, 200), **place)
    json.dumps(results)
    assert [r["category_id"] for r in results] == [90, 3]
    assert results[0]["bbox"] == pytest.approx([100, 40, 60, 20, 25])
    assert results[1]["bbox"] == pytest.approx([-10, 40, 60, 20, 90])  # not cut at the border
    # Half as wide, twice as high: the width of the second runs up the image.
    results = to_results(detections, original_size=(200, 50), **place)
    assert results[1]["bbox"] == pytest.approx([-2.5, 40, 60, 5, 90])
    cos, sin = math.cos(math.radians(25)), math.sin(math.radians(25))
    turned = [25, 40, 30 * math.hypot(0.5 * cos, 2 * sin), 10 * math.hypot(0.5 * sin, 2 * cos)]
    turn = math.degrees(math.atan2(0.5 * sin, 2 * cos))
    assert results[0]["bbox"] == pytest.approx([*turned, turn])
    none = Detections(torch.zeros(0, 5), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert to_results(none, original_size=(9, 9), **place) == []
