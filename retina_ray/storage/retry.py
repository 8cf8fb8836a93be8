"""Waiting for a storage that does not answer, and giving up on it with a clear error.

Networks and servers have gaps of some seconds, a run lasts for days: so whatever is asked of a
remote storage is asked again, until it answers or a limit of time is reached.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import tenacity

from retina_ray.errors import StorageError

T = TypeVar("T")

RETRY_S = 120.0
"""Seconds for which a storage that does not answer is asked again."""

RETRY_VARIABLE = "RETINA_RAY_STORAGE_RETRY_S"
"""Environment variable with another number of seconds; 0: nothing is asked twice."""

# Not all at once: a storage that comes back has many who wait for it.
_BACKOFF = tenacity.wait_random_exponential(multiplier=0.25, min=0.1, max=4)
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


def retry_limit_s() -> float:
    """Seconds for which a storage that does not answer is asked again.

    Raises:
        StorageError: the environment variable is no number of seconds.
    """
    text = os.environ.get(RETRY_VARIABLE)
    if text is None:
        return RETRY_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise StorageError(f"{RETRY_VARIABLE}={text!r}: expected a number of seconds, 0 or more")
    return seconds


class StorageRetry:
    """Asks one storage, again where it does not answer; shared by the threads of a process.

    A storage that was waited for in vain is not waited for again until it answers or as much time
    has passed: who cleans up after the error does not wait as long once more.

    Args:
        storage: its name for messages, such as `s3://bucket`.
    """

    def __init__(self, storage: str) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._down_since: float | None = None
        self._last_failure = -math.inf
        self._told = False

    def call(self, operation: Callable[[], T], uri: str) -> T:
        """Call until there is an answer, and return it.

        Args:
            operation: may be called any number of times.
            uri: what it is about, for messages.

        Raises:
            StorageError: there was no answer to the last, or the storage knows neither us nor the
                bucket.
            OSError: the answer is that it cannot be had: it is not there, or not for us.
        """
        limit_s = retry_limit_s()
        started, waited_s = math.inf, 0.0

        def failed(state: tenacity.RetryCallState) -> None:
            nonlocal started, waited_s
            now = time.monotonic()
            started = min(started, now)
            waited_s = now - self._failing_since(started, now, limit_s)

        def warn(state: tenacity.RetryCallState) -> None:
            if waited_s >= _WORTH_SAYING_S and state.outcome is not None:
                self._warn(state.outcome.exception(), limit_s)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass),
            after=failed,
            stop=lambda state: waited_s >= limit_s,
            wait=lambda state: min(_BACKOFF(state), limit_s - waited_s),
            before_sleep=warn,
            sleep=time.sleep,
        )
        try:
            answer = retrying(operation)
        except tenacity.RetryError as error:
            last = error.last_attempt.exception()
            raise StorageError(
                f"{uri}: the storage did not answer for {waited_s:.0f} s: {_brief(last)}; when it "
                "is back, give the same command again (or --resume, for a run): it goes on from "
                f"what is finished. To wait longer, set {RETRY_VARIABLE} (now {limit_s:g})"
            ) from last
        except OSError as error:
            if _MISCONFIGURED.search(str(error)):
                raise StorageError(
                    f"{uri}: the storage refuses: {_brief(error)}; check the name of the "
                    "bucket, the credentials and the endpoint"
                ) from error
            self._answered()
            raise
        self._answered()
        return answer

    def _failing_since(self, started: float, now: float, limit_s: float) -> float:
        """Note that there was no answer; returns since when there has been none."""
        with self._lock:
            if self._down_since is None or now - self._last_failure > max(limit_s, 60):
                self._down_since, self._told = started, False
            self._last_failure = now
            return min(started, self._down_since)

    def _warn(self, error: BaseException | None, limit_s: float) -> None:
        """Say once in each gap that the storage is waited for."""
        with self._lock:
            told, self._told = self._told, True
        if not told:
            _log.warning(
                "%s does not answer (%s); it is asked again for up to %g s",
                self._storage,
                _brief(error),
                limit_s,
            )

    def _answered(self) -> None:
        if self._down_since is None:
            return
        with self._lock:
            since, told = self._down_since, self._told
            self._down_since, self._told = None, False
        if since is not None and told:
            gap_s = time.monotonic() - since
            _log.warning("%s answers again, after %.0f s", self._storage, gap_s)


def _may_pass(error: BaseException) -> bool:
    """Whether asking again may help."""
    if not isinstance(error, OSError) or isinstance(error, _FINAL_KINDS):
        return False
    return not (_MISCONFIGURED.search(str(error)) or _FINAL.search(str(error)))


def _brief(error: BaseException | None) -> str:
    """An error of the storage without the numbers of its requests."""
    return re.sub(r"\s*\(Request ID: [^)]*\)", "", str(error)).strip().rstrip(".")
