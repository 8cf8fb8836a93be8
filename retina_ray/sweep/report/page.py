"""The sweep report as one HTML file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from retina_ray.sweep.report.rows import TrialRow, average_precision, format_value

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2327; max-width: 1180px;
       margin: 2em auto; padding: 0 1.2em; }
h1 { font-size: 1.6em; margin-bottom: 0; } h2 { font-size: 1.15em; margin-top: 1.8em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .3em .7em; text-align: right; border-bottom: 1px solid #e3e6e8; }
th { border-bottom: 2px solid #9aa3ab; white-space: nowrap; }
td:nth-child(2), th:nth-child(2), td:last-child, th:last-child { text-align: left; }
td:last-child { min-width: 14em; }
tr.best { font-weight: 600; background: #fdf1e7; } tr.failed { color: #b2182b; }
tr.stopped td:last-child, tr.pending td:last-child { color: #6b5900; }
pre { background: #f3f5f6; padding: .7em 1em; overflow-x: auto; } img { max-width: 100%; }
.facts td { text-align: left; overflow-wrap: anywhere; } .notes { color: #444; }
"""


def render_page(
    *,
    title: str,
    summary: str,
    best: TrialRow | None,
    commands: Mapping[str, str | None],
    notes: Sequence[str],
    header: Sequence[str],
    lines: Sequence[tuple[str, Sequence[str]]],
    pictures: Sequence[Path],
) -> str:
    """Put the page together; everything that comes from outside is escaped.

    Args:
        title: the sweep's name.
        summary: one line under it.
        best: the best trial, if any has an AP.
        commands: what to do next, heading to shell command; null commands are left out.
        notes: what to know before believing the table.
        header: column heads.
        lines: (status, cells) of each trial, best first.
        pictures: PNG files, embedded.
    """
    parts = [f"<h1>{escape(title)}</h1><p>{escape(summary)}</p>"]
    if best is not None:
        parts.append(_best(best))
    for heading, command in commands.items():
        if command:
            parts.append(f"<h2>{escape(heading)}</h2><pre>{escape(command)}</pre>")
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    rows = []
    for number, (status, cells) in enumerate(lines):
        classes = f"{status} best" if number == 0 and best is not None else status
        body = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr class="{escape(classes)}">{body}</tr>')
    table = f"<table><tr>{head}</tr>{''.join(rows)}</table>"
    parts.append(f'<h2>Trials, best first</h2><div class="wide">{table}</div>')
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    parts.append(f'<ul class="notes">{items}</ul>')
    for picture in pictures:
        data = base64.b64encode(picture.read_bytes()).decode()
        name = escape(picture.stem.replace("_", " "))
        parts.append(f'<p><img alt="{name}" src="data:image/png;base64,{data}"></p>')
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )


def _best(row: TrialRow) -> str:
    """The best trial with its settings written out."""
    ap50 = row.metrics.get("AP50")
    figures = f"AP {100 * average_precision(row):.1f}%"
    figures += "" if ap50 is None else f", AP50 {100 * ap50:.1f}%"
    facts = {
        "result": f"{figures} at epoch {row.best_epoch} of {row.epochs_run} ({row.status})",
        "checkpoint": row.checkpoint or "none was kept",
        **{path: format_value(value, limit=400) for path, value in row.params.items()},
    }
    lines = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in facts.items())
    return f'<h2>Best trial: {escape(row.trial_id)}</h2><table class="facts">{lines}</table>'
