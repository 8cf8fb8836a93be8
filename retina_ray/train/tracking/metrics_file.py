"""The metrics of a run as lines of JSON: the record that needs no service and no network.

Each line is an object `{"step": int, "time": float, "metrics": {key: number or null}}`, with the
time in seconds since 1970. JSON has no NaN, so what is not finite is written as null. A line that
came in later than its step, as those of an asynchronous validation do, also says `at`
which step. The line that ends a run (or a part of it) has no metrics but a `status`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from retina_ray.storage.files import read_bytes, write_text
from retina_ray.storage.uris import shown_uri

_log = logging.getLogger(__name__)


class MetricsFile:
    """Appends to a file of metrics, and continues the one of an interrupted run."""

    def __init__(self, path: Path, *, resume: bool = False, resume_step: int | None = None):
        """Open the file; its folder is made.

        With `resume`, what is there is continued, but for lines that came in after `resume_step`:
        the run goes on from its checkpoint, and does those steps again. Otherwise a file that is
        there is kept under the name `<stem>.<number><suffix>`, and a new one started.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if resume:
                _cut(path, resume_step)
            else:
                _set_aside(path)
        self.path = path
        self._file = path.open("a", encoding="utf-8")

    def write(
        self,
        step: int,
        metrics: Mapping[str, float],
        *,
        at: int | None = None,
        status: str | None = None,
    ) -> None:
        """Append a line; it is on its way to the disk when this returns."""
        line: dict[str, Any] = {
            "step": step,
            "time": round(time.time(), 3),
            "metrics": {key: _json_number(value) for key, value in metrics.items()},
        }
        if at is not None:
            line["at"] = at
        if status is not None:
            line["status"] = status
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; twice is fine."""
        self._file.close()


class MetricsFollower:
    """Reads the lines that are added to a local metrics file, which need not exist, from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def new_lines(self) -> list[dict[str, Any]]:
        """Whole lines that were written since the last call."""
        if not self._path.exists():
            return []
        # A resumed run cuts off what came after its checkpoint; what is left was read before.
        self._offset = min(self._offset, self._path.stat().st_size)
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return parse_metrics(whole)[0]


def read_metrics(uri: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the lines of a metrics file; none where there is no file.

    One that was cut off by a crash is left out, which is logged.
    """
    try:
        lines, damaged = parse_metrics(read_bytes(uri))
    except FileNotFoundError:
        return []
    if damaged:
        _log.warning("%s: left out %d lines that are not whole", shown_uri(uri), len(damaged))
    return lines


def parse_metrics(content: bytes) -> tuple[list[dict[str, Any]], list[int]]:
    """Read a file's content: the lines that are whole, and the numbers of the others, from 1."""
    lines, damaged = [], []
    for number, text in enumerate(content.splitlines(), start=1):
        line = None
        with contextlib.suppress(ValueError):
            line = json.loads(text)
        if _is_line(line):
            lines.append(line)
        else:
            damaged.append(number)
    return lines, damaged


def _is_line(line: Any) -> TypeGuard[dict[str, Any]]:
    if not isinstance(line, dict) or not isinstance(line.get("metrics"), dict):
        return False
    step = line.get("step")
    return isinstance(step, int) and not isinstance(step, bool)


def _cut(path: Path, last_step: int | None) -> None:
    """Drop torn lines and those after a step; the file is replaced in one go."""
    lines = read_metrics(path)
    kept = [
        line for line in lines if last_step is None or line.get("at", line["step"]) <= last_step
    ]
    if len(kept) < len(lines):
        _log.info("%s: dropped %d lines after step %s", path, len(lines) - len(kept), last_step)
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _set_aside(path: Path) -> None:
    number = 1
    while (kept := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(kept)


def _json_number(value: float) -> int | float | None:
    """A number as JSON can hold it; tensors and NumPy scalars of one element are numbers too."""
    number = value if type(value) is int else float(value)
    return number if math.isfinite(number) else None
