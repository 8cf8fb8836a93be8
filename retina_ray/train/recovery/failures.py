"""How a run fails: one message with the cause, whichever process it happened in."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

from retina_ray.config import ConfigError
from retina_ray.storage.disk_space import DiskSpace, is_disk_full, reason_of
from retina_ray.storage.files import read_text, write_text
from retina_ray.storage.uris import join_uri, open_filesystem
from retina_ray.train.errors import (
    DiskFullError,
    NonFiniteLossError,
    RunError,
    TooManyBadImagesError,
)
from retina_ray.train.run_files import FAILURE

NON_RETRYABLE = (NonFiniteLossError, TooManyBadImagesError, ConfigError)
"""Errors that every worker raises at the same step, and that a restart from the last checkpoint,
which does the same steps over the same data, would raise again."""


class Note:
    """A small file in a run's folder, by which the processes of a run tell each other something."""

    def __init__(self, run_uri: str, name: str) -> None:
        """The note `name` of the run at `run_uri`."""
        self._uri = join_uri(run_uri, name)

    def write(self, text: str) -> None:
        """Write it down."""
        write_text(self._uri, text)

    def read(self) -> str | None:
        """What it says; None where there is none."""
        return read_text(self._uri)

    def clear(self) -> None:
        """Take it away."""
        fs, path = open_filesystem(self._uri)
        with contextlib.suppress(FileNotFoundError):
            fs.delete_file(path)


class FailureNote(Note):
    """Says why a run failed; workers cannot say it to the driver.

    An error that leaves a worker makes Ray Train restart all of them, so workers with an error
    that a restart does not mend write it down here and end in peace.
    """

    def __init__(self, run_uri: str) -> None:
        """The note of the run at `run_uri`."""
        super().__init__(run_uri, FAILURE)


def name_cause(error: BaseException) -> str:
    """An error in one line or a few: its kind and what it says."""
    if isinstance(error, RunError):
        return str(error)
    inner = getattr(error, "cause", None)  # of Ray's RayTaskError, which prints a traceback
    if isinstance(inner, BaseException):
        return name_cause(inner)
    return f"{type(error).__name__}: {str(error).strip()}"


def cause_of(error: Any) -> str:
    """What happened, out of Ray Train's `TrainingFailedError`, without its tracebacks.

    Where several workers failed, each different reason is named with its first rank.
    """
    failures: dict[int, Any] = getattr(error, "worker_failures", None) or {}
    if not failures:
        return name_cause(getattr(error, "controller_failure", None) or error)
    reasons: dict[str, int] = {}
    for rank, failure in sorted(failures.items()):
        # Ray wraps what the worker raised, in a field that is not public: it may go.
        reasons.setdefault(name_cause(getattr(failure, "_base_exc", failure)), rank)
    if len(reasons) == 1:
        return next(iter(reasons))
    return "\n".join(f"worker {rank}: {reason}" for reason, rank in reasons.items())


@contextlib.contextmanager
def naming_full_disk(run_uri: str) -> Iterator[None]:
    """Around what writes for the run at `run_uri`: on a full disk, an error says what to do.

    Raises:
        DiskFullError: instead of the system's error.
    """
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        spaces = dict.fromkeys(
            str(DiskSpace.at(place)) for place in (run_uri, tempfile.gettempdir())
        )
        raise DiskFullError(
            f"a disk is full: {reason_of(error)} ({'; '.join(spaces)}); the last checkpoint "
            "stays: free some space, then --resume"
        ) from error
