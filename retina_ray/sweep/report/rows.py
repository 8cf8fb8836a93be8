"""What a sweep knows of each trial, the order of the trials, and how their values are written."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_MAX_VALUE = 28  # letters of a value in a table or on an axis; the files hold it whole


@dataclass(frozen=True)
class TrialRow:
    """One trial of a sweep.

    Attributes:
        trial_id: unique in the sweep.
        params: swept settings, dotted path to value; None where a setting had no effect.
        status: `finished`, `stopped` (by the scheduler), `failed`, `pending`.
        reason: why it failed or was stopped.
        metrics: of its best evaluation, at `best_epoch`: AP, AP50, ..., each from 0 to 1.
        time_s: wall-clock seconds.
        checkpoint: where that of the best evaluation lies.
        history: every evaluation in order: epoch, step, AP, AP50, loss, ...
    """

    trial_id: str
    params: dict[str, Any]
    status: str
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    epochs_run: int = 0
    time_s: float = 0.0
    checkpoint: str | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    seed: int = 0


@dataclass(frozen=True)
class Repeats:
    """The same settings, run to the end with 2 seeds or more.

    `mean` and `std` are of their AP, the latter divided by `num_seeds - 1`.
    """

    num_seeds: int
    mean: float
    std: float


def average_precision(row: TrialRow) -> float:
    """AP of the trial's best evaluation; NaN where it has none."""
    value = row.metrics.get("AP")
    return float(value) if value is not None else math.nan


def rank(rows: Iterable[TrialRow]) -> list[TrialRow]:
    """Best AP first, then trials without an AP, and the failed ones last; ties stay in order."""

    def key(row: TrialRow) -> tuple[bool, bool, float]:
        ap = average_precision(row)
        return row.status == "failed", math.isnan(ap), 0.0 if math.isnan(ap) else -ap

    return sorted(rows, key=key)


def best_trial(rows: Iterable[TrialRow]) -> TrialRow | None:
    """The first of the ranking, if it has an AP. A failed one only where no other has any."""
    return next((row for row in rank(rows) if not math.isnan(average_precision(row))), None)


def longest_run(rows: Iterable[TrialRow]) -> int:
    """Epochs of the trial that ran longest: the yardstick for which trials compare."""
    return max((row.epochs_run for row in rows), default=0)


def repeats(rows: Iterable[TrialRow]) -> dict[str, Repeats]:
    """The spread over seeds, by trial id, for settings that finished with two seeds or more.

    Trials belong together where all swept settings but the seed are equal. Those that did not
    run to the end are left out, and two runs of one seed count once.
    """
    groups: dict[str, dict[Any, list[TrialRow]]] = {}
    for row in rows:
        if row.status == "finished" and not math.isnan(average_precision(row)):
            settings = {path: v for path, v in row.params.items() if not _is_seed(path)}
            seeds = [v for path, v in row.params.items() if _is_seed(path)]
            group = groups.setdefault(repr(sorted(settings.items())), {})
            group.setdefault(repr(seeds or row.seed), []).append(row)
    spread = {}
    for by_seed in groups.values():
        if len(by_seed) >= 2:
            aps = [statistics.fmean(map(average_precision, same)) for same in by_seed.values()]
            found = Repeats(len(aps), statistics.fmean(aps), statistics.stdev(aps))
            spread |= {row.trial_id: found for same in by_seed.values() for row in same}
    return spread


VAGUE = frozenset({"name", "scale"})
"""Settings that say nothing without their section: `schedule.name`, `anchors.scale`."""


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """The shortest tail of each dotted path that says enough and that no other path ends in."""
    names = {}
    for path in paths:
        parts = path.split(".")
        least = 2 if parts[-1] in VAGUE and len(parts) > 1 else 1
        tails = [".".join(parts[-n:]) for n in range(least, len(parts) + 1)]
        names[path] = next(
            (t for t in tails if not any(p != path and f".{p}".endswith(f".{t}") for p in paths)),
            path,
        )
    return names


def swept_paths(rows: Iterable[TrialRow]) -> list[str]:
    """Every swept path, in the order in which the trials name them."""
    return list(dict.fromkeys(path for row in rows for path in row.params))


def format_value(value: Any, *, limit: int = _MAX_VALUE) -> str:
    """A setting in few letters: three digits of a float, long values cut in the middle."""
    text = _whole(value)
    if len(text) <= limit:
        return text
    head = (limit - 3 + 1) // 2
    return f"{text[:head]}...{text[len(text) - (limit - 3 - head) :]}"


def format_duration(seconds: float) -> str:
    """`45s`, `3m 10s`, `2h 05m`."""
    if not math.isfinite(seconds):
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def _whole(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.6g}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_whole, value))})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_whole(v)}" for k, v in value.items()) + "}"
    return str(value)


def _is_seed(path: str) -> bool:
    return path.rsplit(".", 1)[-1] == "seed"
