"""The errors that end a run; apart from what raises them, as catching them needs no PyTorch."""

from __future__ import annotations

__all__ = ["HopelessRunError", "RunError", "TooManyBadImagesError"]


class RunError(RuntimeError):
    """A run ended with an error of its workers; the message is the cause."""


class HopelessRunError(RunError):
    """A run that would end in the same way if it were carried on as it is."""


class TooManyBadImagesError(RuntimeError):
    """More images could not be decoded than `input.max_bad_fraction` allows."""
