"""Anchors in a sweep: settings that hardly a box fits are left out before any trial starts.

An anchor learns a box from an IoU of `matcher.high` on. Where the anchors of a setting reach few
boxes, the others are learnt by their single best anchor at most (`matcher.allow_low_quality`), and
the trial shows with hours of training what a comparison of boxes shows in seconds.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from retina_ray.anchors.coverage import match_threshold, one_thread
from retina_ray.anchors.search import AnchorJudge
from retina_ray.anchors.training_boxes import TrainingBoxes
from retina_ray.config import ConfigError, ExperimentConfig, idle_paths, with_overrides
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.sweep.space import Choice, Domain, IntUniform, LogUniform, Space

logger = logging.getLogger(__name__)

HOPELESS = 0.5
"""A value is hopeless if, whatever the other anchor settings are, it reaches less than this share
of the boxes that the best setting of the space reaches. Half is far below any close comparison:
most of what the best one learns properly is left to single anchors of poor overlap."""

MAX_IMAGES = 2_000
MAX_BOXES = 10_000
MAX_SETTINGS = 200
"""Combinations of values that are judged; where a space has more, about so many of them."""

NUM_RUNGS = 9
"""Points of a range that are judged, evenly spaced (in its logarithm), both ends included."""

_OPTION = "--keep-hopeless-anchors"

_PRUNED = {"model.anchors"} | {
    f"model.anchors.{name}" for name in ("sizes", "octave_scales", "aspect_ratios", "scale")
}
# All that decides which boxes a setting reaches, and what a fit of the anchors comes to.
_READ = _PRUNED | {
    *("model", "matcher", "input", "model.anchors.fit", "model.anchors.offset"),
    *("model.min_level", "model.max_level", "model.box_type", "matcher.method", "matcher.high"),
    *(f"input.train_{name}" for name in ("sizes_px", "size_sampling", "max_size_px")),
    *("input.min_box_size_px", "input.size_divisibility_px"),
}


def anchors_depend_on_trial(space: Space) -> bool:
    """Whether `model.anchors.fit` may come to different anchors in different trials.

    Then the base config keeps it, and each trial fits its own at its start.
    """
    return bool(space.keys() & _READ)


def prune_anchors(
    space: Space, base: ExperimentConfig, dataset: PreparedDataset, *, keep_hopeless: bool = False
) -> tuple[Space, ExperimentConfig]:
    """Take hopeless anchor settings out of a space, each with a word.

    Every value of `model.anchors.scale`, `sizes`, `octave_scales` and `aspect_ratios` is judged
    together with the other values of the space that matter: by the share of boxes that get an
    anchor at IoU >= `matcher.high`, averaged over the classes. See `HOPELESS` for what is hopeless.

    - A hopeless value of a `Choice` is left out, with a warning that names it and its figure, and
      the trials go to the others. The base config's own value is no exception: the base config is
      then not the first trial, as with every base config that lies outside its space. Where one
      value is left, it is set, and the parameter leaves the space.
    - A range with a hopeless end is refused, and the part of it that is not hopeless is named.
      Narrowing it is the user's decision, since every draw would change.

    Kept as they are: values that take part in a setting with a matcher that has no threshold
    (`best`, `atss`), with fitted anchors, or with rotated boxes. No box is lost there for a low
    IoU, or nothing is known of it.

    Args:
        space: checked by `check_space`.
        base: complete.
        dataset: the training set; light columns only.
        keep_hopeless: warn only.

    Returns:
        The space that is left, and the base config with the values that were set.

    Raises:
        ConfigError: ranges with a hopeless end, or nothing left to vary; all faults at once.
        DataError: no box is left at the training size.
    """
    if not space.keys() & _PRUNED:
        return space, base
    findings, best = _judge_all(space, base, dataset)
    left, faults, fixed = dict(space), [], {}
    for path, finding in findings.items():
        hopeless = finding.hopeless(best)
        if not hopeless:
            continue
        message = finding.describe(hopeless, best, match_threshold(base.matcher))
        good = [v for i, v in enumerate(finding.values) if i not in hopeless]
        if keep_hopeless:
            logger.warning("%s: hopeless anchors are kept: %s", path, message)
        elif not isinstance(space[path], Choice):
            faults += _range_faults(path, finding, good, message)
        else:
            left[path] = Choice(*good)
            if len(good) == 1:
                fixed[path] = good[0]
                del left[path]
                message += f"; {_brief(good[0])} alone is left, and is set for all trials"
            logger.warning("%s: hopeless anchors are left out: %s", path, message)
    if not left:
        faults += [
            (
                path,
                f"the only value that is not hopeless is {_brief(value)}: set it and sweep "
                f"something else, or keep all of them ({_OPTION})",
            )
            for path, value in fixed.items()
        ]
    if faults:
        raise ConfigError(faults)
    return left, with_overrides(base, fixed)


def _range_faults(
    path: str, finding: _Finding, good: list[Any], message: str
) -> Iterator[tuple[str, str]]:
    """Yield a fault where an end of a range is hopeless."""
    low, high = finding.values[0], finding.values[-1]
    if (low, high) != (good[0], good[-1]):
        yield (
            path,
            f"reaches into hopeless anchors: {message}; make it {_brief(good[0])} to "
            f"{_brief(good[-1])}, or keep all of it ({_OPTION})",
        )


@dataclass
class _Finding:
    """What the values of one parameter reach at best.

    Attributes:
        values: of a choice all, of a range some.
        reached: of each value; None where it could not be judged, infinite where it is kept anyway.
    """

    values: tuple[Any, ...]
    reached: list[float | None]

    def note(self, number: int, reached: float) -> None:
        """Take what a setting with this value reaches."""
        self.reached[number] = max(reached, self.reached[number] or 0.0)

    def hopeless(self, best: float) -> dict[int, float]:
        """Numbers of the hopeless values, and what they reach."""
        return {
            i: reached
            for i, reached in enumerate(self.reached)
            if reached is not None and reached < HOPELESS * best
        }

    def describe(self, hopeless: Mapping[int, float], best: float, threshold: float) -> str:
        """The hopeless values with their figures."""
        figures = ", ".join(
            f"{_brief(self.values[i])} reaches {100 * reached:.1f} %"
            for i, reached in hopeless.items()
        )
        return (
            f"{figures} of a class's boxes at IoU >= {threshold:g}, with whatever else is in the "
            f"space; its best setting reaches {100 * best:.1f} %"
        )


def _judge_all(
    space: Space, base: ExperimentConfig, dataset: PreparedDataset
) -> tuple[dict[str, _Finding], float]:
    """Judge the values of the pruned parameters, and find what the best setting reaches."""
    values = {path: _values(domain) for path, domain in space.items() if path in _READ}
    findings = {p: _Finding(v, [None] * len(v)) for p, v in values.items() if p in _PRUNED}
    judges, best = _Judges(dataset), 0.0
    with one_thread():
        for numbers in _combinations(values, findings):
            try:
                config = with_overrides(base, {p: values[p][i] for p, i in numbers.items()})
            except ConfigError:
                continue
            judged = _has_threshold(config)
            reached = judges.reached(config) if judged else math.inf
            best = max(best, reached) if judged else best
            idle = idle_paths(config)
            for path, finding in findings.items():
                if path not in idle:
                    finding.note(numbers[path], reached)
    return findings, best


def _has_threshold(config: ExperimentConfig) -> bool:
    """Whether boxes are lost for a low IoU, and known to be."""
    model = config.model
    return (
        config.matcher.method == "iou"
        and model.anchors.fit == "none"
        and model.box_type == "aligned"
    )


class _Judges:
    """Judges of anchors by what they have in common; a sweep's settings share most of it."""

    def __init__(self, dataset: PreparedDataset) -> None:
        self._dataset = dataset
        self._boxes: dict[Any, TrainingBoxes] = {}
        self._judges: dict[Any, AnchorJudge] = {}

    def reached(self, config: ExperimentConfig) -> float:
        """Share of a class's boxes that the anchors of a config reach."""
        inputs, model = config.input, config.model
        if inputs not in self._boxes:
            boxes = TrainingBoxes.from_dataset(self._dataset, inputs, max_images=MAX_IMAGES)
            self._boxes[inputs] = boxes.subset(MAX_BOXES)
        common = (
            inputs,
            model.levels,
            model.anchors.sizes,
            model.anchors.offset,
            match_threshold(config.matcher),
        )
        if common not in self._judges:
            self._judges[common] = AnchorJudge(config, self._boxes[inputs])
        return self._judges[common](model.anchors).reached


