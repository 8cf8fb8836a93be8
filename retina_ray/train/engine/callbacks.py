"""Between a training loop and the world: what it is told of the run, and whom it tells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from retina_ray.train.engine.loop import TrainingLoop
    from retina_ray.train.engine.validation import RoundResult


class Host(Protocol):
    """Who the loop reports to; on every rank, but only rank 0's figures are kept."""

    def log_step(self, metrics: dict[str, float], *, step: int) -> None:
        """Take the training figures of a logging interval (rank 0 only)."""

    def saw_bad_images(self, bad: dict[str, str]) -> None:
        """Take names and reasons of images that the stream of any worker had to replace.

        Called with the same on every rank, so what it raises is raised by all of them at once.
        """

    def evaluated(self, result: RoundResult, *, step: int) -> dict[str, float]:
        """Score the gathered predictions of a validation round (rank 0 only)."""
        ...

    def round_ended(
        self, metrics: dict[str, float], *, step: int, epoch: int, loop: TrainingLoop
    ) -> None:
        """End a validation round: keep a checkpoint (rank 0) and report (every rank).

        With `train.async_validation` the checkpoint goes into the next round beside the training,
        and the figures are those of the round before.
        """

    def round_is_over(self, timeout_s: float) -> bool:
        """Whether no round beside the training is under way; waits for it so long (rank 0 only)."""
        ...

    def take_round(self, *, step: int) -> tuple[dict[str, float], dict[str, str]]:
        """Take in what the round beside the training came to (rank 0 only).

        Args:
            step: training steps done by now.

        Returns:
            Its figures, and the images that could not be decoded; empty where there was no round.
        """
        ...

    def last_round_ended(self, metrics: dict[str, float], *, step: int, epoch: int) -> None:
        """End the last round beside the training: record (rank 0) and report (every rank)."""

    def checkpoint(self, *, step: int, epoch: int, loop: TrainingLoop) -> None:
        """Keep a checkpoint between evaluations (rank 0; called on every rank).

        Args:
            step: training steps done.
            epoch: whole epochs done.
            loop: `loop.state()` and the weights may change as soon as this returns.
        """

    def stop_reason(self) -> str | None:
        """Why this worker should stop, None where it should go on.

        Asked at every step, so it must be quick and must not wait for a device or another worker.
        """
        ...
