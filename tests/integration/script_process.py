"""A script of `experiments/` as a process of its own, for tests that stop it as a user would."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

from builders import ROOT


class Script:
    """A script of `experiments/` in a process group of its own, as a terminal runs it."""

    def __init__(self, *command):
        self.mark = uuid.uuid4().hex
        environment = os.environ | {"RETINA_RAY_TEST": self.mark, "OMP_NUM_THREADS": "1"}
        environment.pop("RAY_ADDRESS", None)
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.lines = []
        self.errors = []
        self._threads = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in (
                (self.process.stdout, self.lines),
                (self.process.stderr, self.errors),
            )
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _read(stream, lines):
        for line in stream:
            lines.append(line.rstrip())

    def wait_for(self, pattern, seconds=300):
        """Wait until a line of the output matches."""
        end = time.monotonic() + seconds
        while not any(re.search(pattern, line) for line in self.lines):
            assert self.process.poll() is None, f"ended without {pattern!r}:\n{self.output}"
            assert time.monotonic() < end, f"no {pattern!r}:\n{self.output}"
            time.sleep(0.1)

    def interrupt(self):
        """Ctrl-C: the signal goes to every process of the terminal."""
        os.killpg(self.process.pid, signal.SIGINT)

    def terminate(self):
        """SIGTERM to the script alone, as a stopped job gets it."""
        self.process.send_signal(signal.SIGTERM)

    def end(self, seconds):
        """Wait for the end; returns the exit code."""
        code = self.process.wait(timeout=seconds)
        for thread in self._threads:
            thread.join(timeout=10)
        return code

    @property
    def output(self):
        return "\n".join([*self.lines, "--- stderr", *self.errors])

    def left_behind(self, seconds=20):
        """Command lines of processes that it started and that are still there."""
        end = time.monotonic() + seconds
        while (left := self._alive()) and time.monotonic() < end:
            time.sleep(0.5)
        return left

    def _alive(self):
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (process / "environ").read_bytes():
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                    if command:  # a zombie has none
                        found.append(command.decode(errors="replace"))
            except OSError:
                continue
        return found
