"""Which images form which batch: the order of one training epoch and of one evaluation round.

Pure numpy on the light columns of a data set's index. n images of the set, N images of an epoch
(those that are drawn more than once included), S steps an epoch, B images a global batch (over all
workers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from retina_ray.data.plan.sampling import EpochSampler
from retina_ray.data.random_streams import random_stream

Ints = NDArray[np.integer]
Flags = NDArray[np.bool_]

# ASCII names: each use of the seed has its own stream.
_ORDER, _SIZE, _DRAW, _MIX = 0x6F72646572, 0x73697A65, 0x64726177, 0x6D6978

NUM_MOSAIC_SOURCES = 3

ASPECT_BINS_PER_OCTAVE = 8
"""Evaluation batches images whose width / height lies in the same eighth of an octave: about 9 % of
a row is padding at most, and images of equal shape (most of COCO is 4:3) stay in storage order."""


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
        repeat: (S, B) how often the image was in the epoch before: 0 the first time.
        num_fill: (S,) how many images at the end of each batch repeat images of the epoch.
        mixed: (S,) whether a batch holds both landscape and portrait images.
        size_px: (S,) target length of the shorter side.
        num_partners: (S, B) images that are to be mixed into each one: 3 for a mosaic, 1 for
            mixup, 4 for both; None: nowhere.
        partners: their positions in the index, one after the other.
    """

    images: Ints
    repeat: Ints
    num_fill: Ints
    mixed: Flags
    size_px: Ints
    num_partners: Ints | None = None
    partners: Ints | None = None


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
    sampler: EpochSampler | None = None,
    mosaic_prob: float = 0.0,
    mixup_prob: float = 0.0,
) -> EpochBatches:
    """Put the images of one epoch into global batches.

    Images are permuted by a windowed shuffle: the order of the row groups is random, then the
    images are shuffled inside windows of `window_row_groups` row groups, so that reading stays
    local. Landscape and portrait images fill batches of their own. The order of the batches is
    shuffled inside the same windows; the one or two batches of leftovers fall anywhere. An image
    that the sampler draws again falls into any window, so that repeats are spread over the epoch.

    Every image is in the epoch as often as the sampler says, apart from the fills of the last
    leftover batch, which repeat images that this batch does not hold (of its aspect group, while
    there are any). Images to be mixed in come from the same window.

    Args:
        images: of the set.
        epoch: 0, 1, ...
        batch_size: B, images a step over all workers; at most the images of the epoch.
        seed: of the run; the result is a function of (seed, epoch) and the other arguments.
        sizes_px: lengths of the shorter side to draw from.
        size_sampling: draw one of the lengths, or between the two given (both included).
        group_by_aspect: False puts images together as they come.
        window_row_groups: row groups in a window; as many as there are gives a full shuffle.
        sampler: says which images the epoch holds; None: each once.
        mosaic_prob: chance of each image to get three others for a mosaic.
        mixup_prob: chance of each image to get another one.

    Returns:
        ceil(N / B) batches.
    """
    rng = random_stream(seed, epoch, 0, _ORDER)
    windows = _windows(images.group, window_row_groups, rng)
    drawn, repeat = np.arange(len(images)), np.zeros(len(images), np.int64)
    if sampler is not None:
        drawn = sampler.draw(random_stream(seed, epoch, 0, _DRAW))
        repeat = _repeats(drawn)
    window = windows[drawn]
    again = np.flatnonzero(repeat)
    window[again] = rng.integers(0, windows.max() + 1, len(again))

    order = _shuffled_within(window, rng)
    landscape = images.landscape[drawn]
    groups = [order]
    if group_by_aspect:
        groups = [order[landscape[order]], order[~landscape[order]]]
    full = [group[: len(group) // batch_size * batch_size] for group in groups]
    rest = np.concatenate([group[len(f) :] for group, f in zip(groups, full, strict=True)])
    num_fill = -len(rest) % batch_size
    fills = _fills(rest, drawn, num_fill, batch_size, landscape, group_by_aspect, rng)
    # Of a batch, the numbers of its images among those drawn.
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
    shuffled = _shuffled_within(position, rng)

    batches = batches[shuffled]
    wide = landscape[batches]
    result = EpochBatches(
        images=drawn[batches],
        repeat=repeat[batches],
        num_fill=filled[shuffled],
        mixed=np.ptp(wide.astype(np.int8), axis=1) > 0,
        size_px=_draw_sizes(num_batches, epoch, seed, sizes_px, size_sampling),
    )
    if not mosaic_prob and not mixup_prob:
        return result
    mix = random_stream(seed, epoch, 0, _MIX)
    num_partners = NUM_MOSAIC_SOURCES * (mix.random(batches.shape) < mosaic_prob)
    num_partners += mix.random(batches.shape) < mixup_prob
    partners = _partners(batches.ravel(), num_partners.ravel(), window, mix)
    return replace(result, num_partners=num_partners, partners=drawn[partners])


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


def _shuffled_within(window: Ints, rng: np.random.Generator) -> Ints:
    """The order that sorts by window, and is random within each: (N,) positions.

    The same as sorting by window and a random number. But each window is sorted for itself: they do
    not become larger with the set, so time grows linearly and a window's numbers stay in cache.
    """
    chance = rng.random(len(window))
    num_windows = int(window.max()) + 1
    # Of 16 bits, numpy sorts by counting.
    narrow = window.astype(np.uint16) if num_windows <= 2**16 else window
    order = np.argsort(narrow, kind="stable")
    start = 0
    for end in np.cumsum(np.bincount(window)).tolist():
        part = order[start:end]
        order[start:end] = part[np.argsort(chance[part], kind="stable")]
        start = end
    return order


def _repeats(drawn: Ints) -> Ints:
    """How often each of the ascending positions (N,) stands before itself."""
    starts = np.flatnonzero(np.diff(drawn, prepend=-1))
    lengths = np.diff(starts, append=len(drawn))
    return np.arange(len(drawn)) - np.repeat(starts, lengths)


def _fills(
    rest: Ints,
    drawn: Ints,
    num_fill: int,
    batch_size: int,
    landscape: Flags,
    group_by_aspect: bool,
    rng: np.random.Generator,
) -> Ints:
    """Choose what fills the last batch of leftovers, by number among those drawn.

    Images that are in it already come last, those of the other aspect after those of its own.
    """
    if num_fill == 0:
        return np.zeros(0, np.int64)
    last = rest[len(rest) - (batch_size - num_fill) :]
    candidates = rng.permutation(len(drawn))
    there = np.isin(drawn[candidates], drawn[last])
    unlike = np.zeros_like(there)
    if group_by_aspect:
        unlike = landscape[candidates] != landscape[last[-1]]
    return candidates[np.lexsort((unlike, there))][:num_fill]


def _partners(slots: Ints, counts: Ints, window: Ints, rng: np.random.Generator) -> Ints:
    """Draw partners from the window of each image, and not the image itself where it has others.

    Args:
        slots: (T,) images by number among those drawn.
        counts: (T,) partners of each.
        window: (N,) of those drawn.
        rng: of the epoch.

    Returns:
        Partners of all slots, one after the other, by number among those drawn.
    """
    by_window = np.argsort(window, kind="stable")
    ends = np.cumsum(np.bincount(window))
    starts = np.concatenate([[0], ends[:-1]])
    owner = np.repeat(slots, counts)
    first, size = starts[window[owner]], (ends - starts)[window[owner]]
    at = (rng.random(len(owner)) * size).astype(np.int64)
    itself = by_window[first + at] == owner
    return by_window[first + (at + itself) % size]


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
