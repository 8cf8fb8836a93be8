"""Precision by recall, best thresholds, confusion matrix and scores of images, all by hand."""

import math

import numpy as np
import pytest
from evaluation_scenes import found, random_case, scene, scene_of

from retina_ray.evaluation.confusion import confusion_matrix, score_images
from retina_ray.evaluation.curves import (
    best_threshold,
    best_thresholds,
    precision_at_recalls,
)
from retina_ray.evaluation.errors import Verdict, find_errors
from retina_ray.evaluation.matching import match

CAT, DOG = 1, 2
BOX, OTHER, THIRD = [0, 0, 100, 100], [200, 200, 100, 100], [200, 0, 100, 100]


def test_precision_without_detections_and_without_boxes():
    none, no = np.zeros(0), np.zeros(0, bool)
    assert precision_at_recalls(none, no, 3).tolist() == [0] * 101
    assert np.isnan(precision_at_recalls(none, no, 0)).all()


def test_the_threshold_with_the_best_f1():
    score, hit = np.array([0.9, 0.7, 0.8, 0.6]), np.array([True, True, False, False])
    best = best_threshold(score, hit, 2)
    assert best.score == 0.7
    assert (best.precision, best.recall) == (pytest.approx(2 / 3), 1)
    assert best.f1 == pytest.approx(4 / 5)


def test_equal_scores_are_kept_together():
    # Cutting between the two of 0.5 would give F1 1.
    best = best_threshold(np.array([0.5, 0.5]), np.array([True, False]), 1)
    assert (best.score, best.precision, best.f1) == (0.5, 0.5, pytest.approx(2 / 3))


def test_no_threshold_where_nothing_is_right():
    best = best_threshold(np.array([0.5]), np.array([False]), 1)
    assert math.isnan(best.score)
    assert best.f1 == 0
    assert math.isnan(best_threshold(np.zeros(0), np.zeros(0, bool), 0).f1)


def test_thresholds_together_and_by_class():
    boxes = [(1, CAT, BOX), (1, DOG, OTHER)]
    results = [found(1, CAT, BOX, 0.9), found(1, DOG, OTHER, 0.3), found(1, DOG, BOX, 0.8)]
    together, (cat, dog) = best_thresholds(match(scene(boxes, results)))
    assert (cat.score, dog.score) == (0.9, 0.3)
    assert (cat.f1, dog.f1) == (1, pytest.approx(2 / 3))
    assert together.score == 0.3  # 4/5; at 0.9 it is 2/3
    assert together.f1 == pytest.approx(4 / 5)


# The confusion matrix: rows true, columns predicted, the last ones background.


def confusion(boxes, results, threshold=0.5, **options):
    return confusion_matrix(scene(boxes, results, **options), score_threshold=threshold).tolist()


def test_each_cell_of_the_confusion_matrix():
    boxes = [(1, CAT, BOX), (1, DOG, OTHER), (2, DOG, BOX), (3, CAT, BOX)]
    results = [
        found(1, CAT, BOX, 0.9),  # cat as cat
        found(1, CAT, OTHER, 0.9),  # dog as cat
        found(2, DOG, OTHER, 0.9),  # background as dog; the dog itself is missed
        found(3, CAT, BOX, 0.4),  # below the threshold: missed
    ]
    matrix = confusion(boxes, results, num_images=3)
    assert matrix == [[1, 0, 1], [1, 0, 1], [0, 1, 0]]


def test_the_larger_overlap_comes_first_then_the_better_score():
    boxes = [(1, CAT, BOX)]
    near = found(1, DOG, [0, 0, 100, 90], 0.9)
    exact = found(1, CAT, BOX, 0.6)
    assert confusion(boxes, [near, exact]) == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    equal = found(1, DOG, BOX, 0.9)
    assert confusion(boxes, [exact, equal]) == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_a_box_may_take_its_second_choice():
    # The tall box overlaps both true boxes; the exact one takes the first of them.
    boxes = [(1, CAT, BOX), (1, DOG, [0, 30, 100, 100])]
    exact, second = found(1, CAT, BOX, 0.6), found(1, CAT, [0, 10, 100, 100], 0.9)
    assert confusion(boxes, [exact, second]) == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]


def test_crowd_regions_confuse_nothing():
    boxes = [(1, CAT, BOX, 1)]
    inside = [10, 10, 20, 20]
    results = [found(1, CAT, inside, 0.9), found(1, DOG, inside, 0.9)]
    matrix = confusion([*boxes, (1, DOG, OTHER)], results)
    assert matrix == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]  # the dog is no part of the crowd of cats


@pytest.mark.parametrize("seed", range(4))
def test_every_box_and_every_detection_is_counted_once(seed):
    ground_truth, results = random_case(seed)
    ground_truth["annotations"] = [a for a in ground_truth["annotations"] if not a["iscrowd"]]
    columns = scene_of(ground_truth, results)
    matrix = confusion_matrix(columns, score_threshold=0.3)
    assert matrix[:-1].sum(axis=1).tolist() == columns.num_true.tolist()
    kept = columns.found_label[columns.found_score >= 0.3]
    counts = np.bincount(kept, minlength=len(columns.names))
    assert matrix[:, :-1].sum(axis=0).tolist() == counts.tolist()


# Scores of images


def scores(boxes, results, threshold=0.5, **options):
    analysis = find_errors(scene(boxes, results, **options))
    return score_images(analysis, score_threshold=threshold)


def test_scores_of_images():
    boxes = [(1, CAT, BOX), (1, CAT, OTHER), (2, DOG, BOX), (3, CAT, BOX)]
    results = [
        found(1, CAT, BOX, 0.9),
        found(1, CAT, THIRD, 0.8),  # background
        found(2, DOG, BOX, 0.7),
        found(3, CAT, BOX, 0.4),  # below the threshold
        found(4, CAT, BOX, 0.9),  # on an image without boxes
    ]
    images = scores(boxes, results, num_images=5)
    assert images.right.tolist() == [1, 1, 0, 0, 0]
    assert images.wrong.tolist() == [1, 0, 0, 1, 0]
    assert images.lost.tolist() == [1, 0, 1, 0, 0]
    assert images.f1[:4].tolist() == [0.5, 1, 0, 0]
    assert math.isnan(images.f1[4])
    assert images.worst(9) == [2, 3, 0]
    assert images.best(9) == [1, 0]
    assert images.worst(1) == [2]
    assert images.missed.tolist() == [False, True, False, True]
    assert (images.verdict == Verdict.IGNORED).sum() == 1


def test_an_error_below_the_threshold_covers_no_box():
    result = found(1, CAT, [0, 0, 100, 30], 0.4)
    assert scores([(1, CAT, BOX)], [result], 0.5).missed.tolist() == [True]
    assert scores([(1, CAT, BOX)], [result], 0.4).missed.tolist() == [False]


def test_images_without_any_detections():
    images = scores([(1, CAT, BOX), (2, CAT, BOX, 1)], [], num_images=2)
    assert images.lost.tolist() == [1, 0]  # a crowd region is not lost
    assert images.worst(5) == [0]
    assert images.best(5) == []


def test_more_errors_are_worse_among_equals():
    boxes = [(image, CAT, BOX) for image in (1, 2, 3, 4)]
    boxes += [(image, CAT, OTHER) for image in (2, 4)]
    hits = [found(3, CAT, BOX, 0.9), found(4, CAT, BOX, 0.9), found(4, CAT, OTHER, 0.9)]
    images = scores(boxes, hits, num_images=4)
    assert images.worst(2) == [1, 0]
    assert images.best(2) == [3, 2]
