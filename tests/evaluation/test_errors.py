"""TIDE's kinds of errors and their costs by hand; the AP they start from, against pycocotools."""

import math

import numpy as np
import pytest
from evaluation_scenes import found, random_case, scene

from retina_ray.evaluation.coco import evaluate_coco
from retina_ray.evaluation.curves import class_precisions
from retina_ray.evaluation.errors import Verdict, find_errors
from retina_ray.evaluation.matching import match, scene_of

CAT, DOG = 1, 2
BOX = [0, 0, 100, 100]
OFF = [0, 0, 100, 30]  # IoU 0.3 with BOX
HALF = [0, 0, 100, 50]
OTHER = [200, 200, 100, 100]


def errors(boxes, results, **options):
    return find_errors(scene(boxes, results, **options))


def only(analysis):
    """The kinds that occur, with their numbers."""
    return {kind: count for kind, count in analysis.count.items() if count}


RIGHT, CLASS, LOCATION, BOTH, DUPLICATE, BACKGROUND, MISSED = (
    kind for kind in Verdict if kind is not Verdict.IGNORED
)
NAN = math.nan
TWO_THIRDS = (51 + 50 * 2 / 3) / 101  # precision 1 up to recall 1/2 (51 of 101 points), then 2/3

A_CAT, ANOTHER, A_DOG = (CAT, BOX), (CAT, OTHER), (DOG, OTHER)


@pytest.mark.parametrize(
    ("boxes", "results", "verdicts", "missed", "ap", "costs"),  # the results by falling score
    [
        pytest.param([A_CAT], [A_CAT], [RIGHT], 0, 1, {}, id="nothing wrong"),
        # Not missed too: the error covers the box.
        ([A_CAT], [(CAT, OFF)], [LOCATION], 0, 0, {LOCATION: 1}),
        ([A_CAT], [(DOG, BOX)], [CLASS], 0, 0, {CLASS: 1}),
        # Dogs: a false alarm, then a hit, so AP 1/2; cats: AP 0. Without the missed cat there are
        # no cats: the mean is over dogs alone.
        ([A_CAT, A_DOG], [(DOG, OFF), A_DOG], [BOTH, RIGHT], 1, 0.25, {BOTH: 0.25, MISSED: 0.25}),
        (
            *([A_CAT, ANOTHER], [A_CAT, A_CAT, ANOTHER], [RIGHT, DUPLICATE, RIGHT]),
            *(0, TWO_THIRDS, {DUPLICATE: 1 - TWO_THIRDS}),
        ),
        # An overlap of a half with a box that is taken.
        ([A_CAT], [A_CAT, (CAT, HALF)], [RIGHT, DUPLICATE], 0, 1, {}),
        ([A_CAT], [ANOTHER, A_CAT], [BACKGROUND, RIGHT], 0, 0.5, {BACKGROUND: 0.5}),
        ([A_CAT, ANOTHER], [ANOTHER], [RIGHT], 1, 51 / 101, {MISSED: 50 / 101}),
        ([A_CAT, A_DOG], [], [], 2, 0, {MISSED: NAN}),
        # Mended once, by the best of its errors; the background would come before the other one.
        (
            *([A_CAT], [(CAT, OFF), ANOTHER, (CAT, [0, 0, 100, 40])]),
            *([LOCATION, BACKGROUND, LOCATION], 0, 0, {LOCATION: 1}),
        ),
        # Each kind by itself: the misplaced cat stays a false alarm above the mended one.
        ([A_CAT], [(CAT, OFF), (DOG, BOX)], [LOCATION, CLASS], 0, 0, {LOCATION: 1, CLASS: 0.5}),
        # A mended class counts for the class that it should have been.
        ([A_CAT, A_DOG], [(DOG, BOX), A_DOG], [CLASS, RIGHT], 0, 0.25, {CLASS: 0.75}),
        # The thresholds: IoU 0.1 and 0.5, which COCO's matching takes for well placed.
        *(
            ([A_CAT], [(CAT, [0, 0, 100, height])], [kind], kind == BACKGROUND, None, {})
            for height, kind in ((9.99, BACKGROUND), (10, LOCATION), (49.99, LOCATION), (50, RIGHT))
        ),
    ],
)
def test_kinds_and_costs(boxes, results, verdicts, missed, ap, costs):
    scored = [found(1, *result, 0.9 - 0.1 * place) for place, result in enumerate(results)]
    analysis = errors([(1, *box) for box in boxes], scored)
    assert analysis.verdict.tolist() == verdicts
    assert analysis.missed.sum() == missed
    if ap is not None:
        assert analysis.ap == pytest.approx(ap)
    for kind, cost in costs.items():
        assert analysis.cost[kind] == pytest.approx(cost, nan_ok=True), kind
    if set(verdicts) == {RIGHT} and not missed:
        assert set(analysis.cost.values()) == {0}