def _combinations(
    values: Mapping[str, tuple[Any, ...]], findings: Mapping[str, _Finding]
) -> Iterator[dict[str, int]]:
    """Yield numbers of the values of all parameters: all combinations, or some for each value."""
    if math.prod(map(len, values.values())) <= MAX_SETTINGS:
        for numbers in itertools.product(*(range(len(v)) for v in values.values())):
            yield dict(zip(values, numbers, strict=True))
        return
    rng = random.Random(0)
    each = max(4, MAX_SETTINGS // sum(len(finding.values) for finding in findings.values()))
    for path, finding in findings.items():
        for number in range(len(finding.values)):
            for _ in range(each):
                yield {p: rng.randrange(len(v)) for p, v in values.items()} | {path: number}


def _values(domain: Domain) -> tuple[Any, ...]:
    """The values of a choice, or evenly spaced ones of a range, ascending."""
    if isinstance(domain, Choice):
        return domain.values
    shares = [step / (NUM_RUNGS - 1) for step in range(NUM_RUNGS)]
    if isinstance(domain, LogUniform):
        inner = [domain.low * (domain.high / domain.low) ** share for share in shares]
    else:
        inner = [domain.low + (domain.high - domain.low) * share for share in shares]
    if isinstance(domain, IntUniform):
        return tuple(dict.fromkeys(map(round, inner)))
    return (domain.low, *inner[1:-1], domain.high)


def _brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
