"""Crops keep what they promise; windows stay on their pictures."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_ray.data.augment.crops import are_visible, corner_window, draw_crop, draw_window
from retina_ray.ops.boxes import box_iou

DEFAULT = {"min_ious": (0.1, 0.3, 0.5, 0.7, 0.9), "min_scale": 0.3, "min_visible": 0.1}


def draw(seed: int, size, boxes, **changes):
    boxes = np.array(boxes, np.float64).reshape(-1, 5 if boxes and len(boxes[0]) == 5 else 4)
    return draw_crop(np.random.default_rng(seed), size, boxes, **{**DEFAULT, **changes})


@pytest.mark.parametrize("min_iou", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_crop_reaches_its_iou_with_some_box(min_iou):
    boxes = torch.tensor([[5.0, 10, 75, 80], [80, 5, 99, 20]])
    size, best = (90, 100), []
    for seed in range(60):
        crop = draw(seed, size, boxes.tolist(), min_ious=(min_iou,))
        if crop == (0, 0, 100, 90):
            continue  # none of the tries was good enough
        best.append(float(box_iou(torch.tensor([crop]).float(), boxes).max()))
    assert best
    assert min(best) >= min_iou - 1e-6
    if min_iou < 0.5:  # it is a limit, not a wish
        assert min(best) < min_iou + 0.15


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.floats(0.05, 1), st.integers(0, 10**6))
def test_form_and_place(height, width, min_scale, seed):
    crop = draw(seed, (height, width), [], min_scale=min_scale)
    x0, y0, x1, y1 = crop
    assert all(isinstance(border, int) for border in crop)
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    assert x1 - x0 >= min_scale * width - 0.5
    assert y1 - y0 >= min_scale * height - 0.5
    if crop != (0, 0, width, height):
        assert 0.5 <= (x1 - x0) / (y1 - y0) <= 2


def test_sides_and_places_are_spread_over_all_that_is_allowed():
    crops = np.array([draw(seed, (1000, 1000), []) for seed in range(600)])
    sides = crops[:, 2:] - crops[:, :2]
    assert sides.min() < 320
    assert sides.max() > 980
    touching = crops / 1000
    assert touching[:, :2].min() == 0
    starts = crops[:, :2] / np.maximum(1000 - sides, 1)
    np.testing.assert_allclose(np.histogram(starts, 4, (0, 1))[0] / 1200, 0.25, atol=0.05)


def test_no_crop_of_the_right_form_leaves_the_picture_whole():
    assert draw(0, (10, 1000), [[0, 0, 1000, 10]]) == (0, 0, 1000, 10)
    # No part of at least 0.3 of each side overlaps a speck by 0.9.
    assert draw(0, (100, 100), [[3, 3, 5, 5]], min_ious=(0.9,)) == (0, 0, 100, 100)


def test_the_box_that_counts_is_kept():
    """A crop inside a large box has a good IoU and little of it."""
    box = [0, 0, 100, 100]
    for seed in range(50):
        x0, y0, x1, y1 = draw(seed, (100, 100), [box], min_ious=(0.1,), min_visible=0.6)
        assert (x1 - x0) * (y1 - y0) >= 0.6 * 100 * 100


def test_boxes_without_area_or_with_nan_are_not_looked_at():
    crop = draw(1, (100, 100), [[np.nan, 0, 5, 5], [50, 50, 50, 60]])
    assert crop == (0, 0, 100, 100)


def test_rotated_boxes_count_by_the_rectangle_around_them():
    # A square of sqrt(2) * 40 turned by 45 degrees: around it lies 80 x 80.
    turned = [50, 50, 40 * 2**0.5, 40 * 2**0.5, 45]
    found = [draw(seed, (100, 100), [turned]) for seed in range(20)]
    assert found == [draw(seed, (100, 100), [[10, 10, 90, 90]]) for seed in range(20)]


BOXES = [[10, 0, 30, 9], [0, 0, 21, 9], [0, 0, 20, 9], [30, 5, 40, 9]]
TURNED = [[x, y, 30, 8, 0] for x, y in ((20, 20), (19, 20), (80, 90), (80, 91))]


@pytest.mark.parametrize(
    ("boxes", "rectangle", "least", "expected"),
    [
        (BOXES, [20, 0, 60, 100], 0.5, [True, False, False, True]),
        (BOXES, [20, 0, 60, 100], 0.51, [False, False, False, True]),
        (BOXES, [20, 0, 60, 100], 0, [True, True, False, True]),
        (BOXES, [20, 0, 60, 100], 1, [False, False, False, True]),
        ([[-50, 0, 50, 10]], [0, 0, 50, 100], 1, [True]),  # the part outside does not count
        (TURNED, [20, 0, 90, 90], 0.1, [True, False, True, False]),  # where their centres are
        (TURNED, [20, 0, 90, 90], 0.6, [False] * 4),
    ],
)
def test_visible_by_hand(boxes, rectangle, least, expected):
    found = are_visible(np.array(boxes, float), (100, 100), np.array(rectangle), least)
    assert found.tolist() == expected


@given(
    st.tuples(*[st.integers(1, 50)] * 2), st.tuples(*[st.integers(1, 50)] * 2), st.integers(0, 999)
)
def test_windows_stay_on_the_picture(size, canvas, seed):
    rng = np.random.default_rng(seed)
    corner = corner_window(size, canvas, right=seed % 2 == 0, bottom=seed % 3 == 0)
    for x0, y0, x1, y1 in (draw_window(rng, size, canvas), corner):
        assert (y1 - y0, x1 - x0) == (min(size[0], canvas[0]), min(size[1], canvas[1]))
        assert 0 <= x0 <= x1 <= size[1]
        assert 0 <= y0 <= y1 <= size[0]
    assert (corner[2] == size[1]) or seed % 2
    assert (corner[3] == size[0]) or seed % 3


def test_windows_reach_both_borders():
    rng = np.random.default_rng(0)
    starts = [draw_window(rng, (12, 40), (10, 10))[:2] for _ in range(300)]
    assert {y for _, y in starts} == {0, 1, 2}
    assert {x for x, _ in starts} == set(range(31))
