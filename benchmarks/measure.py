"""How the benchmarks measure: in turn, in CPU seconds, each peak of memory in a process of its own.

A figure of one run is worth little on a machine that does other things as well. So the contestants
of a comparison take turns in one process, each round giving one ratio, and what is reported is the
median of the ratios with the smallest and the largest. On a CPU the clock is `time.process_time`:
the seconds of all threads of this process. Where other programs take the cores, several threads
wait for each other by spinning, which counts: measure on a quiet machine, or with one thread.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

MIB = 2**20

ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Of torch on a CPU.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="Small cases, to see that it runs.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="FILE.md", help="Also write a page of the figures.")
]


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of some figures."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of the values."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def set_up(device: str, threads: int) -> torch.device:
    """Apply the options, and say early where the device is missing."""
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"expected cpu or cuda, got {device!r}", param_hint="--device")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("this torch finds no CUDA device", param_hint="--device")
    torch.set_num_threads(threads)
    return torch.device(device)


def seconds(action: Callable[[], object], device: torch.device, *, repeats: int = 1) -> float:
    """Time of one call: CPU seconds of all threads, or seconds between events on the GPU.

    Args:
        action: what to call.
        device: where it computes.
        repeats: calls in a row, of which the mean is taken; where a call launches kernels for less
            time than the clock resolves, or the next call may be launched while one still runs.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        started = torch.cuda.Event(enable_timing=True)
        ended = torch.cuda.Event(enable_timing=True)
        started.record()
        for _ in range(repeats):
            action()
        ended.record()
        torch.cuda.synchronize(device)
        return started.elapsed_time(ended) / 1000 / repeats
    begin = time.process_time()
    for _ in range(repeats):
        action()
    return (time.process_time() - begin) / repeats


def in_turn(
    contestants: dict[str, Callable[[], object]],
    *,
    rounds: int,
    device: torch.device,
    repeats: int = 1,
) -> dict[str, list[float]]:
    """Times of each contestant, one a round; a round before them warms up.

    Every round begins with another contestant, so that none is always the first after the same.
    """
    names = list(contestants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            gc.collect()
            time_s = seconds(contestants[name], device, repeats=repeats)
            if number:
                times[name].append(time_s)
    return times


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """How many times as long theirs took, round by round."""
    return Spread.of([a / b for a, b in zip(theirs, ours, strict=True)])


def peak_mib(build: Callable[..., Callable[[], object]], *arguments: object, threads: int) -> float:
    """Largest memory that an action takes beyond what is there before it, in MiB.

    A process of its own builds the inputs and warms up (in `build`), then runs the action once.
    On a CPU the figure is the peak of the resident memory during the action less the resident
    memory before it; where the kernel does not let the peak be reset, less the peak before it. On
    a GPU it is the peak of what torch has allocated, less what it had before.

    Args:
        build: a function at the top of a module; called with the arguments, it returns the action.
        arguments: what `build` is called with; the first one is the device, "cpu" or "cuda".
        threads: of torch.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_peak_in_this_process, build, arguments, threads).result()


def _peak_in_this_process(
    build: Callable[..., Callable[[], object]], arguments: tuple[object, ...], threads: int
) -> float:
    torch.set_num_threads(threads)
    action = build(*arguments)
    gc.collect()
    if arguments[0] == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    _return_freed_memory()
    before_kib = _reset_peak_kib()
    action()
    return (_peak_kib() - before_kib) / 1024


def _return_freed_memory() -> None:
    """Let glibc give back what the warm-up freed, or the action would use it and seem to need less.

    Other C libraries have no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _reset_peak_kib() -> float:
    """Set the peak back to what is resident now, where Linux lets it be; returns it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    return _peak_kib()


def _peak_kib() -> float:
    """Peak of the resident memory.

    Linux says it in VmHWM. Its `ru_maxrss` would not do: a new process inherits its parent's.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1024 if sys.platform == "darwin" else float(peak)


def load() -> str:
    """The load average of the last minute."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
