"""Anchors in a sweep: settings of low recall are left out before any trial starts.

Recall is the share of boxes with an anchor of an IoU of `matcher.high` or more. The others are
learnt by their single best anchor at most (`matcher.allow_low_quality`). Comparing boxes shows in
seconds what trials would show in hours.
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

LOW_RECALL = 0.5
"""A value has low recall if it is below this share of the recall of the space's best setting,
whatever the other anchor settings are. Half is far below any close comparison: most of what the
best one learns properly is left to single anchors of poor overlap."""

MAX_IMAGES = 2_000
MAX_BOXES = 10_000
MAX_SETTINGS = 200
"""Combinations of values that are judged; where a space has more, about so many of them."""

NUM_RUNGS = 9
"""Points of a range that are judged, evenly spaced (in its logarithm), both ends included."""

_OPTION = "--keep-low-recall-anchors"

_PRUNED = {"model.anchors"} | {
    f"model.anchors.{name}" for name in ("sizes", "octave_scales", "aspect_ratios", "scale")
}
# All that decides the recall of a setting, and what a fit of the anchors comes to.
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
    space: Space, base: ExperimentConfig, dataset: PreparedDataset, *, keep: bool = False
) -> tuple[Space, ExperimentConfig]:
    """Take anchor settings of low recall out of a space, each with a warning.

    Every value of `model.anchors.scale`, `sizes`, `octave_scales` and `aspect_ratios` is judged
    together with the other values of the space that matter: by the recall at an IoU of
    `matcher.high`, averaged over the classes. See `LOW_RECALL` for what is too low.

    - Such a value of a `Choice` is left out, with a warning that names it and its recall, and the
      trials go to the others. The base config's own value is no exception: the base config is then
      not the first trial, as with every base config that lies outside its space. Where one value is
      left, it is set, and the parameter leaves the space.
    - A range with such an end is refused, and the part of it that is sound is named. Narrowing it
      is the user's decision, since every draw would change.

    Kept as they are: values that take part in a setting with a matcher that has no threshold
    (`best`, `atss`), with fitted anchors, or with rotated boxes. No box is lost there for a low
    IoU, or nothing is known of it.

    Args:
        space: checked by `check_space`.
        base: complete.
        dataset: the training set.
        keep: warn only.

    Returns:
        The space that is left, and the base config with the values that were set.

    Raises:
        ConfigError: ranges with an end of low recall, or nothing left to vary; all faults at once.
        DataError: no box is left at the training size.
    """
    if not space.keys() & _PRUNED:
        return space, base
    findings, best = _judge_all(space, base, dataset)
    left, faults, fixed = dict(space), [], {}
    for path, finding in findings.items():
        low = finding.low(best)
        if not low:
            continue
        message = finding.describe(low, best, match_threshold(base.matcher))
        good = [v for i, v in enumerate(finding.values) if i not in low]
        if keep:
            logger.warning("%s: anchors of low recall are kept: %s", path, message)
        elif not isinstance(space[path], Choice):
            faults += _range_faults(path, finding, good, message)
        else:
            left[path] = Choice(*good)
            if len(good) == 1:
                fixed[path] = good[0]
                del left[path]
                message += f"; {_brief(good[0])} alone is left, and is set for all trials"
            logger.warning("%s: anchors of low recall are left out: %s", path, message)
    if not left:
        faults += [
            (
                path,
                f"all values but {_brief(value)} have low recall: set it and sweep something else, "
                f"or keep all of them ({_OPTION})",
            )
            for path, value in fixed.items()
        ]
    if faults:
        raise ConfigError(faults)
    return left, with_overrides(base, fixed)


def _range_faults(
    path: str, finding: _Finding, good: list[Any], message: str
) -> Iterator[tuple[str, str]]:
    """Yield a fault where an end of a range has low recall."""
    low, high = finding.values[0], finding.values[-1]
    if (low, high) != (good[0], good[-1]):
        yield (
            path,
            f"anchors of low recall: {message}; make it {_brief(good[0])} to "
            f"{_brief(good[-1])}, or keep all of it ({_OPTION})",
        )


@dataclass
class _Finding:
    """The best recall of each value of one parameter (of a range, of some)."""

    values: tuple[Any, ...]
    recall: list[float | None]  # None: could not be judged; infinite: kept anyway

    def note(self, number: int, recall: float) -> None:
        """Take the recall of a setting with this value."""
        self.recall[number] = max(recall, self.recall[number] or 0.0)

    def low(self, best: float) -> dict[int, float]:
        """Numbers of the values of low recall, and their recall."""
        return {
            i: recall
            for i, recall in enumerate(self.recall)
            if recall is not None and recall < LOW_RECALL * best
        }

    def describe(self, low: Mapping[int, float], best: float, threshold: float) -> str:
        """The values of low recall with their numbers."""
        numbers = ", ".join(
            f"{_brief(self.values[i])} reaches {100 * recall:.1f} %" for i, recall in low.items()
        )
        return (
            f"{numbers} of a class's boxes at IoU >= {threshold:g}, with whatever else is in the "
            f"space; its best setting reaches {100 * best:.1f} %"
        )


def _judge_all(
    space: Space, base: ExperimentConfig, dataset: PreparedDataset
) -> tuple[dict[str, _Finding], float]:
    """Judge the values of the pruned parameters, and find the recall of the best setting."""
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
            recall = judges.recall(config) if judged else math.inf
            best = max(best, recall) if judged else best
            idle = idle_paths(config)
            for path, finding in findings.items():
                if path not in idle:
                    finding.note(numbers[path], recall)
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

    def recall(self, config: ExperimentConfig) -> float:
        """Recall of the anchors of a config, averaged over the classes."""
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
        return self._judges[common](model.anchors).recall


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
