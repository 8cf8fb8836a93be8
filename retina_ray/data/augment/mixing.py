"""Several images in one: on a canvas side by side, or blended. Boxes go with their images."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from retina_ray.data.augment.transforms import LabeledImage
from retina_ray.data.rotated_boxes import are_rotated

FILL = (124, 116, 104)
"""RGB where a canvas shows no image: ImageNet's mean, about zero to the model."""


def paste(
    samples: Sequence[LabeledImage], places: Sequence[tuple[int, int]], size: tuple[int, int]
) -> LabeledImage:
    """Put images on a grey canvas.

    Args:
        samples: one at least; they must fit on the canvas. Later ones cover earlier ones.
        places: of each sample, (x, y) of its upper left corner on the canvas.
        size: (height, width) of the canvas.

    Returns:
        A sample of this size; the sample itself where one fills the canvas.
    """
    if len(samples) == 1 and samples[0].image.shape[:2] == tuple(size):
        return samples[0]
    height, width = size
    row = np.tile(np.array(FILL, np.uint8), width)
    canvas = np.empty((height, width * 3), np.uint8)
    canvas[:] = row
    canvas = canvas.reshape(height, width, 3)
    boxes = []
    for sample, (x, y) in zip(samples, places, strict=True):
        image = sample.image
        canvas[y : y + image.shape[0], x : x + image.shape[1]] = image
        shift = [x, y, 0, 0, 0] if are_rotated(sample.boxes) else [x, y, x, y]
        boxes.append(sample.boxes + np.array(shift, np.float32))
    return LabeledImage(canvas, np.concatenate(boxes), np.concatenate([s.labels for s in samples]))


def blend(a: LabeledImage, b: LabeledImage, share: float) -> LabeledImage:
    """Mix two images of one size (mixup for detection, arXiv:1902.04103); all boxes stay.

    Args:
        a: first sample.
        b: second sample.
        share: of the first in each pixel, 0 to 1.

    Returns:
        A sample of the same size, with the boxes of both.
    """
    image = cv2.addWeighted(a.image, share, b.image, 1 - share, 0)
    return LabeledImage(
        np.asarray(image, np.uint8),
        np.concatenate([a.boxes, b.boxes]),
        np.concatenate([a.labels, b.labels]),
    )
