"""What a training loop asks and tells of a run, and the state that it hands over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from retina_ray.train.engine.validation import Predictions


@dataclass(frozen=True)
class Snapshot:
    """The state of a training loop between two steps.

    Nothing is copied: the tensors are those in use, which the next step changes.

    Epochs are whole ones; `state` is what else a run resumes from: plain numbers, and tensors.
    """

    step: int
    epoch: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    state: dict[str, Any]


class Callbacks(Protocol):
    """Called by the loop on every rank, if not said otherwise; only rank 0's metrics are kept."""

    def on_log(self, metrics: dict[str, float], *, step: int) -> None:
        """Take the training metrics of a logging interval (rank 0 only)."""

    def on_bad_images(self, bad: dict[str, str]) -> None:
        """Take names and reasons of images that the stream of any worker had to replace.

        Called with the same on every rank, so what it raises is raised by all of them at once.
        """

    def score(self, found: Predictions, *, step: int) -> dict[str, float]:
        """Score the gathered predictions of a validation (rank 0 only)."""
        ...

    def on_validation_end(self, metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        """Keep a checkpoint and report.

        With `train.async_validation` the checkpoint goes into the next validation, and the metrics
        are those of the one before.

        On other ranks than 0, metrics are empty and the snapshot None. What is kept must be copied.
        """

    def validation_is_done(self) -> bool:
        """Whether no asynchronous validation is under way; waits a while for it (rank 0 only)."""
        ...

    def take_validation(self, *, step: int) -> tuple[dict[str, float], dict[str, str]]:
        """Take in the outcome of the asynchronous validation, if there was one (rank 0 only).

        Returns its metrics, and the images that could not be decoded; `step` are done by now.
        """
        ...

    def on_last_validation(self, metrics: dict[str, float], *, step: int, epoch: int) -> None:
        """Record the last asynchronous validation, which no checkpoint follows, and report."""

    def on_checkpoint(self, snapshot: Snapshot | None) -> None:
        """Keep a checkpoint between two validations; see `on_validation_end`."""

    def stop_reason(self) -> str | None:
        """Why this worker should stop, None where it should go on.

        Asked at every step, so it must be quick and must not wait for a device or another worker.
        """
        ...
