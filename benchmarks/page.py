"""What the benchmarks print, and the page of figures that they write."""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
import torchvision
from measure import load
from rich.console import Console
from rich.table import Table


class Page:
    """Prints figures as they come, and keeps them for a markdown file."""

    def __init__(self, question: str, *, device: torch.device | None, threads: int) -> None:
        """Print what is asked, and on what.

        Args:
            question: what the benchmark answers.
            device: where it computes; None: a question that is none of a GPU's.
            threads: of torch.
        """
        self._console = Console(width=max(110, Console().width))
        self._load = load()
        self._lacks_gpu = device is not None and device.type != "cuda"
        self._blocks = [f"# {question}", f"    {_command()}", _machine(device, threads)]
        self._console.print(f"[bold]{question}[/bold]")
        self._console.print(_machine(device, threads), highlight=False, markup=False)

    def text(self, sentence: str) -> None:
        """Say something beside the figures."""
        self._console.print(sentence, highlight=False, markup=False)
        self._blocks.append(sentence)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show rows of figures; the first column names the case."""
        table = Table(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        self._console.print(table)
        lines = [f"## {title}", "", _line(columns), _line(["---"] * len(columns))]
        self._blocks.append("\n".join([*lines, *(_line(row) for row in rows)]))

    def goal(self, what: str, value: float, bound: float, *, at_least: bool, unit: str) -> None:
        """Hold a figure against what it should be."""
        met = value >= bound if at_least else value <= bound
        wanted = "at least" if at_least else "at most"
        verdict = "met" if met else "missed"
        self.text(f"Goal: {what}: {wanted} {bound:g}{unit}. Here {value:.3g}{unit}: {verdict}.")

    def finish(self, out: Path | None) -> None:
        """Write the page, if one is asked for."""
        if out is None:
            return
        at = f"Load average of a minute at the start {self._load}, at the end {load()}."
        blocks = [*self._blocks, at]
        if self._lacks_gpu:
            blocks.append("Not measured on a GPU: `--device cuda` does so where there is one.")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("\n\n".join(blocks) + "\n")
        self._console.print(f"written: {out}")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _command() -> str:
    script = Path(sys.argv[0])
    return shlex.join(["python", f"{script.parent.name}/{script.name}", *sys.argv[1:]])


def _machine(device: torch.device | None, threads: int) -> str:
    """Versions and hardware."""
    parts = [
        date.today().isoformat(),
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
        f"torchvision {torchvision.__version__}",
        "detectron2 " + ("found" if importlib.util.find_spec("detectron2") else "not installed"),
        f"{_cpu_model()}, {os.cpu_count()} cores, {threads} threads used",
    ]
    if device is not None and device.type == "cuda":
        parts.append(f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}")
    return "; ".join(parts) + "."


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
