"""How often each image is in an epoch."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sets import image_classes

from retina_ray.data.plan.sampling import make_sampler, repeat_factors
from retina_ray.data.random_streams import random_stream
from retina_ray.errors import DataError


def draws(sampler, epoch: int) -> Counter:
    drawn = sampler.draw(random_stream(1, epoch))
    assert len(drawn) == sampler.size
    assert (np.diff(drawn) >= 0).all()
    return Counter(drawn.tolist())


# 10 images: class 0 in nine of them, class 1 in one, class 2 in none; image 9 is empty.
IMAGES = [{0}] * 8 + [{0, 1}] + [set()]


def test_repeat_factors_are_those_of_the_paper():
    # f = 0.9, 0.1: sqrt(0.4 / 0.9) < 1, sqrt(0.4 / 0.1) = 2.
    factors = repeat_factors(image_classes(IMAGES, 3), 0.4)
    assert factors.tolist() == [1.0] * 8 + [2.0, 1.0]
    # sqrt(0.9 / 0.9) = 1, sqrt(0.9 / 0.1) = 3; the image takes the largest of its classes.
    assert repeat_factors(image_classes(IMAGES, 3), 0.9).tolist() == [1.0] * 8 + [3.0, 1.0]
    assert repeat_factors(image_classes([set(), set()], 2), 0.5).tolist() == [1.0, 1.0]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 4)), min_size=1, max_size=60),
    st.floats(0.001, 1),
    st.integers(0, 5),
)
def test_an_epoch_has_the_planned_size_and_counts_next_to_the_factors(images, threshold, epoch):
    classes = image_classes(images, 5)
    factors = repeat_factors(classes, threshold)
    sampler = make_sampler(
        len(images), None, classes, sampling="repeat_factor", repeat_threshold=threshold
    )
    assert sampler.size == round(factors.sum())
    counts = draws(sampler, epoch)
    scaled = factors * sampler.size / factors.sum()
    for i, factor in enumerate(scaled):
        assert math.floor(factor - 1e-9) <= counts[i] <= math.ceil(factor + 1e-9)


def test_over_many_epochs_the_counts_average_to_the_factors():
    images = [{0}] * 7 + [{0, 1}] * 2 + [{2}]
    classes = image_classes(images, 3)
    sampler = make_sampler(10, None, classes, sampling="repeat_factor", repeat_threshold=0.45)
    total = Counter()
    for epoch in range(400):
        total += draws(sampler, epoch)
    factors = repeat_factors(classes, 0.45)
    expected = factors * sampler.size / factors.sum()
    found = np.array([total[i] for i in range(10)]) / 400
    assert np.abs(found - expected).max() < 0.1
    assert expected.max() > 2  # not all the same


def test_every_class_is_drawn_equally_often():
    images = [{0}] * 9 + [{1}] * 2 + [{3}] + [set()] * 2
    sampler = make_sampler(14, None, image_classes(images, 4), sampling="class_balanced")
    assert sampler.size == 14
    for epoch in range(5):
        counts = draws(sampler, epoch)
        of_class = [sum(counts[i] for i in members) for members in (range(9), (9, 10), (11,))]
        assert sum(of_class) == 14
        assert max(of_class) - min(of_class) <= 1
        assert not counts[12]
        assert not counts[13]
        assert abs(counts[9] - counts[10]) <= 1
        assert max(counts[i] for i in range(9)) == 1


def test_images_without_boxes_are_left_out_on_demand():
    num_boxes = np.array([0, 3, 1, 0])
    sampler = make_sampler(4, num_boxes, None, skip_empty=True)
    assert draws(sampler, 0) == Counter([1, 2])
    classes = image_classes([set(), {0}, {1}, set()], 2)
    sampler = make_sampler(
        4, num_boxes, classes, sampling="repeat_factor", repeat_threshold=1.0, skip_empty=True
    )
    assert set(draws(sampler, 0)) == {1, 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip_empty": True}, "none of the 2 training images has a box: with input.skip_empty"),
        ({"sampling": "class_balanced"}, "none of the 2 training images has a box of any class"),
    ],
)
def test_nothing_to_draw_from(options, message):
    with pytest.raises(DataError, match=message):
        make_sampler(2, np.zeros(2), image_classes([set(), set()], 3), **options)


def test_what_is_needed_is_asked_for():
    with pytest.raises(ValueError, match="needs the classes"):
        make_sampler(2, None, None, sampling="repeat_factor")
    with pytest.raises(ValueError, match="needs the boxes"):
        make_sampler(2, None, None, skip_empty=True)
