"""Sizes, resizing and boxes."""

import math
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2.functional import resize

from retina_ray.data.augment.transforms import (
    place_boxes,
    resize_image,
    shortest_edge_size,
)


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        ((480, 640), (800, 1333), (800, 1067)),  # 640 * 800 / 480 = 1066.67
        ((640, 480), (800, 1333), (1067, 800)),
        ((427, 640), (800, 1333), (800, 1199)),  # 1199.06
        ((200, 600), (800, 1333), (444, 1333)),  # 2400 is cut to 1333, 800 * 1333 / 2400 = 444.3
        ((100, 100), (800, 1333), (800, 800)),
        ((4, 6), (3, 100), (3, 5)),  # 4.5 rounds half up
        ((1, 10000), (800, 1333), (1, 1333)),  # 0.13, where detectron2 gives 0
        ((1, 1), (1, 1), (1, 1)),
        # Halves by floating point, as there: 672 / 960 * 1405 is 983.4999999999999, and
        # 800 * (1000 / (800 / 363 * 528)) is 687.4999999999999.
        ((960, 1405), (672, 1333), (672, 983)),
        ((528, 363), (800, 1000), (1000, 687)),
    ],
)
def test_shortest_edge_size(size, target, expected):
    assert shortest_edge_size(*size, *target) == expected


@given(st.integers(1, 1500), st.integers(1, 1500), st.integers(1, 900), st.integers(0, 800))
def test_shortest_edge_size_in_fractions(height, width, size, extra):
    scale = Fraction(size, min(height, width))
    scale = min(scale, Fraction(size + extra, max(height, width)))
    exact = [scale * height, scale * width]
    found = shortest_edge_size(height, width, size, size + extra)
    for side, value in zip(found, exact, strict=True):
        if (value + Fraction(1, 2)).denominator > 1:  # else the rounding of floats decides
            assert side == max(1, math.floor(value + Fraction(1, 2)))
        else:
            assert side in (value - Fraction(1, 2), value + Fraction(1, 2), 1)


@pytest.mark.parametrize("factor", [2, 4])
def test_shrinking_does_not_alias(factor):
    stripes = np.zeros((8, 16, 3), np.uint8)
    stripes[:, ::2] = 200
    small = resize_image(stripes, 8 // factor, 16 // factor)
    np.testing.assert_array_equal(small, np.full((8 // factor, 16 // factor, 3), 100))
    assert resize_image(stripes, 8, 16) is stripes
    assert resize_image(stripes, 9, 17).shape == (9, 17, 3)


@pytest.mark.parametrize("size", [(60, 80), (41, 55), (50, 41), (40, 79), (31, 41), (39, 39)])
def test_shrinking_is_near_to_antialiased_resizing(size):
    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.integers(0, 256, (60, 80, 3), np.uint8), (3, 3), 1.0)
    expected = resize(
        torch.from_numpy(picture).permute(2, 0, 1).double(), list(size), antialias=True
    )
    apart = np.abs(resize_image(picture, *size) - expected.permute(1, 2, 0).numpy())
    plain = np.abs(
        cv2.resize(picture, size[::-1], interpolation=cv2.INTER_LINEAR)
        - expected.permute(1, 2, 0).numpy()
    )
    assert apart.mean() < 3
    if min(60 / size[0], 80 / size[1]) > 1.4:
        assert apart.mean() < 0.5 * plain.mean()


def test_the_blur_before_shrinking_is_whole_numbers():
    """Whichever instructions a processor has, pixels come out the same."""
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    height, width = 32, 40
    taps_y = round(256 * ((48 / height) ** 2 - 1) / 12)
    taps_x = round(256 * ((64 / width) ** 2 - 1) / 12)
    padded = np.pad(picture.astype(np.int64), ((1, 1), (1, 1), (0, 0)), "reflect")
    rows = taps_y * (padded[:-2] + padded[2:]) + (256 - 2 * taps_y) * padded[1:-1]
    both = taps_x * (rows[:, :-2] + rows[:, 2:]) + (256 - 2 * taps_x) * rows[:, 1:-1]
    blurred = ((both + 2**15) >> 16).astype(np.uint8)
    expected = cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resize_image(picture, height, width), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 1), (5, 40)])
def test_a_flat_picture_stays_flat(size):
    for source in ((1, 1), (1, 60), (9, 1), (9, 60)):
        flat = np.full((*source, 3), 77, np.uint8)
        np.testing.assert_array_equal(resize_image(flat, *size), np.full((*size, 3), 77))


def test_place_boxes_by_hand():
    boxes = np.array([[1, 2, 4, 8], [0, 0, 20, 10]], np.float32)
    placed = place_boxes(boxes, (10, 20), (25, 40))
    assert placed.tolist() == [[2, 5, 8, 20], [0, 0, 40, 25]]
    outside = place_boxes(np.array([[-1, 0, 20.5, 11]], np.float32), (10, 20), (10, 20))
    assert outside.tolist() == [[0, 0, 20, 10]]
