"""A run's page: what was run, on which data, with which settings, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.reports.dataset.page import facts
from retina_ray.reports.run.record import RunRecord, changed_settings
from retina_ray.storage.uris import shown_uri

_MAX_BAD_IMAGES = 200
_LATEST_TIME = 2**32  # seconds since 1970: beyond it, a line is damaged
_ENDS = {
    "finished": "finished",
    "failed": "failed",
    "stopped": "stopped before its end",
    None: "still on, or cut off: its record has no end",
}


def run_facts(
    record: RunRecord, datasets: Mapping[str, PreparedDataset], predicted_at: int | None
) -> str:
    """How the run went, and the data that it saw.

    Args:
        record: of the run.
        datasets: its sets that could be opened, by `train` and `val`.
        predicted_at: step of the predictions that the page is made from; None: unknown, or none.
    """
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
    lines = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
        for name, value in rows.items()
        if value
    )
    failure = ""
    if record.failure:
        failure = f'<p class="warn">The run failed: {escape(record.failure)}</p>'
    return (
        f'<p class="soft">{escape(record.place)}</p>{failure}'
        f'<div class="wide"><table><tbody>{lines}</tbody></table></div>'
        f"{_data_facts(record, datasets)}"
    )


def problem_list(problems: Sequence[str]) -> str:
    """What is missing or damaged, each with what to do."""
    if not problems:
        return ""
    items = "".join(
        f"<li>{'<br>'.join(map(escape, problem.splitlines()))}</li>" for problem in problems
    )
    return f'<div class="problems"><b>Missing or damaged</b><ul>{items}</ul></div>'


def settings_table(record: RunRecord) -> str:
    """The settings that differ from the defaults."""
    changed = changed_settings(record.settings)
    if not record.settings:
        return "<p>The run's config.json is missing.</p>"
    if not changed:
        return "<p>All settings are the defaults.</p>"
    lines = "".join(
        f"<tr><th><code>{escape(path)}</code></th><td><code>{escape(_json(value))}</code></td>"
        f'<td class="soft"><code>{escape(_json(default))}</code></td></tr>'
        for path, value, default in changed
    )
    return (
        "<p>Those that differ from the defaults of this version; all of them stand in config.json, "
        "and <code>--recipe config.json</code> starts a run with them.</p>"
        '<div class="wide"><table><thead><tr><th>setting</th><th>of this run</th><th>default</th>'
        f"</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def bad_image_list(record: RunRecord) -> str:
    """The images that could not be decoded in training, with the reasons."""
    items = list(record.bad_images.items())
    lines = "".join(
        f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in items[:_MAX_BAD_IMAGES]
    )
    more = len(items) - _MAX_BAD_IMAGES
    rest = f"<li>and {more:,} more in bad_images.json</li>" if more > 0 else ""
    return (
        f"<p>{len(items):,} images could not be decoded, and others took their places. "
        "<code>retina-ray data check</code> finds all such images of a set.</p>"
        f"<details open><summary>Images and reasons</summary><ul>{lines}{rest}</ul></details>"
    )


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


def _data_facts(record: RunRecord, datasets: Mapping[str, PreparedDataset]) -> str:
    """Where the two sets lie and what they are; of one that cannot be opened, only where."""
    names = ("train", "val")
    infos = [datasets[name].info if name in datasets else None for name in names]
    places = [
        datasets[name].uri if name in datasets else record.run.get(f"{name}_uri") for name in names
    ]

    def of(field: str) -> list[object]:
        return [None if info is None else getattr(info, field) for info in infos]

    rows: dict[str, list[object]] = {
        "place": [shown_uri(str(place)) if place else None for place in places],
        "name": of("name"),
        "images": of("num_images"),
        "classes": [None if info is None else len(info.categories) for info in infos],
        "kind of boxes": of("box_type"),
        "fingerprint": [None if info is None else info.fingerprint[:12] for info in infos],
    }
    return facts(("training set", "validation set"), rows)


def _json(value: Any) -> str:
    """A value as `--set` takes it."""
    return value if isinstance(value, str) else json.dumps(value)
