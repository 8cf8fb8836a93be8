"""Which images an epoch holds, and how often: all once, or rare classes more often.

n images of a set, N images of an epoch, K classes.
Every epoch of a run has the same N, so its steps are known before it begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retina_ray.config import ExperimentConfig
from retina_ray.data.prepared.schema import ImageClasses, Ints
from retina_ray.errors import DataError

Sampling = Literal["all", "repeat_factor", "class_balanced"]


@dataclass(frozen=True)
class EpochSampler:
    """Draws the images of an epoch.

    Attributes:
        positions: (m,) the images that there are to draw from, ascending.
        factors: (m,) how often each is drawn on average, adding up to N; None: each once, or by
            `members`.
        members: of each class that has any, its images; None: not by class.
    """

    positions: Ints
    size: int
    factors: NDArray[np.float64] | None = None
    members: tuple[Ints, ...] | None = None

    def draw(self, rng: np.random.Generator) -> Ints:
        """Draw the images of one epoch.

        By factors: image i comes floor(f_i) or ceil(f_i) times, f_i times on average, and the
        epoch has exactly N images (systematic sampling in a random order). By class: every class is
        drawn N / K times, up to one, and its images in turn.

        Returns:
            (N,) positions, ascending.
        """
        if self.members is not None:
            return self._draw_by_class(self.members, rng)
        if self.factors is None:
            return self.positions
        order = rng.permutation(len(self.positions))
        ends = np.cumsum(self.factors[order])
        ends *= self.size / ends[-1]
        ends[-1] = self.size
        passed = np.floor(ends + rng.random()).astype(np.int64)
        passed[-1] = self.size
        counts = np.empty(len(order), np.int64)
        counts[order] = np.diff(np.minimum(passed, self.size), prepend=0)
        return np.repeat(self.positions, counts)

    def _draw_by_class(self, members: tuple[Ints, ...], rng: np.random.Generator) -> Ints:
        share, rest = divmod(self.size, len(members))
        draws = np.full(len(members), share)
        draws[rng.permutation(len(members))[:rest]] += 1
        parts = []
        for images, count in zip(members, draws.tolist(), strict=True):
            rounds, left = divmod(count, len(images))
            parts += [np.tile(images, rounds), rng.choice(images, left, replace=False)]
        return np.sort(np.concatenate(parts))


def sampler_of(
    config: ExperimentConfig, train_index: pa.Table, classes: ImageClasses | None
) -> EpochSampler:
    """What an epoch of a config's run holds, see `make_sampler`.

    Args:
        config: of the run.
        train_index: light columns of the training set.
        classes: of its images; needed unless `input.sampling` is "all".
    """
    inputs = config.input
    return make_sampler(
        train_index.num_rows,
        train_index["num_boxes"].to_numpy() if inputs.skip_empty else None,
        classes,
        sampling=inputs.sampling,
        repeat_threshold=inputs.repeat_threshold,
        skip_empty=inputs.skip_empty,
    )


def make_sampler(
    num_images: int,
    num_boxes: Ints | None,
    classes: ImageClasses | None,
    *,
    sampling: Sampling = "all",
    repeat_threshold: float = 0.001,
    skip_empty: bool = False,
) -> EpochSampler:
    """Choose what an epoch holds.

    Args:
        num_images: n.
        num_boxes: (n,) boxes of each image; needed with `skip_empty`.
        classes: of the images; needed unless `sampling` is "all".
        sampling: "all": each image once. "repeat_factor": by `repeat_factors`; an epoch grows by
            the repeats. "class_balanced": an epoch of n images in which every class is drawn
            equally often; images without boxes are then never drawn.
        repeat_threshold: see `repeat_factors`.
        skip_empty: leave images without boxes out.

    Raises:
        DataError: nothing is left to draw from.
        ValueError: `num_boxes` or `classes` is missing.
    """
    positions = np.arange(num_images, dtype=np.int32)
    if skip_empty:
        if num_boxes is None:
            raise ValueError("skip_empty needs the boxes of each image")
        positions = positions[np.asarray(num_boxes) > 0]
        if len(positions) == 0:
            raise DataError(
                f"none of the {num_images} training images has a box: with input.skip_empty there "
                "is nothing to train on"
            )
    if sampling == "all":
        return EpochSampler(positions, len(positions))
    if classes is None:
        raise ValueError(f"sampling {sampling!r} needs the classes of the images")
    if sampling == "repeat_factor":
        factors = repeat_factors(classes, repeat_threshold)[positions]
        return EpochSampler(positions, round(float(factors.sum())), factors=factors)
    by_label = np.argsort(classes.label, kind="stable")
    ends = np.cumsum(np.bincount(classes.label, minlength=classes.num_classes))
    members = np.split(classes.image[by_label].astype(np.int32), ends[:-1])
    used = tuple(images for images in members if len(images))
    if not used:
        raise DataError(f"none of the {num_images} training images has a box of any class")
    return EpochSampler(positions, len(positions), members=used)


def repeat_factors(classes: ImageClasses, threshold: float) -> NDArray[np.float64]:
    """How often each image is to be drawn (LVIS, arXiv:1908.03195, appendix B.2).

    A class that is in a share f of the images has the factor max(1, sqrt(threshold / f)), an image
    the largest factor of its classes, an image without boxes 1.

    Args:
        classes: of the images.
        threshold: t in the paper; classes in at least this share of the images are not repeated.

    Returns:
        (n,) at least 1.
    """
    counts = np.bincount(classes.label, minlength=classes.num_classes)
    share = np.maximum(counts, 1) / classes.num_images
    of_class = np.maximum(1.0, np.sqrt(threshold / share))
    factors = np.ones(classes.num_images)
    np.maximum.at(factors, classes.image, of_class[classes.label])
    return factors
