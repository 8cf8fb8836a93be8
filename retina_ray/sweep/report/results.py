"""The results of a sweep as files: JSON that holds everything, CSV for a spreadsheet."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retina_ray.sweep.report.rows import TrialRow, rank, swept_paths

# JSON has no words for these; as text they are told from numbers, and from what is missing.
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def write_json(path: Path, rows: Sequence[TrialRow], *, sweep_name: str, **facts: Any) -> None:
    """Write all of every trial, best first, and facts of the sweep beside them."""
    content = {
        "sweep": sweep_name,
        **facts,
        "trials": [dataclasses.asdict(row) for row in rank(rows)],
    }
    path.write_text(json.dumps(_encode(content), indent=1, allow_nan=False), encoding="utf-8")


def read_results(path: str | Path) -> list[TrialRow]:
    """Read the trials back from `results.json`, as they were (lists of settings as tuples).

    Raises:
        ValueError: the file is not one that a report wrote.
    """
    fields = {f.name for f in dataclasses.fields(TrialRow)}
    try:
        trials = json.loads(Path(path).read_text(encoding="utf-8"))["trials"]
        return [
            TrialRow(
                **{
                    key: _READERS.get(key, lambda plain: plain)(value)
                    for key, value in trial.items()
                    if key in fields
                }
            )
            for trial in trials
        ]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not the results.json of a sweep's report: {type(error).__name__}: {error}"
        ) from error


def write_csv(path: Path, rows: Sequence[TrialRow]) -> None:
    """Write a line for each trial, best first: outcome, all metrics, then each swept setting."""
    paths = swept_paths(rows)
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    outcome = ["trial_id", "status", "reason", "best_epoch", "epochs_run", "time_s", "seed"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["rank", *outcome, *metrics, *paths, "checkpoint"])
        for number, row in enumerate(rank(rows), start=1):
            writer.writerow(
                [
                    number,
                    *(getattr(row, name) for name in outcome),
                    *(row.metrics.get(name, "") for name in metrics),
                    *(_cell(row.params.get(path)) for path in paths),
                    row.checkpoint or "",
                ]
            )


def _cell(value: Any) -> Any:
    """Numbers and text as they are, the rest as JSON."""
    if value is None:
        return ""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return value
    return json.dumps(_encode(value))


def _encode(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _encode(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, (str, int, float)):
        return value
    return _encode(value.item()) if hasattr(value, "item") else str(value)


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _decode(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_decode(entry) for entry in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(entry) for entry in value)
    return value


_READERS = {"params": _tuples, "metrics": _decode, "history": _decode, "time_s": _decode}
