"""TIDE's kinds of errors and their costs by hand; the AP they start from, against pycocotools."""

import math

import numpy as np
import pytest
from evaluation_scenes import found, random_case, scene, truth

from retina_ray.evaluation.coco import evaluate_coco
from retina_ray.evaluation.curves import class_precisions
from retina_ray.evaluation.errors import Verdict, find_errors
from retina_ray.evaluation.matching import match, scene_of

CAT, DOG = 1, 2
BOX = [0, 0, 100, 100]
OFF = [0, 0, 100, 30]  # IoU 0.3 with BOX
OTHER = [200, 200, 100, 100]


def errors(boxes, results, **options):
    return find_errors(scene(boxes, results, **options))


def only(analysis):
    """The kinds that occur, with their numbers."""
    return {kind: count for kind, count in analysis.count.items() if count}


def test_nothing_wrong():
    analysis = errors([(1, CAT, BOX)], [found(1, CAT, BOX, 0.5)])
    assert analysis.verdict.tolist() == [Verdict.RIGHT]
    assert only(analysis) == {}
    assert analysis.ap == pytest.approx(1)
    assert set(analysis.cost.values()) == {0}


def test_right_class_in_the_wrong_place():
    analysis = errors([(1, CAT, BOX)], [found(1, CAT, OFF, 0.5)])
    assert only(analysis) == {Verdict.LOCATION: 1}  # not missed too: the error covers the box
    assert analysis.target.tolist() == [0]
    assert analysis.ap == 0
    assert analysis.cost[Verdict.LOCATION] == pytest.approx(1)
    assert analysis.false_positives == 0
    assert math.isnan(analysis.false_negatives)  # without the box, no class has one


def test_wrong_class_in_the_right_place():
    analysis = errors([(1, CAT, BOX)], [found(1, DOG, BOX, 0.5)])
    assert only(analysis) == {Verdict.CLASS: 1}
    assert analysis.target.tolist() == [0]
    assert analysis.cost[Verdict.CLASS] == pytest.approx(1)


def test_wrong_class_in_the_wrong_place():
    # Dogs: a false alarm at 0.9, a hit at 0.5, so AP 1/2; cats: AP 0.
    analysis = errors(
        [(1, CAT, BOX), (1, DOG, OTHER)],
        [found(1, DOG, OFF, 0.9), found(1, DOG, OTHER, 0.5)],
    )
    assert only(analysis) == {Verdict.BOTH: 1, Verdict.MISSED: 1}
    assert analysis.ap == pytest.approx(0.25)
    assert analysis.cost[Verdict.BOTH] == pytest.approx(0.5 - 0.25)
    # Without the missed cat there are no cats: the mean is over dogs alone.
    assert analysis.cost[Verdict.MISSED] == pytest.approx(0.5 - 0.25)


def test_found_twice():
    analysis = errors(
        [(1, CAT, BOX), (1, CAT, OTHER)],
        [found(1, CAT, BOX, 0.9), found(1, CAT, BOX, 0.8), found(1, CAT, OTHER, 0.7)],
    )
    assert analysis.verdict.tolist() == [Verdict.RIGHT, Verdict.DUPLICATE, Verdict.RIGHT]
    assert analysis.target.tolist() == [0, 0, 1]
    # Precision 1 up to recall 1/2 (51 of the 101 points), then 2/3.
    assert analysis.ap == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert analysis.cost[Verdict.DUPLICATE] == pytest.approx(50 / 3 / 101)
    assert analysis.false_positives == pytest.approx(50 / 3 / 101)


def test_found_on_background():
    boxes, hit = [(1, CAT, BOX)], found(1, CAT, BOX, 0.5)
    for wrong in (found(2, CAT, BOX, 0.9), found(1, CAT, OTHER, 0.9)):  # an image without boxes
        analysis = errors(boxes, [hit, wrong], num_images=2)
        assert only(analysis) == {Verdict.BACKGROUND: 1}
        assert analysis.target.tolist().count(-1) == 1
        assert analysis.ap == pytest.approx(0.5)
        assert analysis.cost[Verdict.BACKGROUND] == pytest.approx(0.5)
        assert analysis.false_positives == pytest.approx(0.5)
        assert analysis.false_negatives == 0


def test_missed():
    analysis = errors([(1, CAT, BOX), (1, CAT, OTHER)], [found(1, CAT, OTHER, 0.5)])
    assert only(analysis) == {Verdict.MISSED: 1}
    assert analysis.missed.tolist() == [True, False]
    assert analysis.ap == pytest.approx(51 / 101)
    assert analysis.cost[Verdict.MISSED] == pytest.approx(50 / 101)
    assert analysis.false_negatives == pytest.approx(50 / 101)


def test_nothing_found_at_all():
    analysis = errors([(1, CAT, BOX), (1, DOG, OTHER)], [])
    assert only(analysis) == {Verdict.MISSED: 2}
    assert analysis.ap == 0
    assert math.isnan(analysis.cost[Verdict.MISSED])


