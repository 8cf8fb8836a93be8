"""Which images form which batch: the order of one training epoch and of one evaluation round.

Pure numpy on the light columns of a data set's index. n images, S steps an epoch, B images a
global batch (over all workers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["EpochBatches", "Images", "epoch_batches", "evaluation_order", "random_stream"]

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

_ORDER, _SIZE = 0x6F72646572, 0x73697A65  # ASCII names: each use of the seed has its own stream

ASPECT_BINS_PER_OCTAVE = 8
"""Evaluation batches images whose width / height lies in the same eighth of an octave: about 9 % of
a row is padding at most, and images of equal shape (most of COCO is 4:3) stay in storage order."""


def random_stream(seed: int, *parts: int) -> np.random.Generator:
    """Make the generator that belongs to (seed, ...), and to nothing else.

    Negative numbers are allowed: they are taken modulo 2^64, which numpy's seeds need.
    """
    return np.random.default_rng([part % 2**64 for part in (seed, *parts)])


@dataclass(frozen=True)
class Images:
    """What the order depends on, one entry per image in the order of storage.

    Attributes:
        group: (n,) number of the row group that holds the image, 0, 1, ... in storage order.
        height: (n,) pixels.
        width: (n,) pixels.
    """

    group: Ints
    height: Ints
    width: Ints

    def __len__(self) -> int:
        return len(self.group)

    @property
    def landscape(self) -> Flags:
        """(n,) whether an image is at least as wide as high."""
        return self.width >= self.height


@dataclass(frozen=True)
class EpochBatches:
    """The global batches of one epoch, in the order of training.

    Attributes:
        images: (S, B) positions in the index.
        num_fill: (S,) how many images at the end of each batch repeat images of the epoch.
        mixed: (S,) whether a batch holds both landscape and portrait images.
        size_px: (S,) target length of the shorter side.
    """

    images: Ints
    num_fill: Ints
    mixed: Flags
    size_px: Ints


def epoch_batches(
    images: Images,
    epoch: int,
    *,
    batch_size: int,
    seed: int,
    sizes_px: Sequence[int],
    size_sampling: Literal["choice", "range"],
    group_by_aspect: bool,
    window_row_groups: int,
) -> EpochBatches:
    """Put the images of one epoch into global batches.

    Images are permuted by a windowed shuffle: the order of the row groups is random, then the
    images are shuffled inside windows of `window_row_groups` row groups, so that reading stays
    local. Landscape and portrait images fill batches of their own. The order of the batches is
    shuffled inside the same windows; the one or two batches of leftovers fall anywhere.

    Every image is in the epoch exactly once, apart from the fills of the last leftover batch,
    which repeat images that this batch does not hold (of its aspect group, while there are any).

    Args:
        images: at least `batch_size` images.
        epoch: 0, 1, ...
        batch_size: B, images a step over all workers.
        seed: of the run; the result is a function of (seed, epoch) and the other arguments.
        sizes_px: lengths of the shorter side to draw from.
        size_sampling: draw one of the lengths, or between the two given (both included).
        group_by_aspect: False puts images together as they come.
        window_row_groups: row groups in a window; as many as there are gives a full shuffle.

    Returns:
        ceil(n / B) batches.
    """
    rng = random_stream(seed, epoch, 0, _ORDER)
    window = _windows(images.group, window_row_groups, rng)
    order = np.lexsort((rng.random(len(images)), window))
    landscape = images.landscape
    groups = [order]
    if group_by_aspect:
        groups = [order[landscape[order]], order[~landscape[order]]]

    full = [group[: len(group) // batch_size * batch_size] for group in groups]
    rest = np.concatenate([group[len(f) :] for group, f in zip(groups, full, strict=True)])
    num_fill = -len(rest) % batch_size
    fills = _fills(rest, batch_size, num_fill, landscape, group_by_aspect, rng)
    batches = np.concatenate([*full, rest, fills]).reshape(-1, batch_size)

    num_batches = len(batches)
    num_rest = (len(rest) + num_fill) // batch_size
    filled = np.zeros(num_batches, np.int64)
    if num_rest:
        filled[-1] = num_fill
    # A batch stands in the window of its last image: where a stream of images would complete it.
    position = window[batches].max(axis=1)
    if num_rest:
        position[-num_rest:] = rng.integers(0, window.max() + 1, num_rest)
    shuffled = np.lexsort((rng.random(num_batches), position))

    batches = batches[shuffled]
    wide = landscape[batches]
    return EpochBatches(
        images=batches,
        num_fill=filled[shuffled],
        mixed=np.ptp(wide.astype(np.int8), axis=1) > 0,
        size_px=_draw_sizes(num_batches, epoch, seed, sizes_px, size_sampling),
    )


def evaluation_order(images: Images) -> Ints:
    """Order images so that those of like aspect are together, in storage order among themselves.

    Returns:
        (n,) positions in the index, each once.
    """
    octaves = np.log2(images.width / images.height)
    return np.argsort(np.round(octaves * ASPECT_BINS_PER_OCTAVE), kind="stable")


def _windows(group: Ints, window_row_groups: int, rng: np.random.Generator) -> Ints:
    """Deal the row groups to windows at random: (n,) the window of each image."""
    num_groups = int(group.max()) + 1
    return rng.permutation(num_groups)[group] // window_row_groups


def _fills(
    rest: Ints,
    batch_size: int,
    num_fill: int,
    landscape: Flags,
    group_by_aspect: bool,
    rng: np.random.Generator,
) -> Ints:
    """Choose the images that fill the last batch of leftovers: none that is in it already."""
    if num_fill == 0:
        return np.zeros(0, np.int64)
    last = rest[len(rest) - (batch_size - num_fill) :]
    candidates = rng.permutation(np.setdiff1d(np.arange(len(landscape)), last))
    if group_by_aspect:
        unlike = landscape[candidates] != landscape[last[-1]]
        candidates = candidates[np.argsort(unlike, kind="stable")]
    return candidates[:num_fill]


def _draw_sizes(
    num_batches: int,
    epoch: int,
    seed: int,
    sizes_px: Sequence[int],
    size_sampling: Literal["choice", "range"],
) -> Ints:
    """Draw a target size for each global batch: the same for any number of workers."""
    rng = random_stream(seed, epoch, 0, _SIZE)
    if size_sampling == "range":
        return rng.integers(sizes_px[0], sizes_px[1] + 1, num_batches)
    return np.asarray(sizes_px, np.int64)[rng.integers(0, len(sizes_px), num_batches)]
