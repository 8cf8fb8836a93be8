"""SIGTERM to a sweep (a job that is stopped, a pod that is taken away): it ends as after Ctrl-C."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from retina_ray.train.errors import RunTerminatedError
from retina_ray.train.recovery.preemption import as_ctrl_c


class SigtermAsCtrlC:
    """While a `with` block lasts, SIGTERM to this process does what Ctrl-C does, and is remembered.

    Ray Tune answers Ctrl-C by ending the trials and saving the sweep, and a second one by leaving
    at once. Ray itself answers SIGTERM by leaving at once, so this comes after `ray.init`. In
    another thread than the main one, where no handler can be set, it does nothing.

    Attributes:
        came: whether the signal came.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> SigtermAsCtrlC:
        if threading.current_thread() is threading.main_thread():
            # Tune leaves its handler of Ctrl-C behind where none came.
            self._before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
            signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.came and isinstance(error, KeyboardInterrupt):
            raise RunTerminatedError(
                "SIGTERM, before the sweep could end in order: there is no report of it, and "
                "--resume goes on from what was saved"
            ) from None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        as_ctrl_c()