@pytest.mark.parametrize(
    ("height", "kind"),
    [
        (9.99, Verdict.BACKGROUND),
        (10, Verdict.LOCATION),  # IoU 0.1
        (49.99, Verdict.LOCATION),
        (50, Verdict.RIGHT),  # IoU 0.5: COCO's matching takes it
    ],
)
def test_thresholds(height, kind):
    analysis = errors([(1, CAT, BOX)], [found(1, CAT, [0, 0, 100, height], 0.5)])
    assert analysis.verdict.tolist() == [kind]


def test_an_overlap_of_half_with_a_box_that_is_taken_is_a_duplicate():
    results = [found(1, CAT, BOX, 0.9), found(1, CAT, [0, 0, 100, 50], 0.5)]
    analysis = errors([(1, CAT, BOX)], results)
    assert analysis.verdict.tolist() == [Verdict.RIGHT, Verdict.DUPLICATE]


def test_the_first_kind_that_fits_counts():
    near = [0, 0, 100, 80]
    boxes = [(1, CAT, BOX), (1, DOG, near)]
    # 0.3 with the cat, 0.375 with the dog; 0.4 with the cat, 0.5 with the dog; both boxes taken.
    tried = ([0, 0, 100, 30], [0, 0, 100, 40], BOX)
    kinds = (Verdict.LOCATION, Verdict.LOCATION, Verdict.CLASS)
    for box, kind in zip(tried, kinds, strict=True):
        results = [
            found(1, CAT, BOX, 0.9),
            found(1, DOG, near, 0.9),
            found(1, CAT, box, 0.5),
        ]
        assert errors(boxes, results).verdict[2] == kind


def test_one_box_is_mended_once_by_the_best_of_its_errors():
    results = [
        found(1, CAT, OFF, 0.9),
        found(1, CAT, OTHER, 0.7),  # background: it would come before the other one
        found(1, CAT, [0, 0, 100, 40], 0.5),
    ]
    analysis = errors([(1, CAT, BOX)], results)
    assert only(analysis) == {Verdict.LOCATION: 2, Verdict.BACKGROUND: 1}
    assert analysis.cost[Verdict.LOCATION] == pytest.approx(1)


def test_an_error_at_a_box_that_is_found_is_left_out():
    results = [found(1, CAT, OFF, 0.9), found(1, CAT, BOX, 0.5)]
    analysis = errors([(1, CAT, BOX)], results)
    assert analysis.ap == pytest.approx(0.5)
    assert analysis.cost[Verdict.LOCATION] == pytest.approx(0.5)
    # Mended, it would stand for the second box as well.
    analysis = errors([(1, CAT, BOX), (1, CAT, OTHER)], results[::-1])
    assert analysis.cost[Verdict.LOCATION] == pytest.approx(51 / 101 - 51 * 0.5 / 101)


def test_kinds_are_mended_each_by_itself():
    results = [found(1, CAT, OFF, 0.9), found(1, DOG, BOX, 0.8)]
    analysis = errors([(1, CAT, BOX)], results)
    assert only(analysis) == {Verdict.LOCATION: 1, Verdict.CLASS: 1}
    assert analysis.cost[Verdict.LOCATION] == pytest.approx(1)
    # The misplaced cat stays a false alarm above the mended one.
    assert analysis.cost[Verdict.CLASS] == pytest.approx(0.5)


def test_a_mended_class_counts_for_the_class_it_should_have_been():
    boxes = [(1, CAT, BOX), (1, DOG, OTHER)]
    results = [found(1, DOG, BOX, 0.9), found(1, DOG, OTHER, 0.5)]
    analysis = errors(boxes, results)
    assert analysis.ap == pytest.approx((0 + 0.5) / 2)
    assert analysis.cost[Verdict.CLASS] == pytest.approx(1 - 0.25)


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
    ignored, right = Verdict.IGNORED, Verdict.RIGHT
    assert analysis.verdict.tolist() == [ignored, ignored, Verdict.BACKGROUND, right]
    assert only(analysis) == {Verdict.BACKGROUND: 1}  # and the region is not missed
    assert analysis.ap == pytest.approx(1)


def test_rotated_boxes():
    boxes = [(1, CAT, [100, 100, 80, 40, 30]), (1, CAT, [300, 300, 50, 50, 0])]
    results = [
        found(1, CAT, [100, 100, 40, 80, 120], 0.9),  # the same rectangle
        found(1, CAT, [100, 100, 80, 40, 120], 0.8),  # rotated by 90 degrees: IoU 1/3
    ]
    analysis = errors(boxes, results)
    assert analysis.verdict.tolist() == [Verdict.RIGHT, Verdict.LOCATION]
    assert only(analysis) == {Verdict.LOCATION: 1, Verdict.MISSED: 1}


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
    assert counts[Verdict.RIGHT] == found_boxes
    assert analysis.false_positives >= -1e-12
    assert found_boxes + analysis.missed.sum() <= columns.num_true.sum()


def test_results_of_another_data_set_are_refused():
    with pytest.raises(ValueError, match="image_id not in the ground truth: 9") as error:
        scene_of(truth([(1, CAT, BOX)]), [found(9, 77, BOX, 0.5)])
    assert "category_id not in the ground truth: 77" in str(error.value)
