"""What was run, on which data, with which settings, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.reports.run.record import RunRecord, changed_settings
from retina_ray.storage.uris import shown_uri

_LATEST_TIME = 2**32  # seconds since 1970: beyond it, a line is damaged
_ENDS = {
    "finished": "finished",
    "failed": "failed",
    "stopped": "stopped before its end",
    None: "still on, or cut off: its record has no end",
}


def run_facts(record: RunRecord, predicted_at: int | None) -> dict[str, list[object]]:
    """How the run went; what is not known is left out, as the step of its predictions."""
    rows = {
        "end": _end(record),
        "steps": _steps(record),
        "time": _time(record),
        "best evaluation": _best(record),
        "predictions": None if predicted_at is None else f"of step {predicted_at:,}",
        "weights from": record.run.get("init_from"),
        "sweep": record.run.get("group"),
        "versions": _versions(record),
        "W&B id": record.run.get("run_id"),
    }
    return {name: [str(value)] for name, value in rows.items() if value}


def data_facts(
    record: RunRecord, datasets: Mapping[str, PreparedDataset]
) -> dict[str, list[object]]:
    """Where the two sets lie and what they are; of one that cannot be opened, only where."""
    names = ("train", "val")
    infos = [datasets[name].info if name in datasets else None for name in names]
    places = [
        datasets[name].uri if name in datasets else record.run.get(f"{name}_uri") for name in names
    ]

    def of(field: str) -> list[object]:
        return [None if info is None else getattr(info, field) for info in infos]

    return {
        "place": [shown_uri(str(place)) if place else None for place in places],
        "name": of("name"),
        "images": of("num_images"),
        "classes": [None if info is None else len(info.categories) for info in infos],
        "kind of boxes": of("box_type"),
        "fingerprint": [None if info is None else info.fingerprint[:12] for info in infos],
    }


def settings_table(record: RunRecord) -> list[tuple[str, str, str]]:
    """Path, value and default of each setting that is not the default, as `--set` takes them."""
    return [
        (path, _as_set(value), _as_set(default))
        for path, value, default in changed_settings(record.settings)
    ]


def _as_set(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _end(record: RunRecord) -> str:
    if not record.lines:
        return "nothing was logged yet"
    return _ENDS.get(record.status, str(record.status))


def _steps(record: RunRecord) -> str | None:
    if not record.lines:
        return None
    steps, epochs = record.lines[-1]["step"], record.series("train/epoch")[1]
    planned = record.setting("train.epochs")
    done = f", {epochs[-1]:.3g} of {planned} epochs" if len(epochs) else ""
    saved = f", last checkpoint at {record.last_step:,}" if record.last_step is not None else ""
    return f"{steps:,}{done}{saved}"


def _time(record: RunRecord) -> str | None:
    times = [line["time"] for line in record.lines if isinstance(line.get("time"), (int, float))]
    times = [time for time in times if 0 < time < _LATEST_TIME]
    if not times:
        return None
    start = datetime.fromtimestamp(times[0]).strftime("%Y-%m-%d %H:%M")
    seconds = times[-1] - times[0]
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    length = f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds % 60)} s"
    return f"first line {start}, {length} to the last one"


def _best(record: RunRecord) -> str:
    steps, values = record.series("val/AP")
    if not len(values):
        return "none yet"
    best = int(values.argmax())
    rounds = f"{len(values)} evaluation{'s' * (len(values) != 1)}"
    return f"AP {100 * values[best]:.1f} % at step {steps[best]:,.0f}, of {rounds}"


def _versions(record: RunRecord) -> str | None:
    versions = record.run.get("versions")
    if not isinstance(versions, Mapping):
        return None
    return ", ".join(f"{name} {version}" for name, version in versions.items())
