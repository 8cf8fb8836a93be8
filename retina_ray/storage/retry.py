"""Waiting for a storage that does not answer, and giving up on it with a clear error.

Networks and servers have gaps of some seconds, a run lasts for days: so whatever is asked of a
remote storage is asked again, until it answers or the patience is at its end.
"""

from __future__ import annotations

import logging
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from retina_ray.errors import StorageError

Answer = TypeVar("Answer")

PATIENCE_S = 120.0
"""Seconds for which a storage that does not answer is asked again."""

PATIENCE_VARIABLE = "RETINA_RAY_STORAGE_PATIENCE_S"
"""Environment variable with another number of seconds; 0: nothing is asked twice."""

_FIRST_DELAY_S = 0.25
_LONGEST_DELAY_S = 4.0
_WORTH_SAYING_S = 3.0

_FINAL_KINDS = (
    FileNotFoundError,
    PermissionError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
)
_FINAL = re.compile(r"ACCESS_DENIED|NO_SUCH_KEY|RESOURCE_NOT_FOUND|HTTP status 4(?!08|29)\d\d")
_MISCONFIGURED = re.compile(
    r"NO_SUCH_BUCKET|Bucket '.*' not found|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|"
    r"UNRECOGNIZED_CLIENT|SIGNATURE_DOES_NOT_MATCH|MISSING_AUTHENTICATION_TOKEN"
)

_log = logging.getLogger(__name__)


def patience_s() -> float:
    """Seconds for which a storage that does not answer is asked again.

    Raises:
        StorageError: the environment variable is no number of seconds.
    """
    text = os.environ.get(PATIENCE_VARIABLE)
    if text is None:
        return PATIENCE_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise StorageError(f"{PATIENCE_VARIABLE}={text!r}: expected a number of seconds, 0 or more")
    return seconds


class Patience:
    """Asks one storage, again where it does not answer; shared by the threads of a process.

    A storage that was waited for in vain is not waited for again until it answers or as much time
    has passed: who cleans up after the error does not wait as long once more.

    Args:
        place: the storage, for messages, such as `s3://bucket`.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._down_since: float | None = None
        self._last_failure = -math.inf
        self._told = False

    def ask(self, question: Callable[[], Answer], uri: str) -> Answer:
        """Ask until there is an answer.

        Args:
            question: may be asked any number of times.
            uri: what it is about, for messages.

        Returns:
            The answer.

        Raises:
            StorageError: there was none to the last, or the storage does not know us or the bucket.
            OSError: the answer is that it cannot be had: it is not there, or not for us.
        """
        started: float | None = None
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                answer = question()
            except _FINAL_KINDS:
                self._answered()
                raise
            except OSError as error:
                if _MISCONFIGURED.search(str(error)):
                    raise StorageError(
                        f"{uri}: the storage refuses: {_brief(error)}; check the name of the "
                        "bucket, the credentials and the endpoint"
                    ) from error
                if _FINAL.search(str(error)):
                    self._answered()
                    raise
                now = time.monotonic()
                started = now if started is None else started
                left_s = self._failed(now, started, error, uri)
                # Not all at once: a storage that comes back has many who wait for it.
                time.sleep(min(delay_s * random.uniform(0.75, 1.0), left_s))
                delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
            else:
                self._answered()
                return answer

    def _failed(self, now: float, started: float, error: OSError, uri: str) -> float:
        """Note that there was no answer; returns the seconds that are left.

        Raises:
            StorageError: none are.
        """
        limit_s = patience_s()
        with self._lock:
            if self._down_since is None or now - self._last_failure > max(limit_s, 60):
                self._down_since, self._told = started, False
            self._last_failure = now
            waited_s = now - min(started, self._down_since)
            tell = not self._told and waited_s >= _WORTH_SAYING_S and waited_s < limit_s
            self._told |= tell
        if waited_s >= limit_s:
            raise StorageError(
                f"{uri}: the storage did not answer for {waited_s:.0f} s: {_brief(error)}; when it "
                "is back, give the same command again (or --resume, for a run): it goes on from "
                f"what is finished. To wait longer, set {PATIENCE_VARIABLE} (now {limit_s:g})"
            ) from error
        if tell:
            _log.warning(
                "%s does not answer (%s); it is asked again for up to %g s",
                self._place,
                _brief(error),
                limit_s,
            )
        return limit_s - waited_s

    def _answered(self) -> None:
        """Note that the storage is there."""
        if self._down_since is None:
            return
        with self._lock:
            since, told = self._down_since, self._told
            self._down_since, self._told = None, False
        if since is not None and told:
            gap_s = time.monotonic() - since
            _log.warning("%s answers again, after %.0f s", self._place, gap_s)


def _brief(error: OSError) -> str:
    """An error of the storage without the numbers of its requests."""
    return re.sub(r"\s*\(Request ID: [^)]*\)", "", str(error)).strip().rstrip(".")
