"""Random generators by seed and key: the same numbers in every process."""

from __future__ import annotations

import numpy as np


def random_stream(seed: int, *parts: int) -> np.random.Generator:
    """Make the generator that belongs to (seed, ...), and to nothing else.

    Negative numbers are allowed: they are taken modulo 2^64, which numpy's seeds need.
    """
    return np.random.default_rng([part % 2**64 for part in (seed, *parts)])


def image_stream(seed: int, epoch: int, image_id: int, repeat: int = 0) -> np.random.Generator:
    """Make the generator that an image's augmentation draws from, whoever decodes it.

    Args:
        seed: of the run.
        epoch: 0, 1, ...
        image_id: of the data set.
        repeat: how often the image was in the epoch before, so that repeats are not alike.
    """
    return random_stream(seed, epoch, image_id, *([repeat] if repeat else []))
