"""Changes of colour against torchvision's, and what they must not do."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from retina_ray.data.augment import colour
from retina_ray.data.augment.colour import ColourJitter

THEIRS = {
    "brightness": (colour.adjust_brightness, functional.adjust_brightness),
    "contrast": (colour.adjust_contrast, functional.adjust_contrast),
    "saturation": (colour.adjust_saturation, functional.adjust_saturation),
    "hue": (colour.adjust_hue, functional.adjust_hue),
}


def noise(height: int = 60, width: int = 70, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def by_torchvision(change, image: np.ndarray, factor: float) -> np.ndarray:
    result = change(torch.from_numpy(image).permute(2, 0, 1), factor)
    return result.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("strength", [-0.5, -0.31, -0.02, 0.0, 0.07, 0.33, 0.5])
def test_each_change_is_torchvisions(name, strength):
    ours, theirs = THEIRS[name]
    factor = strength if name == "hue" else 1 + 2 * strength
    for image in (noise(), noise(300, 400, 1)[::7], np.full((2, 3, 3), (255, 128, 0), np.uint8)):
        found = ours(image, factor)
        assert found.dtype == np.uint8
        exact = 255 * by_torchvision(theirs, image.astype(np.float32) / 255, factor)
        # Rounding, and for saturation OpenCV's products of 3 levels with factors of 10 bits.
        margin = 0.5 + 3 * 255 / 2**11 if name == "saturation" else 0.51
        assert np.abs(found - exact).max() <= margin
        # On uint8 they cut off fractions, of the grey as well.
        assert np.abs(found.astype(int) - by_torchvision(theirs, image, factor)).max() <= 2


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40000), (40000, 1), (4, 1), (1, 4), (4, 4)])
def test_any_shape_and_neutral_factors(name, shape):
    image = noise(*shape)
    same = THEIRS[name][0](image, 0.0 if name == "hue" else 1.0)
    assert same.shape == image.shape
    assert np.abs(same.astype(int) - image).max() <= (1 if name == "hue" else 0)
    expected = by_torchvision(THEIRS[name][1], image, 0.4)
    assert np.abs(THEIRS[name][0](image, 0.4).astype(int) - expected).max() <= 2


def test_a_part_of_a_larger_picture():
    """What a crop hands on is a view with a stride."""
    image = noise()[3:40, 5:60]
    jitter = ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    found = jitter(image, np.random.default_rng(3))
    np.testing.assert_array_equal(found, jitter(image.copy(), np.random.default_rng(3)))
    np.testing.assert_array_equal(image, noise()[3:40, 5:60])  # not changed in place


def level(jitter: ColourJitter, seed: int) -> float:
    """What becomes of a flat grey of 100."""
    image = np.full((4, 4, 3), 100, np.uint8)
    return float(jitter(image, np.random.default_rng(seed)).mean())


def test_factors_are_uniform_and_do_not_depend_on_what_else_is_on():
    brightness = ColourJitter(brightness=0.5)
    levels = np.array([level(brightness, seed) for seed in range(600)])
    assert 50 <= levels.min() < 53
    assert 147 < levels.max() <= 150
    np.testing.assert_allclose(np.histogram(levels, 4, (50, 150))[0] / 600, 0.25, atol=0.06)
    # A flat grey has neither contrast nor colour: the others leave it alone.
    others = ColourJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5)
    for seed in range(50):
        assert abs(level(others, seed) - level(brightness, seed)) <= 1


def test_the_order_is_random():
    """Brighter first saturates at white, less contrast first does not: 255 or less."""
    image = np.array([[[0] * 3, [250] * 3]], np.uint8)
    jitter = ColourJitter(brightness=1.0, contrast=1.0)
    results = set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        order = rng.permutation(4).tolist()
        brightness, contrast = 2 * rng.random(4)[:2]
        first = order.index(0) < order.index(1)
        if first:
            expected = colour.adjust_contrast(colour.adjust_brightness(image, brightness), contrast)
        else:
            expected = colour.adjust_brightness(colour.adjust_contrast(image, contrast), brightness)
        np.testing.assert_array_equal(jitter(image, np.random.default_rng(seed)), expected)
        results.add(first)
    assert results == {True, False}


def test_nothing_on_is_false():
    assert not ColourJitter()
    assert ColourJitter(hue=0.1)
    image = noise()
    assert ColourJitter()(image, np.random.default_rng(0)) is image