def test_targets_and_costs_of_all_wrong_and_all_lost():
    twice = [found(1, CAT, BOX, 0.9), found(1, CAT, BOX, 0.8), found(1, CAT, OTHER, 0.7)]
    analysis = errors([(1, CAT, BOX), (1, CAT, OTHER)], twice)
    assert analysis.target.tolist() == [0, 0, 1]
    assert analysis.false_positives == pytest.approx(1 - TWO_THIRDS)
    assert analysis.false_negatives == 0
    analysis = errors([(1, CAT, BOX)], [found(1, CAT, OFF, 0.5)])
    assert analysis.target.tolist() == [0]
    assert analysis.false_positives == 0
    assert math.isnan(analysis.false_negatives)  # without the box, no class has one
    # On an image without boxes.
    results = [found(1, CAT, BOX, 0.5), found(2, CAT, BOX, 0.9)]
    analysis = errors([(1, CAT, BOX)], results, num_images=2)
    assert analysis.target.tolist() == [0, -1]
    assert analysis.false_positives == pytest.approx(0.5)


def test_the_first_kind_that_fits_counts():
    near = [0, 0, 100, 80]
    boxes = [(1, CAT, BOX), (1, DOG, near)]
    # 0.3 with the cat, 0.375 with the dog; 0.4 with the cat, 0.5 with the dog; both boxes taken.
    tried = ([0, 0, 100, 30], [0, 0, 100, 40], BOX)
    kinds = (LOCATION, LOCATION, CLASS)
    for box, kind in zip(tried, kinds, strict=True):
        results = [found(1, CAT, BOX, 0.9), found(1, DOG, near, 0.9), found(1, CAT, box, 0.5)]
        assert errors(boxes, results).verdict[2] == kind


def test_an_error_at_a_box_that_is_found_is_left_out():
    results = [found(1, CAT, OFF, 0.9), found(1, CAT, BOX, 0.5)]
    analysis = errors([(1, CAT, BOX)], results)
    assert analysis.ap == pytest.approx(0.5)
    assert analysis.cost[LOCATION] == pytest.approx(0.5)
    # Mended, it would stand for the second box as well.
    analysis = errors([(1, CAT, BOX), (1, CAT, OTHER)], results[::-1])
    assert analysis.cost[LOCATION] == pytest.approx(51 / 101 - 51 * 0.5 / 101)


def test_crowd_regions():
    crowd = [200, 0, 100, 100]
    boxes = [(1, CAT, BOX), (1, CAT, crowd, 1)]
    inside = [210, 10, 20, 20]
    results = [
        found(1, CAT, inside, 0.9),  # of the crowd
        found(1, CAT, inside, 0.8),  # a crowd hides many
        found(1, DOG, inside, 0.7),  # a crowd of cats hides no dog
        found(1, CAT, BOX, 0.6),
    ]
    analysis = errors(boxes, results)
    ignored = Verdict.IGNORED
    assert analysis.verdict.tolist() == [ignored, ignored, BACKGROUND, RIGHT]
    assert only(analysis) == {BACKGROUND: 1}  # and the region is not missed
    assert analysis.ap == pytest.approx(1)


def test_rotated_boxes():
    boxes = [(1, CAT, [100, 100, 80, 40, 30]), (1, CAT, [300, 300, 50, 50, 0])]
    results = [
        found(1, CAT, [100, 100, 40, 80, 120], 0.9),  # the same rectangle
        found(1, CAT, [100, 100, 80, 40, 120], 0.8),  # rotated by 90 degrees: IoU 1/3
    ]
    analysis = errors(boxes, results)
    assert analysis.verdict.tolist() == [RIGHT, LOCATION]
    assert only(analysis) == {LOCATION: 1, MISSED: 1}


@pytest.mark.parametrize("seed", range(6))
def test_ap_is_pycocotools(seed):
    ground_truth, results = random_case(seed)
    for max_detections in (1, 3, 100):
        metrics = evaluate_coco(ground_truth, results, max_detections=max_detections)
        columns = scene_of(ground_truth, results, max_detections=max_detections)
        for iou, expected in ((0.5, metrics.AP50), (0.75, metrics.AP75)):
            precision = class_precisions(match(columns, iou=iou))
            assert precision[columns.num_true > 0].mean() == pytest.approx(expected, abs=1e-12)
        analysis = find_errors(columns)
        assert analysis.ap == pytest.approx(metrics.AP50, abs=1e-12)
    counts = np.bincount(analysis.verdict, minlength=8)
    assert counts.sum() == len(columns.found_score)
    found_boxes = (analysis.matching.found_by >= 0).sum()
    assert counts[RIGHT] == found_boxes
    assert analysis.false_positives >= -1e-12
    assert found_boxes + analysis.missed.sum() <= columns.num_true.sum()


def test_results_of_another_data_set_are_refused():
    with pytest.raises(ValueError, match="image_id not in the ground truth: 9"):
        scene([(1, CAT, BOX)], [found(9, 77, BOX, 0.5)])
