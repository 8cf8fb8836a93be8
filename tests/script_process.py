"""Scripts of `experiments/`, in this process or as one of their own that can be stopped."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import typer
from builders import ROOT
from typer.testing import CliRunner


def run_script(script, *options):
    """Run a script in this process; the tests' `experiments/` must be on the path."""
    path = ROOT / "experiments" / f"{script}.py"
    spec = importlib.util.spec_from_file_location(f"script_{script}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app = typer.Typer(add_completion=False)
    app.command()(module.main)
    result = CliRunner().invoke(app, [str(option) for option in options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def small_run_options(data, folder, name, **more):
    """Options of a script for a tiny model on images of 64 px: 4 epochs of 2 images a step."""
    settings = {
        "data.synthetic": "null",
        "data.train": data,
        "data.val": data,
        "model.anchors.sizes": "[12, 24, 48, 96]",
        "model.fpn_channels": 32,
        "input.train_sizes_px": "[64]",
        "input.train_max_size_px": 64,
        "input.eval_size_px": 64,
        "input.eval_max_size_px": 64,
        "schedule.warmup_steps": 2,
        "train.epochs": 4,
        "train.batch_size": 2,
        "train.log_every_steps": 1,
        "tracking.wandb": "disabled",
        **more,
    }
    options = ["--name", name, "--storage", folder]
    for path, value in settings.items():
        options += ["--set", f"{path}={value}"]
    return options


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
