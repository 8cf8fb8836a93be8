"""Which images a page shows: a sample in which every class appears, and the extremes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retina_ray.reports.dataset.splits import Split

_NUM_CANDIDATES = 256
_NUM_SMALLEST, _NUM_OTHERS = 3, 2


@dataclass(frozen=True)
class Extreme:
    """A box or an image that is worth a look, by position; no box: the image as a whole."""

    split: Split
    image: int
    box: int | None
    reason: str


def choose_images(split: Split, num_images: int, *, seed: int) -> list[int]:
    """Choose images at random so that as many classes as possible show.

    The rarest class that is still missing goes first: of the images that hold it, the one with the
    most missing classes is taken (of all images, where more classes are missing than images are
    left to choose). Then an image without boxes and one with a crowd region, where
    there are any, and random ones until there are enough.

    Returns:
        Positions in the order of storage, each once.
    """
    num_images = min(num_images, len(split))
    rng = np.random.default_rng(seed)
    chosen: dict[int, None] = dict.fromkeys(_with_all_classes(split, num_images, rng))
    crowded = np.unique(split.image_of[split.crowd])
    for members in (np.flatnonzero(split.boxes_per_image == 0), crowded):
        if len(members) and not chosen.keys() & set(members.tolist()):
            chosen[int(rng.choice(members))] = None
    for position in rng.permutation(len(split)).tolist():
        if len(chosen) >= num_images:
            break
        chosen[position] = None
    return sorted(list(chosen)[:num_images])


def _with_all_classes(split: Split, num_images: int, rng: np.random.Generator) -> list[int]:
    """Images that hold every class, rarest first, or as many classes as they can."""
    images, labels = split.class_images
    per_class = np.bincount(labels, minlength=split.dataset.num_classes)
    missing = per_class > 0
    chosen: list[int] = []
    while missing.any() and len(chosen) < num_images:
        wanted = missing
        if missing.sum() <= num_images - len(chosen):  # else every image must bring several
            rarest = np.where(missing, per_class, np.iinfo(np.int64).max).argmin()
            wanted = np.arange(len(missing)) == rarest
        candidates = rng.permutation(np.unique(images[wanted[labels]]))[:_NUM_CANDIDATES]
        news = [_labels_of(images, labels, image) for image in candidates.tolist()]
        best = int(np.argmax([missing[new].sum() for new in news]))
        chosen.append(int(candidates[best]))
        missing[news[best]] = False
    return chosen


def _labels_of(images: NDArray, labels: NDArray, image: int) -> NDArray[np.int64]:
    """The classes of an image; `images` is ascending."""
    start, end = np.searchsorted(images, [image, image + 1])
    return labels[start:end]


def find_extremes(splits: Sequence[Split]) -> list[Extreme]:
    """Find the smallest boxes, the largest, the most crowded images and the longest boxes.

    Returns:
        Of all splits together up to ten, each kind from different images; no crowd regions.
    """
    return [*_smallest(splits), *_crowded(splits), *_largest(splits), *_longest(splits)]


def _smallest(splits: Sequence[Split]) -> Iterator[Extreme]:
    for split, box, _ in _top(splits, lambda s: -_area(s), _NUM_SMALLEST):
        yield _extreme(split, box, f"smallest: {_size(split, box)}")


def _largest(splits: Sequence[Split]) -> Iterator[Extreme]:
    def share(split: Split) -> NDArray[np.float64]:
        image = split.image_of
        return _area(split) / (split.widths * split.heights)[image]

    for split, box, value in _top(splits, share, _NUM_OTHERS):
        yield _extreme(split, box, f"largest: {100 * value:.3g} % of its image")


def _longest(splits: Sequence[Split]) -> Iterator[Extreme]:
    def ratio(split: Split) -> NDArray[np.float64]:
        with np.errstate(all="ignore"):
            return np.abs(np.log(split.sides[:, 1] / split.sides[:, 0]))

    for split, box, value in _top(splits, ratio, _NUM_OTHERS):
        width, height = split.sides[box]
        times = "times as high as wide" if height >= width else "times as wide as high"
        yield _extreme(split, box, f"{np.exp(value):.3g} {times}: {_size(split, box)}")


def _crowded(splits: Sequence[Split]) -> Iterator[Extreme]:
    found = [
        (int(split.boxes_per_image[image]), -number, -int(image))
        for number, split in enumerate(splits)
        for image in np.argsort(-split.boxes_per_image, kind="stable")[:_NUM_OTHERS]
    ]
    for count, number, image in sorted(found, reverse=True)[:_NUM_OTHERS]:
        if count:
            boxes = "box" if count == 1 else "boxes"
            yield Extreme(splits[-number], -image, None, f"most crowded: {count} {boxes}")


def _top(splits, value_of, num: int) -> list[tuple[Split, int, float]]:
    """The boxes of the highest values, at most one of each image."""
    found: list[tuple[float, int, int]] = []
    for number, split in enumerate(splits):
        single = split.single
        values = value_of(split)[single]
        known = np.flatnonzero(np.isfinite(values))
        order = known[np.argsort(-values[known], kind="stable")]
        _, first = np.unique(split.image_of[single[order]], return_index=True)
        for at in order[np.sort(first)[:num]]:
            found.append((float(values[at]), -number, -int(single[at])))
    best = sorted(found, reverse=True)[:num]
    return [(splits[-number], -box, value) for value, number, box in best]


def _area(split: Split) -> NDArray[np.float64]:
    return split.sides.prod(axis=1)


def _extreme(split: Split, box: int, reason: str) -> Extreme:
    return Extreme(split, int(split.image_of[box]), box, reason)


def _size(split: Split, box: int) -> str:
    width, height = split.sides[box]
    return f"{width:.3g} x {height:.3g} px"
