"""A run watched by a thread of its driver's process, which kills its worker where wanted."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retina_ray.config import ExperimentConfig
from retina_ray.train.run.resources import ResourceRequest
from retina_ray.train.run.trainer import fit
from retina_ray.train.run_files import METRICS
from retina_ray.train.spec import RunSpec
from retina_ray.train.tracking.metrics_file import read_metrics

MARK = "RETINA_RAY_SOAK"
"""Environment variable by which the processes of this soak are found."""

SAMPLE_S = 2.0


@dataclass
class Kill:
    """One SIGKILL, and how the run went on.

    Attributes:
        at_s: seconds after the run's start.
        step: last step in the record at that moment.
        at_wall: seconds since 1970.
        went_on: step that the next worker started from; None: no step came after.
        lost_s: seconds until the next step was in the record.
    """

    at_s: float
    step: int
    at_wall: float = field(default_factory=time.time)
    went_on: int | None = None
    lost_s: float = float("nan")


class Killer:
    """Says when to kill: at random moments that the seed decides."""

    def __init__(self, pause: tuple[float, float], seed: int) -> None:
        """Kill with pauses of so many minutes, least and most."""
        self._pause, self._random = pause, random.Random(seed)
        self.next_s = self._draw()

    def is_due(self, seconds: float) -> bool:
        """Whether the time of the next kill has come; then the one after it is drawn."""
        return seconds >= self.next_s

    def done(self, seconds: float) -> None:
        """Draw the next time."""
        self.next_s = seconds + self._draw()

    def _draw(self) -> float:
        return 60 * self._random.uniform(*self._pause)


@dataclass
class Watched:
    """A run with what was seen of it.

    Attributes:
        name: of the run.
        spec: of the run.
        kills: in the order of time.
        memory: (seconds, MiB) of the driver under None, and of each worker under its process id.
        seconds: from start to end.
    """

    name: str
    spec: RunSpec
    kills: list[Kill] = field(default_factory=list)
    memory: dict[int | None, list[tuple[float, float]]] = field(default_factory=dict)
    seconds: float = 0.0
    again: int = 0

    @classmethod
    def run(
        cls, folder: str, name: str, config: ExperimentConfig, *, killer: Killer | None
    ) -> Watched:
        """Train to the end, watched by a thread."""
        spec = RunSpec(
            config=config,
            train_uri=f"{folder}/data",
            val_uri=f"{folder}/data",
            run_uri=f"{folder}/{name}",
            name=name,
            run_id=name,
        )
        watched, over = cls(name, spec), threading.Event()
        watcher = threading.Thread(target=watched._watch, args=(over, killer), daemon=True)
        start = time.monotonic()
        watcher.start()
        fit(spec, ResourceRequest(num_workers=1, cpus_per_worker=1.0, use_gpu=False))
        watched.seconds = time.monotonic() - start
        over.set()
        watcher.join()
        return watched

    @property
    def records(self) -> list[dict[str, Any]]:
        """Lines of the training steps."""
        lines = read_metrics(Path(self.spec.run_uri, METRICS))
        return [line for line in lines if "train/loss" in line["metrics"]]

    @property
    def last_step(self) -> int:
        """Last step in the record."""
        return self.records[-1]["step"]

    @property
    def training_s(self) -> float:
        """Seconds between the end of the first epoch and that of the run."""
        ends = [line["time"] for line in self.records]
        return ends[-1] - ends[len(ends) // self.spec.config.train.epochs - 1]

    def _watch(self, over: threading.Event, killer: Killer | None) -> None:
        """Take samples, and kill when it is due and there is something to lose."""
        start, path = time.monotonic(), Path(self.spec.run_uri, METRICS)
        while not over.wait(SAMPLE_S):
            now, workers = time.monotonic() - start, list(worker_processes())
            for process in (None, *workers):
                mib = resident_mib(os.getpid() if process is None else process)
                if mib is not None:
                    self.memory.setdefault(process, []).append((now, mib))
            step = last_step(path)
            if self._went_on(now, step) and killer is not None:
                killer.done(now)
            if killer is None or not workers or step is None or not killer.is_due(now):
                continue
            if not self.kills or self.kills[-1].went_on is not None:
                with contextlib.suppress(ProcessLookupError):  # it has just come to its end
                    os.kill(workers[0], signal.SIGKILL)
                    self.kills.append(Kill(now, step))

    def _went_on(self, now: float, step: int | None) -> bool:
        """Whether the run now goes on after a kill: the record is cut back, and grows again."""
        if not self.kills or self.kills[-1].went_on is not None or step is None:
            return False
        kill = self.kills[-1]
        starts = [line["step"] for line in self.records if line["time"] > kill.at_wall]
        if starts:
            kill.went_on, kill.lost_s = starts[0] - 1, now - kill.at_s
            self.again += max(0, kill.step - starts[0] + 1)
        return bool(starts)


def own_processes() -> Iterator[tuple[int, str]]:
    """Yield id and command line of the living processes that carry this soak's mark."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid() and mark in (process / "environ").read_bytes():
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                if command:  # a zombie has none
                    yield int(process.name), command.decode(errors="replace")
        except OSError:
            continue


def worker_processes() -> Iterator[int]:
    """Yield the ids of the run's training processes."""
    return (process for process, command in own_processes() if "RayTrainWorker" in command)


def resident_mib(process: int) -> float | None:
    """Resident memory of a process but that of Ray's shared store; None where it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    parts = [fields[name] for name in ("RssAnon", "RssFile") if name in fields]
    return sum(int(part.split()[0]) for part in parts) / 2**10 if parts else None


def last_step(path: Path) -> int | None:
    """Last step in a record that is being written; None before the first. Reads its end alone."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 2**14))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError):
            return json.loads(line)["step"]
    return None
