"""What a sweep says while it runs, in place of Ray Tune's own banners."""

from __future__ import annotations

import logging
import os
from typing import Any

from ray.tune import Callback
from rich.console import Console

from retina_ray.sweep.plan import METRIC, SweepPlan

_INTERRUPTED = "Stop signal received"
_SAID = (
    _INTERRUPTED,
    "Trial task failed for trial",  # the reason stands in the table, the traceback in Ray's files
    "Trials did not complete",
    "Experiment has been interrupted",
)


class Watcher(Callback):
    """Prints the sweep's progress from Tune's own process."""

    def __init__(self, plan: SweepPlan) -> None:
        """Watch the trials of `plan`."""
        self._epochs = plan.config.train.epochs
        self._num_samples = plan.num_samples
        self._best = (float("-inf"), "")

    def get_state(self) -> dict[str, Any]:
        """What a resumed sweep still needs to know."""
        return {"best": self._best}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where the interrupted sweep was."""
        self._best = tuple(state["best"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Say what an evaluation found."""
        ap = result.get(METRIC)
        if ap is None:
            return
        if ap > self._best[0]:
            self._best = (ap, str(trial))
        ended = sum(other.is_finished() for other in trials)
        _say(
            f"{trial}  epoch {result.get('epoch', 0)}/{self._epochs}  AP {ap:.3f}  "
            f"AP50 {result.get('val/AP50', float('nan')):.3f}   "
            f"({ended}/{self._num_samples} trials ended, best AP {self._best[0]:.3f} "
            f"by {self._best[1]})"
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial is done, or was stopped."""
        epoch = (trial.last_result or {}).get("epoch", 0)
        how = "finished" if epoch >= self._epochs else f"stopped early at epoch {epoch}"
        _say(f"{trial}  {how}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial failed; the sweep goes on."""
        _say(f"{trial}  FAILED (the reason will stand in the table); the sweep goes on")


def _say(text: str) -> None:
    Console().print(text, highlight=False, soft_wrap=True)


def quiet_tune() -> None:
    """Silence what Ray Tune would print beside the watcher's lines; errors of its own stay."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new output prints a banner at every verbosity
    for name in ("ray.tune.tune", "ray.tune.execution.tune_controller"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _TuneMessages) for f in logger.filters):
            logger.addFilter(_TuneMessages())


class _TuneMessages(logging.Filter):
    """Drops what the table says anyway, and words the answer to Ctrl-C for the user."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if text.startswith(_INTERRUPTED):
            Console(stderr=True).print("interrupted: ending the trials and saving the sweep")
        return not text.startswith(_SAID)
