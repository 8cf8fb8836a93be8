"""Which checkpoints of a run count: the content of `index.json`, and the policy of what is kept.

Kept are the best one by the metric, the last few, and one that is being evaluated elsewhere. The
best one is never lost, also where a run went back to a checkpoint from before it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

_VERSION = 2


@dataclass(frozen=True)
class Entry:
    """A checkpoint that counts.

    `metric` is what "best" means, higher is better; None where it is unknown, or no number.
    """

    name: str
    step: int
    metric: float | None = None


@dataclass(frozen=True)
class CheckpointIndex:
    """The checkpoints of a run that count.

    Attributes:
        recent: the last ones, oldest first.
        best: the one with the best metric; None before the first validation.
        pending: the one that is evaluated while the training goes on (see
            `retina_ray.train.run.async_validation`); it stays until its metric is known.
        writer: who holds the lease, and may add to it.
    """

    recent: tuple[Entry, ...] = ()
    best: Entry | None = None
    pending: Entry | None = None
    writer: str = ""

    @property
    def last(self) -> Entry | None:
        """The newest one: where the run goes on."""
        return self.recent[-1] if self.recent else None

    @property
    def entries(self) -> list[Entry]:
        """All of them: the last one, then the others from the highest step down."""
        all_of_them = (self.pending, *self.recent, self.best)
        others = {entry.name: entry for entry in all_of_them if entry is not None}
        if self.last is None:
            return sorted(others.values(), key=lambda entry: -entry.step)
        del others[self.last.name]
        return [self.last, *sorted(others.values(), key=lambda entry: -entry.step)]

    @property
    def names(self) -> set[str]:
        """The folders that count."""
        return {entry.name for entry in self.entries}

    def new_entry(self, step: int, metric: float | None) -> Entry:
        """An entry for a checkpoint that is to be written, with a name that is free."""
        name, number = f"step-{step:08d}", 1
        while name in self.names:
            number += 1
            name = f"step-{step:08d}-{number}"
        return Entry(name, step, None if metric is None or not math.isfinite(metric) else metric)

    def is_better(self, metric: float | None) -> bool:
        """Whether a checkpoint of this metric would be the best one."""
        if metric is None or not math.isfinite(metric):
            return False
        return self.best is None or self.best.metric is None or metric > self.best.metric

    def with_entry(self, entry: Entry, *, keep: int, is_pending: bool = False) -> CheckpointIndex:
        """Make a checkpoint the last of the `keep` last ones (and the best one where it is).

        What was recorded of later steps (the run went back), or of the same one, counts no more
        among the last ones. Where it is pending itself, the one before must be `settled`.
        """
        pending = entry if is_pending else self.pending
        if pending is not None and pending.step > entry.step:
            pending = None
        earlier = tuple(one for one in self.recent if one.step < entry.step)
        best = entry if self.is_better(entry.metric) else self.best
        recent = (*earlier, entry)[-keep:]
        return replace(self, recent=recent, best=best, pending=pending)

    def settled(self, metric: float | None) -> CheckpointIndex:
        """Give the pending one the metric that its validation came to.

        Raises:
            ValueError: none is pending.
        """
        if self.pending is None:
            raise ValueError("no checkpoint waits for its metric")
        is_number = metric is not None and math.isfinite(metric)
        entry = replace(self.pending, metric=metric if is_number else None)
        recent = tuple(entry if one.name == entry.name else one for one in self.recent)
        best = entry if self.is_better(metric) else self.best
        return replace(self, recent=recent, best=best, pending=None)

    def gone_back(self, entry: Entry, *, damaged: Collection[str]) -> CheckpointIndex:
        """Make an earlier checkpoint the last one, and forget those that cannot be read."""
        whole = [one for one in self.entries if one.name not in damaged]
        recent = sorted((one for one in whole if one.step < entry.step), key=lambda one: one.step)
        measured = [one for one in whole if one.metric is not None]
        best = max(measured, key=lambda one: one.metric or -math.inf, default=None)
        pending = self.pending
        if pending is not None and (pending.name in damaged or pending.step > entry.step):
            pending = None
        return replace(self, recent=(*recent, entry), best=best, pending=pending)

    def to_json(self) -> str:
        """The text of `index.json`."""
        tree: dict[str, Any] = {"version": _VERSION, "writer": self.writer}
        if self.last is not None:
            tree |= {"last": self.last.name, "last_step": self.last.step}
        if self.best is not None:
            tree |= {"best": self.best.name, "best_metric": self.best.metric}
            tree |= {"best_step": self.best.step}
        if self.pending is not None:
            tree["pending"] = asdict(self.pending)
        tree["recent"] = [asdict(entry) for entry in self.recent]
        return json.dumps(tree, indent=1)

    @classmethod
    def from_json(cls, text: str) -> CheckpointIndex:
        """Read `index.json`."""
        tree = json.loads(text)
        best = None
        if "best" in tree:
            best = Entry(tree["best"], tree["best_step"], tree["best_metric"])
        recent = tuple(Entry(**entry) for entry in tree["recent"])
        pending = Entry(**tree["pending"]) if "pending" in tree else None
        return cls(recent, best, pending, tree["writer"])
