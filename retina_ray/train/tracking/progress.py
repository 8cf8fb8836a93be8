"""Progress of a run, read from its `metrics.jsonl` by the process that the user looks at.

The workers may be on other machines; the file is where they all are seen. On a terminal a live line
(rich), elsewhere one plain line for each validation and at most one a minute between them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from retina_ray.train.tracking.metrics_file import MetricsFollower

POLL_S = 0.5
PLAIN_LINE_EVERY_S = 60.0


class ProgressDisplay:
    """Follows a run's metrics while a `with` block lasts."""

    def __init__(self, metrics_path: Path, *, num_epochs: int, console: Console) -> None:
        """Follow `metrics_path` (it need not exist yet) for a run of `num_epochs`."""
        self._follower = MetricsFollower(metrics_path)
        self._num_epochs = num_epochs
        self._console = console
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._latest: dict[str, float] = {}
        self._printed = 0.0

    def __enter__(self) -> ProgressDisplay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _follow(self) -> None:
        if not self._console.is_terminal:
            while not self._stop.wait(POLL_S):
                for record in self._new_records():
                    self._plain(record)
            for record in self._new_records():
                self._plain(record)
            return
        with Progress(
            TextColumn("epoch"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
        ) as progress:
            task = progress.add_task("run", total=self._num_epochs, metrics="starting")
            while not self._stop.wait(POLL_S):
                self._update(progress, task)
            self._update(progress, task)

    def _update(self, progress: Progress, task: TaskID) -> None:
        for record in self._new_records():
            if record.get("train/epoch", 0.0) < self._latest.get("train/epoch", 0.0):
                record = {k: v for k, v in record.items() if k != "train/epoch"}  # came in later
            self._latest.update(record)
        if self._latest:
            epoch = self._latest.get("train/epoch", 0.0)
            progress.update(task, completed=round(epoch, 1), metrics=_shown(self._latest))

    def _plain(self, record: dict[str, float]) -> None:
        self._latest.update(record)
        due = time.monotonic() - self._printed >= PLAIN_LINE_EVERY_S
        if "val/AP" in record or due:
            self._printed = time.monotonic()
            epoch = self._latest.get("train/epoch", 0.0)
            self._console.print(
                f"epoch {epoch:.1f}/{self._num_epochs}  {_shown(self._latest)}",
                highlight=False,
                soft_wrap=True,
            )

    def _new_records(self) -> Iterator[dict[str, float]]:
        for line in self._follower.new_lines():
            yield {key: value for key, value in line["metrics"].items() if value is not None}


def _shown(latest: dict[str, float]) -> str:
    shown = [
        ("loss", "train/loss", ".3f"),
        ("cls", "train/loss_cls", ".3f"),
        ("box", "train/loss_box_reg", ".3f"),
        ("lr", "train/lr", ".2e"),
        ("img/s", "perf/images_per_s", ".1f"),
        ("AP", "val/AP", ".3f"),
        ("AP50", "val/AP50", ".3f"),
    ]
    return "  ".join(f"{name} {latest[key]:{form}}" for name, key, form in shown if key in latest)
