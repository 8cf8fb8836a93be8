"""Signs that a worker or the whole run has to end soon, and how they reach the training loop.

In a worker: SIGTERM to its process, or Ray's notice that its node is drained (a spot node that is
taken away, a cluster that shrinks). In the driver: SIGTERM, as a stopped job gets it; it asks the
workers by a note in the run's folder, where anybody else may ask them too. The loop looks for signs
after each step, ends on all workers at once with a checkpoint, and the driver decides what follows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from types import FrameType

from retina_ray.ray_internals.train import WorkerCallback, drain_notice
from retina_ray.storage.uris import is_uri
from retina_ray.train.engine import distributed
from retina_ray.train.recovery.failures import Note

PREEMPTED = "preempted"
"""How the reason begins where a worker's place goes away: the run goes on elsewhere."""

TOLD = "told to end"
"""How the reason begins where the run as a whole shall end."""

STOP = "stop"
"""Name of the note that asks the workers of a run to end in order."""

GRACE_S = 120.0
"""How long a driver that got SIGTERM waits for its workers' checkpoint."""

_POLL_S, _REMOTE_POLL_S = 1.0, 10.0

_sigterm = threading.Event()  # of this process: a signal handler has no other place for it

logger = logging.getLogger(__name__)


class SigtermCallback(WorkerCallback):
    """Keeps SIGTERM from ending a worker's process before its checkpoint.

    Ray Train calls it in the main thread of each worker's process, where alone a handler can be
    set; training runs in another thread. A second signal ends the process at once.
    """

    def after_init_train_context(self) -> None:
        """Set the handler."""
        _sigterm.clear()
        before = signal.getsignal(signal.SIGTERM)

        def handle(number: int, frame: FrameType | None) -> None:
            if _sigterm.is_set() and callable(before):
                before(number, frame)
            _sigterm.set()

        signal.signal(signal.SIGTERM, handle)


class StopSigns:
    """What a worker of a run looks at after each step, while a `with` block lasts.

    Looking costs nothing: the run's folder is looked at by a thread of rank 0, now and then.
    """

    def __init__(self, run_uri: str) -> None:
        self._told: str | None = None
        self._closed = threading.Event()
        self._note = Note(run_uri, STOP)
        self._every_s = _REMOTE_POLL_S if is_uri(run_uri) else _POLL_S

    def __enter__(self) -> StopSigns:
        if distributed.rank() == 0:
            threading.Thread(target=self._poll, name="stop-signs", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def reason(self) -> str | None:
        """Why to end after this step; None to go on."""
        if self._told is not None:
            return f"{TOLD}: {self._told}"
        if _sigterm.is_set():
            return f"{PREEMPTED}: process {os.getpid()} on {socket.gethostname()} got SIGTERM"
        notice = drain_notice()
        return None if notice is None else f"{PREEMPTED}: {notice}"

    def _poll(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(Exception):  # a storage with a gap: the next look may succeed
                text = self._note.read()
                if text is not None:
                    self._told = text.strip() or f"the run's folder has a file '{STOP}'"
                    return
            self._closed.wait(self._every_s)


def as_ctrl_c() -> None:
    """Do what Ctrl-C does; from a handler of the main thread.

    A shell has what it starts in the background ignore Ctrl-C, and then nothing would happen.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


class EndOnSigterm:
    """While a `with` block lasts, SIGTERM to this process asks the run's workers to end in order.

    A second SIGTERM, or workers that do not end within `GRACE_S`, end the run as Ctrl-C does. In
    another thread than the main one, where no handler can be set, this does nothing.
    """

    def __init__(self, run_uri: str, *, grace_s: float = GRACE_S) -> None:
        """For the run at `run_uri`, whose workers get `grace_s` seconds."""
        self._note = Note(run_uri, STOP)
        self._grace_s = grace_s
        self._asked, self._left = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def asked(self) -> bool:
        """Whether the signal came."""
        return self._asked.is_set()

    def __enter__(self) -> EndOnSigterm:
        self._note.clear()  # of an earlier part of the run
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._handle)
            self._thread = threading.Thread(target=self._pass_on, name="sigterm", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            return
        signal.signal(signal.SIGTERM, self._before)
        self._left.set()
        if self.asked:
            self._thread.join(timeout=self._grace_s)
            self._note.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Only raise the flag: a handler may interrupt anything, a lock's holder too."""
        if self._asked.is_set():
            as_ctrl_c()
        self._asked.set()

    def _pass_on(self) -> None:
        while not self._asked.wait(0.2):
            if self._left.is_set():
                return
        logger.warning(
            "SIGTERM: the run ends after its present step, with a checkpoint; another one ends it "
            "at once"
        )
        try:
            self._note.write("SIGTERM to the driver")
        except Exception:
            logger.exception("the workers cannot be asked to end")
        else:
            if self._left.wait(self._grace_s):
                return
            logger.warning("the workers did not end within %g s", self._grace_s)
        # The second one: Ray Train ends the workers. A real signal, as only that ends a wait.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
