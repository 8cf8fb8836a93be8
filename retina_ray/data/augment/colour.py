"""Random changes of colour, as torchvision's ColorJitter makes them; numpy and OpenCV only.

Images are (H, W, 3) uint8 RGB. Results are rounded, where torchvision cuts fractions off, so the
two differ by a level here and there.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from retina_ray.data.images.decoding import Pixels

_GREY = (0.2989, 0.587, 0.114)  # torchvision's weights of R, G and B (ITU-R BT.601)
_BLOCK = 16384  # pixels whose hue is changed at once: their float32 copies stay in the cache


@dataclass(frozen=True, kw_only=True)
class ColourJitter:
    """Changes brightness, contrast, saturation and hue by random amounts, in random order.

    Attributes:
        brightness: the factor is drawn from [1 - x, 1 + x]; likewise the next two. At most 1.
        contrast: of the distances from the image's mean grey.
        saturation: of the distances from each pixel's grey.
        hue: the shift is drawn from [-x, x] turns of the colour circle. At most 0.5.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __bool__(self) -> bool:
        """Whether anything can change."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """Change an image.

        Args:
            image: (H, W, 3) uint8 RGB; stays as it is.
            rng: always the same draws, whatever is on.

        Returns:
            (H, W, 3) uint8 RGB.
        """
        order = rng.permutation(4).tolist()
        draws = (2 * rng.random(4) - 1).tolist()
        changes = (
            (adjust_brightness, self.brightness, 1.0),
            (adjust_contrast, self.contrast, 1.0),
            (adjust_saturation, self.saturation, 1.0),
            (adjust_hue, self.hue, 0.0),
        )
        for i in order:
            change, strength, neutral = changes[i]
            if strength:
                image = change(image, neutral + strength * draws[i])
        return image


def adjust_brightness(image: Pixels, factor: float) -> Pixels:
    """Multiply all levels.

    Args:
        image: (H, W, 3) uint8 RGB.
        factor: 0 gives black, 1 the image itself.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    return _by_table(image, factor * np.arange(256))


def adjust_contrast(image: Pixels, factor: float) -> Pixels:
    """Multiply the distances of all levels from the mean of the image's grey.

    Args:
        image: (H, W, 3) uint8 RGB.
        factor: 0 gives grey, 1 the image itself.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    mean = float(np.dot(cv2.mean(image)[:3], _GREY))
    return _by_table(image, mean + factor * (np.arange(256) - mean))


def adjust_saturation(image: Pixels, factor: float) -> Pixels:
    """Multiply the distances of each pixel's R, G and B from its grey.

    Args:
        image: (H, W, 3) uint8 RGB.
        factor: 0 gives a grey image, 1 the image itself.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    matrix = factor * np.eye(3) + (1 - factor) * np.tile(_GREY, (3, 1))
    return np.asarray(cv2.transform(image, matrix), np.uint8)


def adjust_hue(image: Pixels, shift: float) -> Pixels:
    """Turn the hue of each pixel (of HSV); saturation and value stay.

    In float32: with the 8 bits that OpenCV gives a hue, colours would be off by several levels.

    Args:
        image: (H, W, 3) uint8 RGB.
        shift: in turns of the colour circle: 1/3 makes red green.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    result = np.empty_like(image)
    rows = max(1, _BLOCK // image.shape[1])
    degrees = np.array([360 * (shift % 1.0), 0, 0, 0])  # OpenCV takes four for all channels
    for start in range(0, len(image), rows):
        block = np.multiply(image[start : start + rows], np.float32(1 / 255), dtype=np.float32)
        hsv = cv2.cvtColor(block, cv2.COLOR_RGB2HSV)
        cv2.add(hsv, degrees, dst=hsv)  # OpenCV takes any number of turns for a hue
        rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        result[start : start + rows] = cv2.convertScaleAbs(rgb, alpha=255)
    return result


def _by_table(image: Pixels, levels: np.ndarray) -> Pixels:
    """Replace each level by that of a table, rounded and kept within 0 to 255."""
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(image, table), np.uint8)
