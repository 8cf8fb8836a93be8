"""When a run ends before its plan does: early stopping, a time budget, or somebody who stops it.

Every worker must come to the same end at the same step, so they make the decision together.
"""

from __future__ import annotations

import math
import time
from typing import Any, Literal

import torch

from retina_ray.config import TrainConfig
from retina_ray.train.engine import distributed

Ended = Literal["", "finished", "early stop", "time budget"]


class EarlyStopping:
    """Counts the validations since one beat the best AP."""

    def __init__(self, rounds: int | None, *, min_gain: float) -> None:
        """End after so many `rounds` without gain; None: never.

        An AP must exceed the best one by `min_gain` to count as better. Only then is it the new
        best, so many small gains add up to one.
        """
        self._rounds = rounds
        self._min_gain = min_gain
        self.best: float | None = None
        self.rounds_without_gain = 0

    def add(self, ap: float | None) -> None:
        """Take the AP of a validation; none, or NaN, is no gain."""
        ap = -math.inf if ap is None or math.isnan(ap) else ap
        before = -math.inf if self.best is None else self.best + self._min_gain
        if ap > before:
            self.best = ap
            self.rounds_without_gain = 0
        else:
            self.rounds_without_gain += 1

    @property
    def is_due(self) -> bool:
        """Whether the run should end."""
        return self._rounds is not None and self.rounds_without_gain >= self._rounds

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs of it."""
        return {"best": self.best, "rounds_without_gain": self.rounds_without_gain}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.best = state["best"]
        self.rounds_without_gain = state["rounds_without_gain"]


class StoppingCriteria:
    """What may end a run before its plan does.

    The budget is of the time that a run has trained, validations included, over all its parts. What
    a killed part did after its last checkpoint is done again, and counted once.
    """

    def __init__(self, config: TrainConfig, *, num_steps: int, device: torch.device) -> None:
        """Read the criteria; who has done all steps has finished, whatever else is true."""
        self._early_stopping = EarlyStopping(
            config.early_stop_rounds, min_gain=config.early_stop_min_gain
        )
        self._max_s = math.inf if config.max_hours is None else config.max_hours * 3600
        self._before_s = 0.0  # of earlier parts
        self._started: float | None = None
        self._num_steps = num_steps
        self._device = device

    def start(self) -> None:
        """Let the time run."""
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds so far."""
        running = 0.0 if self._started is None else time.monotonic() - self._started
        return self._before_s + running

    def add_validation(self, metrics: dict[str, float]) -> None:
        """Take the metrics of a validation (rank 0, which alone has them and decides for all)."""
        self._early_stopping.add(metrics.get("val/AP"))

    def after_validation(self, step: int) -> Ended:
        """Whether the run ends after the validation at a step, on all workers alike."""
        is_due = distributed.maximum(int(self._early_stopping.is_due), self._device)
        return "early stop" if is_due and step < self._num_steps else ""

    def now(
        self, reason: str | None, *, step: int, validation_is_due: bool
    ) -> tuple[str | None, Ended]:
        """As `agree_on_stop`, with the end that the time has brought.

        Time that is spent still allows a validation that is due.
        """
        is_spent = self.elapsed_s >= self._max_s
        is_over = is_spent and not validation_is_due and step < self._num_steps
        reason, is_over = agree_on_stop(reason, is_over=is_over, device=self._device)
        return reason, "time budget" if is_over else ""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs of it."""
        return {"plateau": self._early_stopping.state_dict(), "elapsed_s": self.elapsed_s}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._before_s = state["elapsed_s"]
        self._early_stopping.load_state_dict(state["plateau"])


def agree_on_stop(
    reason: str | None, *, is_over: bool, device: torch.device
) -> tuple[str | None, bool]:
    """Make one decision of those of all workers; every worker must call it at the same step.

    One number travels, on the device of the workers; with several GPUs that waits for them.

    Returns:
        The reason of the first worker that has one, and whether the time is spent on rank 0.
    """
    code = 2 if reason is not None else int(is_over and distributed.rank() == 0)
    if distributed.is_active():
        code = distributed.maximum(code, device)
    if code < 2:
        return None, code == 1
    return next(one for one in distributed.all_objects(reason) if one is not None), False
