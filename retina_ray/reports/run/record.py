"""A run's folder read from the disk: what was run, what it logged, and how it ended.

A folder may belong to a run that is still on, that was interrupted, or that never came to an
evaluation; what is missing or damaged is told and left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retina_ray.config import ExperimentConfig
from retina_ray.errors import DataError
from retina_ray.overrides import flatten
from retina_ray.train.run_files import (
    BAD_IMAGES,
    CHECKPOINT_INDEX,
    CHECKPOINTS,
    CONFIG,
    FAILURE,
    METRICS,
    RUN,
)
from retina_ray.train.tracking.metrics_file import parse_metrics

_MAX_NAMED = 5


@dataclass(frozen=True, eq=False)
class RunRecord:
    """What lies in a run's folder.

    Attributes:
        place: what to call the folder.
        run: content of `run.json`: name, data sets, id.
        settings: content of `config.json`.
        lines: of `metrics.jsonl`, by step.
        best_step: step of the checkpoint with the best AP; None before the first.
        last_step: step of the last checkpoint; None before the first.
        bad_images: reason why an image could not be decoded, by file name and set.
        failure: why the run failed, if it did.
        problems: sentences about what is missing or damaged.
    """

    folder: Path
    place: str
    run: Mapping[str, Any]
    settings: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]] = ()
    best_step: int | None = None
    last_step: int | None = None
    bad_images: Mapping[str, str] = field(default_factory=dict)
    failure: str | None = None
    problems: Sequence[str] = ()

    @property
    def name(self) -> str:
        """What people call the run."""
        return str(self.run.get("name") or self.place.rstrip("/").rpartition("/")[2])

    def setting(self, path: str) -> Any:
        """A setting by its dotted path; the default where the stored config does not have it."""
        return {**_defaults(), **flatten(self.settings)}[path]

    @cached_property
    def keys(self) -> list[str]:
        """Keys of all metrics that were logged, in the order of their first appearance."""
        return list(dict.fromkeys(key for line in self.lines for key in line.get("metrics", ())))

    def series(self, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Steps and values of a metric where it was logged and finite."""
        points = [
            (line["step"], line["metrics"][key])
            for line in self.lines
            if _is_number(line.get("metrics", {}).get(key))
        ]
        steps, values = np.array(points, np.float64).reshape(-1, 2).T
        return steps, values

    @property
    def status(self) -> str | None:
        """How the last part of the run ended; None where it was cut off, or is still on."""
        return self.lines[-1].get("status") if self.lines else None

    def evaluation(self, step: int | None = None) -> tuple[int, dict[str, float]] | None:
        """Step and `val/` metrics of an evaluation: the one at `step`, or the last one."""
        for line in reversed(self.lines):
            metrics = line.get("metrics", {})
            if "val/AP" in metrics and step in (None, line["step"]):
                return line["step"], {
                    key: float(value) if _is_number(value) else math.nan
                    for key, value in metrics.items()
                    if key.startswith("val/")
                }
        return None


def read_run(folder: Path, shown_as: str | None = None) -> RunRecord:
    """Read the folder of a run; `shown_as`: what to call it, None: by its path.

    Raises:
        DataError: there is no run.
    """
    place = shown_as or str(folder)
    if not any((folder / name).is_file() for name in (CONFIG, RUN)):
        found = f"holds neither {CONFIG} nor {RUN}" if folder.is_dir() else "no such folder"
        raise DataError(
            f"{place}: {found}, so there is no run; expected the folder of a run, STORAGE/NAME of "
            "experiments/train.py"
        )
    problems: list[str] = []
    lines = _metrics(folder / METRICS, problems)
    index = _object(folder / CHECKPOINTS / CHECKPOINT_INDEX, problems, needed=False)
    failure = folder / FAILURE
    return RunRecord(
        folder=folder,
        place=place,
        run=_object(folder / RUN, problems, needed=True),
        settings=_object(folder / CONFIG, problems, needed=True),
        lines=lines,
        best_step=_step_of(index, "best"),
        last_step=_step_of(index, "last"),
        bad_images={
            str(name): str(reason)
            for name, reason in _object(folder / BAD_IMAGES, problems, needed=False).items()
        },
        failure=failure.read_text(errors="replace").strip() if failure.is_file() else None,
        problems=problems,
    )


def changed_settings(settings: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The settings of a stored config that are not the defaults.

    Returns:
        Dotted path, value and default of each; a default of None also where this version has no
        such setting.
    """
    defaults = _defaults()
    return [
        (path, value, defaults.get(path))
        for path, value in flatten(settings).items()
        if path not in defaults or defaults[path] != value
    ]


def _defaults() -> dict[str, Any]:
    return flatten(ExperimentConfig().model_dump(mode="json"))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _object(path: Path, problems: list[str], *, needed: bool) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if needed:
            problems.append(f"{path.name} is missing: what it says of the run is left out.")
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({error}): what it says is left out.")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name} holds no JSON object: what it says is left out.")
        return {}
    return content


def _metrics(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The lines of a metrics file; damaged ones are named."""
    try:
        lines, damaged = parse_metrics(path.read_bytes())
    except OSError as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        problems.append(f"{path.name} {why}: the run logged nothing, or was moved without it.")
        return []
    if damaged:
        named = ", ".join(map(str, damaged[:_MAX_NAMED]))
        more = f" and {len(damaged) - _MAX_NAMED} more" if len(damaged) > _MAX_NAMED else ""
        problems.append(
            f"{path.name}: {len(damaged)} of {len(lines) + len(damaged)} lines are damaged and "
            f"left out (line {named}{more}). A crash may cut the last one off; "
            "others point to a fault of the disk."
        )
    return lines


def _step_of(index: Mapping[str, Any], which: str) -> int | None:
    """The step of the best or the last checkpoint: by itself, or in the name `step-00000120`."""
    step = index.get(f"{which}_step")
    if isinstance(step, int):
        return step
    number = str(index.get(which) or "").rpartition("-")[2]
    return int(number) if number.isdigit() else None
