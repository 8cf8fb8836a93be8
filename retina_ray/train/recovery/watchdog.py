"""A worker that hangs is ended, so that Ray Train restarts the run from its last checkpoint.

A deadlock, a collective whose partner is gone, a file system that does not answer: nothing fails,
and nothing goes on. The watchdog says where every thread of the process stands, then ends it.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TypeVar

from retina_ray.storage.files import write_text

HUNG = "hung"
"""Folder of a run that holds the stacks of workers that hung."""

START_S = 600.0
"""At least this long the first step may take: the stream starts, models are compiled."""

EXIT_CODE = 70
_WRITE_S = 15.0  # for the stacks in the run's folder, whose storage may be what hangs

Batch = TypeVar("Batch")

logger = logging.getLogger(__name__)


class Watchdog:
    """Ends this process when no step is made for too long; on guard while a `with` block lasts."""

    def __init__(self, run_uri: str, *, rank: int, timeout_s: float) -> None:
        """Guard a worker of the run whose folder gets the stacks.

        `timeout_s` is how long a training step or a validation batch may take, with all that comes
        before the next one (waiting for data, a validation, a checkpoint).
        """
        self._run_uri, self._rank, self._timeout_s = run_uri, rank, timeout_s
        self._allowed_s = max(timeout_s, START_S)
        self._idle_s = 0.0
        self._num_batches = 0
        self._closed = threading.Event()

    def __enter__(self) -> Watchdog:
        threading.Thread(target=self._guard, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass batches through; whoever asks for the next one is done with the one before."""
        for batch in batches:
            self._idle_s = 0.0
            yield batch
            self._num_batches += 1
            self._idle_s, self._allowed_s = 0.0, self._timeout_s
        self._closed.set()  # what is left are the run's records, which have deadlines of their own

    def _guard(self) -> None:
        tick_s = min(1.0, self._timeout_s / 4)
        while not self._closed.wait(tick_s):
            # Counted in ticks: the time for which the whole process stood still (a suspended
            # machine, a debugger) is not the worker's.
            self._idle_s += tick_s
            if self._idle_s >= self._allowed_s and not self._closed.is_set():
                self._end()

    def _end(self) -> None:
        who = f"worker {self._rank} (process {os.getpid()} on {socket.gethostname()})"
        head = (
            f"{who} made no step for {self._allowed_s:g} s, after {self._num_batches} batches: "
            "it is taken for hung, and ended (train.stall_timeout_s)"
        )
        text = f"{head}\n\n{_stacks()}"
        sys.stderr.write(text)
        sys.stderr.flush()
        logger.error("%s", head)
        name = f"{datetime.now():%Y%m%d-%H%M%S}-rank{self._rank}.txt"
        writer = threading.Thread(
            target=write_text, args=(f"{self._run_uri}/{HUNG}/{name}", text), daemon=True
        )
        writer.start()
        writer.join(timeout=_WRITE_S)
        os._exit(EXIT_CODE)  # nothing else ends a thread that hangs


def _stacks() -> str:
    """Where every thread of this process stands."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
