"""Anchors that fit a data set, in RetinaNet's own terms: one scale, octave scales, aspect ratios.

The base sizes of the levels stay as they are; `model.anchors.scale` moves all of them. A grid of
scales is tried with sets of aspect ratios (the usual ones, and those that the boxes' shapes cluster
around) and with one to three octave scales, and judged by the real largest IoU of every box with
the anchors of its image.

Shapes: M boxes, A anchors of a cell.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from retina_ray.anchors.clusters import cluster_shapes
from retina_ray.anchors.coverage import match_threshold, one_thread, require_aligned
from retina_ray.anchors.overlaps import BestOverlaps
from retina_ray.anchors.training_boxes import TrainingBoxes
from retina_ray.config import AnchorConfig, ExperimentConfig, with_overrides
from retina_ray.data.prepared.dataset import PreparedDataset

logger = logging.getLogger(__name__)

TOLERANCE = 0.005
"""Shares of reached boxes, and mean IoUs, that differ by less count as equal: half a percent."""

SCALES = tuple(float(f"{2 ** (step / 6):.4g}") for step in range(-24, 19))
"""A sixteenth to eight times the base sizes, six steps an octave."""

MAX_BOXES = 20_000
"""Boxes by which settings are judged; of more, so many are drawn."""

MAX_IMAGES = 5_000
"""Images whose boxes `fit_anchors` looks at; of more, so many are drawn."""

_USUAL_RATIOS = ((1.0,), (0.5, 1.0, 2.0))
_SPREADS = ((0.7, 1.4), (0.5, 2.0), (0.7, 1.0, 1.4), (0.5, 1.0, 2.0))
_MAX_RATIOS = 3
_MAX_OCTAVE_SCALES = 3


@dataclass(frozen=True)
class Fit:
    """A setting and how near its anchors come to the boxes: means over the classes, as AP is one.

    Attributes:
        recall: share of a class's boxes with some anchor at the threshold or above, averaged over
            the classes that have boxes.
        mean_iou: mean of the largest IoU of each box of a class, averaged likewise.
    """

    anchors: AnchorConfig
    recall: float
    mean_iou: float

    @property
    def num_anchors(self) -> int:
        """A."""
        return len(self.anchors.octave_scales) * len(self.anchors.aspect_ratios)


class AnchorJudge:
    """Judges settings of anchors by the same boxes; shapes that settings share are met once."""

    def __init__(self, config: ExperimentConfig, boxes: TrainingBoxes) -> None:
        """Take what the settings have in common.

        Args:
            config: of aligned boxes; base sizes, offset, pyramid and threshold are read.
            boxes: at the training sizes.
        """
        self._overlaps = BestOverlaps(boxes, config.model)
        self._threshold = match_threshold(config.matcher)
        per_class = torch.bincount(boxes.labels).double()
        self._weights = 1 / per_class[boxes.labels] / (per_class > 0).sum()

    def __call__(self, anchors: AnchorConfig) -> Fit:
        """Judge a setting with the base sizes and the offset of the config."""
        best = self._overlaps.of(anchors).double()
        recall = float(self._weights @ (best >= self._threshold).double())
        return Fit(anchors, recall, float(self._weights @ best))


@dataclass(frozen=True)
class Proposals:
    """What was found, beside the setting that was there.

    Attributes:
        proposed: of all settings that reach the most boxes (within `TOLERANCE`) and, where there
            are such, come as near to them on the average as the config's own: of those with the
            fewest anchors, the one that comes nearest.
        by_num_anchors: for each A the best setting: most boxes reached (within `TOLERANCE`), then
            nearest.
        keep: the config's own setting reaches as many boxes as any: nothing is to be gained.
    """

    current: Fit
    proposed: Fit
    by_num_anchors: tuple[Fit, ...]
    keep: bool


def propose_anchors(config: ExperimentConfig, boxes: TrainingBoxes, *, seed: int = 0) -> Proposals:
    """Search for anchors that reach more boxes than those of the config.

    Args:
        config: its base sizes, offset, pyramid and threshold are kept.
        boxes: at the training sizes.
        seed: of the clustering, and of the draw where there are more than `MAX_BOXES` boxes.

    Raises:
        ConfigError: a model of rotated boxes.
    """
    require_aligned(config)
    boxes = boxes.subset(MAX_BOXES, seed)
    anchors = config.model.anchors
    ratios = ratio_sets(boxes, seed=seed)
    octaves = [_octave_scales(n) for n in range(1, _MAX_OCTAVE_SCALES + 1)]
    settings = [
        anchors.model_copy(update={"scale": s, "aspect_ratios": r, "octave_scales": o})
        for r in dict.fromkeys([anchors.aspect_ratios, *ratios])
        for o in _different([anchors.octave_scales, *octaves])
        for s in SCALES
    ]
    with one_thread():
        judge = AnchorJudge(config, boxes)
        current = judge(anchors)
        found = [current, *map(judge, settings)]
    most = _best_recall(found)
    near = [fit for fit in most if fit.mean_iou >= current.mean_iou] or most
    fewest = min(fit.num_anchors for fit in near)
    counts = sorted({fit.num_anchors for fit in found})
    return Proposals(
        current=current,
        proposed=_nearest([fit for fit in near if fit.num_anchors == fewest]),
        by_num_anchors=tuple(
            _nearest(_best_recall([f for f in found if f.num_anchors == n])) for n in counts
        ),
        keep=current.recall >= max(fit.recall for fit in found) - TOLERANCE,
    )


def fit_anchors(config: ExperimentConfig, dataset: PreparedDataset) -> ExperimentConfig:
    """Put plain numbers in the place of `model.anchors.fit`.

    The number of anchors of a cell stays: what is compared differs in where the anchors lie and
    not in how many there are. The outcome depends on the data and the config alone, and neither on
    `model.anchors.scale` nor (with "all") on the aspect ratios that were there.

    Returns:
        The config with `scale` and, with "all", `aspect_ratios` set, and `fit` at "none"; the same
        config where it is "none" already.

    Raises:
        ConfigError: a model of rotated boxes.
        DataError: no box is left at the training size.
    """
    anchors = config.model.anchors
    if anchors.fit == "none":
        return config
    require_aligned(config)
    seen = TrainingBoxes.from_dataset(dataset, config.input, max_images=MAX_IMAGES)
    boxes = seen.subset(MAX_BOXES)
    ratios = [anchors.aspect_ratios]
    if anchors.fit == "all":
        count = len(anchors.aspect_ratios)
        ratios = [r for r in ratio_sets(boxes, seed=0) if len(r) == count] or ratios
    settings = [
        anchors.model_copy(update={"scale": s, "aspect_ratios": r, "fit": "none"})
        for r in dict.fromkeys(ratios)
        for s in SCALES
    ]
    with one_thread():
        best = _nearest(_best_recall(list(map(AnchorJudge(config, boxes), settings))))
    logger.info(
        "anchors fitted to %d boxes of %s: %s; %.1f %% of a class's boxes have one at IoU >= %g",
        len(seen),
        dataset.uri,
        " ".join(assignments(anchors, best.anchors)) or "as they were",
        100 * best.recall,
        match_threshold(config.matcher),
    )
    return with_overrides(config, {"model.anchors": best.anchors})


def ratio_sets(boxes: TrainingBoxes, *, seed: int) -> list[tuple[float, ...]]:
    """Sets of one to three aspect ratios (height / width) that are worth trying.

    The usual ones (1; 1/2, 1, 2), the ratios that the boxes cluster around, and sets spread evenly
    around the middle of all boxes. Sizes are left to the levels: the boxes are brought to unit area
    and then clustered by IoU.

    Returns:
        Different sets of two digits, each ascending.
    """
    sides = (boxes.boxes[:, 2:] - boxes.boxes[:, :2]).double().numpy()
    unit = sides / np.sqrt(sides.prod(1, keepdims=True))
    clustered = []
    for count in range(1, _MAX_RATIOS + 1):
        shapes = cluster_shapes(unit, count, seed=seed).shapes
        clustered.append([height / width for width, height in shapes])
    (middle,) = clustered[0]
    spread = [[middle * factor for factor in factors] for factors in _SPREADS]
    rounded = [
        tuple(sorted({float(f"{ratio:.2g}") for ratio in ratios}))
        for ratios in (*_USUAL_RATIOS, *clustered, *spread)
    ]
    return list(dict.fromkeys(rounded))


def assignments(before: AnchorConfig, after: AnchorConfig) -> list[str]:
    """The `path=value` strings that turn one setting into the other, without blanks."""
    return [
        f"model.anchors.{name}={json.dumps(value, separators=(',', ':'))}"
        for name, value in after.model_dump(mode="json").items()
        if name != "fit" and value != before.model_dump(mode="json")[name]
    ]


def _best_recall(fits: Sequence[Fit]) -> list[Fit]:
    """Those that reach as many boxes as any, within `TOLERANCE`."""
    most = max(fit.recall for fit in fits)
    return [fit for fit in fits if fit.recall >= most - TOLERANCE]


def _nearest(fits: Sequence[Fit]) -> Fit:
    """That with the largest mean IoU; of equals (within `TOLERANCE`) the one nearest to scale 1.

    Sizes double from level to level, so a scale and its double often do as well; the base sizes
    say which levels are meant to find what.
    """
    largest = max(fit.mean_iou for fit in fits)
    equals = [fit for fit in fits if fit.mean_iou >= largest - TOLERANCE]
    return min(equals, key=lambda fit: (abs(math.log2(fit.anchors.scale)), -fit.mean_iou))


def _octave_scales(count: int) -> tuple[float, ...]:
    """An octave in equal steps."""
    return tuple(float(f"{2 ** (step / count):.5g}") for step in range(count))


def _different(sets: Iterable[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Leave out sets that differ from an earlier one only in their last digits."""
    kept: dict[tuple[float, ...], tuple[float, ...]] = {}
    for values in sets:
        kept.setdefault(tuple(round(value, 3) for value in values), values)
    return list(kept.values())
