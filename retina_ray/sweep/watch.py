"""What a sweep says while it runs: one line for every evaluation, and for every trial that ends."""

from __future__ import annotations

from typing import Any

from ray.tune import Callback
from rich.console import Console

from retina_ray.sweep.plan import METRIC, SweepPlan

__all__ = ["Watcher"]


class Watcher(Callback):
    """Prints the sweep's progress from Tune's own process."""

    def __init__(self, plan: SweepPlan) -> None:
        """Watch the trials of `plan`."""
        self._epochs = plan.config.train.epochs
        self._num_samples = plan.num_samples
        self._ended: set[str] = set()
        self._best = (float("-inf"), "")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Say what an evaluation found."""
        ap = result.get(METRIC)
        if ap is None:
            return
        if ap > self._best[0]:
            self._best = (ap, trial.trial_id)
        _say(
            f"{trial.trial_id}  epoch {result.get('epoch', 0)}/{self._epochs}  AP {ap:.3f}  "
            f"AP50 {result.get('val/AP50', float('nan')):.3f}   "
            f"({len(self._ended)}/{self._num_samples} trials ended, best AP {self._best[0]:.3f} "
            f"by {self._best[1]})"
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial is done, or was stopped."""
        self._ended.add(trial.trial_id)
        epoch = (trial.last_result or {}).get("epoch", 0)
        how = "finished" if epoch >= self._epochs else f"stopped early at epoch {epoch}"
        _say(f"{trial.trial_id}  {how}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial failed; the sweep goes on."""
        self._ended.add(trial.trial_id)
        _say(f"{trial.trial_id}  FAILED (the reason will stand in the table); the sweep goes on")


def _say(text: str) -> None:
    Console().print(text, highlight=False, soft_wrap=True)
