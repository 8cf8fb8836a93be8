"""What a sweep varies: dotted config paths with their values, checked before anything starts.

A space is an ordinary dictionary of path to domain:

    {"loss.focal_gamma": Uniform(0.5, 3.0), "loss.box_loss": Choice("smooth_l1", "giou")}
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray import tune

from retina_ray.config import ConfigError, ExperimentConfig, with_overrides
from retina_ray.sweep.effective import effective_settings


@dataclass(frozen=True, init=False)
class Choice:
    """One of several values; each may be anything that the config takes there (tuples too)."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        """Take the values themselves: `Choice(0.5, 1.0)`."""
        object.__setattr__(self, "values", values)


@dataclass(frozen=True)
class Uniform:
    """A float between two bounds."""

    low: float
    high: float


@dataclass(frozen=True)
class LogUniform:
    """A float between two positive bounds, uniform in its logarithm."""

    low: float
    high: float


@dataclass(frozen=True)
class IntUniform:
    """A whole number between two bounds, both included."""

    low: int
    high: int


MAX_ENUMERATED = 10_000
"""Points of a space of choices that are listed to be drawn without repeats."""

Domain = Choice | Uniform | LogUniform | IntUniform
Space = Mapping[str, Domain]


def check_space(space: Space, base: ExperimentConfig) -> None:
    """Show, before any trial starts, that every value of the space can be built and does something.

    Raises:
        ConfigError: an unknown path, an end point or a choice that makes an invalid config, a
            parameter with fewer than two values, one that changes nothing of what is built
            whatever the others are (e.g. `loss.smooth_l1_beta` while every trial uses GIoU): all
            faults at once.
    """
    if not space:
        raise ConfigError("the space is empty: there is nothing to sweep")
    faults = [fault for path, domain in space.items() for fault in _domain_faults(path, domain)]
    sound = space.keys() - {path for path, _ in faults}
    probes = {path: _probes(domain) for path, domain in space.items() if path in sound}
    for path, values in probes.items():
        for value in values:
            try:
                with_overrides(base, {path: value})
            except ConfigError as error:
                faults += [(p or path, m) for p, m in error.faults]
    if not faults:
        faults = list(_idle(probes, base))
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))


def to_tune(space: Space) -> dict[str, Any]:
    """The space in Ray Tune's terms; choices travel as JSON so that every searcher takes them."""
    return {path: _tune_domain(domain) for path, domain in space.items()}


def decode_params(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """The values that Ray Tune drew, as the config takes them."""
    return {
        path: json.loads(params[path]) if isinstance(domain, Choice) else params[path]
        for path, domain in space.items()
    }


def _tune_domain(domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return tune.choice([json.dumps(value) for value in domain.values])
    if isinstance(domain, LogUniform):
        return tune.loguniform(domain.low, domain.high)
    if isinstance(domain, IntUniform):
        return tune.randint(domain.low, domain.high + 1)
    return tune.uniform(domain.low, domain.high)


def _domain_faults(path: str, domain: Domain):
    if isinstance(domain, Choice):
        if len({json.dumps(v) for v in domain.values}) < max(2, len(domain.values)):
            yield path, f"needs at least two different values, got {list(domain.values)}"
        return
    if not (math.isfinite(domain.low) and math.isfinite(domain.high) and domain.low < domain.high):
        yield path, f"needs low < high, got {domain.low} and {domain.high}"
    elif isinstance(domain, LogUniform) and domain.low <= 0:
        yield path, f"a logarithmic range needs low > 0, got {domain.low}"


def _probes(domain: Domain) -> tuple[Any, ...]:
    """The values at which a domain is tried: all choices, or both ends."""
    return domain.values if isinstance(domain, Choice) else (domain.low, domain.high)


def _idle(probes: Mapping[str, tuple[Any, ...]], base: ExperimentConfig):
    """Yield the parameters whose values change nothing, whatever value each other one has."""
    for path, values in probes.items():
        contexts: list[dict[str, Any]] = [{}]
        contexts += [{p: v} for p, others in probes.items() if p != path for v in others]
        if not any(_changes(base, path, values, context) for context in contexts):
            yield (
                path,
                "has no effect on what is built with the rest of this configuration: take it out "
                "of the space, or switch on the part that reads it",
            )


def _changes(
    base: ExperimentConfig, path: str, values: tuple[Any, ...], context: dict[str, Any]
) -> bool:
    seen = []
    for value in values:
        try:
            config = with_overrides(base, {**context, path: value})
        except ConfigError:
            continue
        seen.append(effective_settings(config))
    return any(settings != seen[0] for settings in seen[1:])


def num_points(space: Space) -> int | None:
    """How many different points there are; None where a domain is no choice."""
    choices = [domain.values for domain in space.values() if isinstance(domain, Choice)]
    return math.prod(map(len, choices)) if len(choices) == len(space) else None


def first_points(
    space: Space, base: ExperimentConfig, *, num_samples: int, seed: int
) -> list[dict[str, Any]]:
    """The points of a random search that are settled beforehand, in Ray Tune's terms.

    The base config's own values come first, where they lie in the space. Where every domain is a
    choice, the others follow in a random order without repeats, so that no trial of a small space
    is spent on settings that another one has. There are at most `num_samples` points.
    """
    baseline = baseline_point(space, base)
    points = [] if baseline is None else [baseline]
    size = num_points(space)
    if size is None or size > MAX_ENUMERATED:
        return points
    choices = [domain.values for domain in space.values() if isinstance(domain, Choice)]
    grid = [
        dict(zip(space, map(json.dumps, values), strict=True))
        for values in itertools.product(*choices)
    ]
    random.Random(seed).shuffle(grid)
    points += [point for point in grid if point != baseline]
    return points[:num_samples]


def baseline_point(space: Space, base: ExperimentConfig) -> dict[str, Any] | None:
    """The base config's own values in Ray Tune's terms, to be tried first as the baseline.

    Returns:
        None where one of them lies outside the space.
    """
    point = _base_values(space, base)
    return None if None in point.values() else point


def paths_outside(space: Space, base: ExperimentConfig) -> list[str]:
    """The settings whose value in the base config is none of the space's."""
    return [path for path, value in _base_values(space, base).items() if value is None]


def _base_values(space: Space, base: ExperimentConfig) -> dict[str, Any]:
    """The base config's values in Ray Tune's terms by path, None for one outside the space."""
    tree = base.model_dump()
    values = {}
    for path, domain in space.items():
        value: Any = tree
        for name in path.split("."):
            value = value[name]
        if isinstance(domain, Choice):
            value = json.dumps(value)
            is_inside = value in [json.dumps(v) for v in domain.values]
        else:
            is_inside = isinstance(value, int | float) and domain.low <= value <= domain.high
        values[path] = value if is_inside else None
    return values
