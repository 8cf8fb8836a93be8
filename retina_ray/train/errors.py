"""The errors that end a run; apart from what raises them, as catching them needs no PyTorch."""

from __future__ import annotations

import math


class RunError(RuntimeError):
    """A run ended with an error of its workers; the message is the cause."""


class NonRetryableError(RunError):
    """A run that would end in the same way if it were resumed as it is."""


class DiskFullError(RunError):
    """A checkpoint or a record could not be written: the disk is full, or a quota used up.

    Raised by the one worker that writes. A restart would only meet it again, so there is none; once
    there is space the run can be resumed.
    """


class RunTerminatedError(RunError):
    """A run was told to end, and did so in order: its last checkpoint is where it goes on."""


class RunStoppedError(RuntimeError):
    """A worker's loop ended early, in order, after a checkpoint; the message is the reason.

    Raised on every rank at the same step.

    `reason` is as `Callbacks.stop_reason` gave it.
    """

    def __init__(self, reason: str) -> None:
        """End for a reason."""
        super().__init__(reason)
        self.reason = reason


class TooManyBadImagesError(RuntimeError):
    """More images could not be decoded than `input.max_bad_fraction` allows."""


class NonFiniteLossError(RuntimeError):
    """A loss term or the gradient became NaN or infinite; the message says what to do.

    Raised on every rank at the same step. The weights did not take the step: an update with such a
    gradient is left out.
    """

    def __init__(
        self,
        message: str,
        *,
        step: int = -1,
        terms: tuple[str, ...] = (),
        values: dict[str, float] | None = None,
        image_ids: tuple[int, ...] = (),
        lr: float = math.nan,
    ) -> None:
        """Tell of a step; without the numbers (as when it is unpickled) they are set afterwards."""
        super().__init__(message)
        self.step = step  # of the plan, from 0, where it happened first
        self.terms = terms  # what was not finite: names of loss terms, or "gradient"
        # Loss terms and the gradient's norm at that step, averaged over the workers.
        self.values = {} if values is None else values
        self.image_ids = image_ids  # of that step, in the order of the workers
        self.lr = lr  # of the first parameter group
