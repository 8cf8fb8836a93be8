"""What the scripts of this folder share on the terminal: progress, a summary, a clean error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table

from retina_ray.data.checks import BOX_FAULTS
from retina_ray.data.importers.convert import OnProgress
from retina_ray.data.schema import DataError, Fault
from retina_ray.data.shard_writer import delete_dataset
from retina_ray.data.shards import PreparedDataset

__all__ = ["prepare_splits"]

_EXIT_BAD_DATA = 2


Import = Callable[[OnProgress], PreparedDataset]
"""Writes one split and reports its progress."""


def prepare_splits(out: str, imports: Mapping[str, Import]) -> None:
    """Prepare the splits of a data set under one folder, all of them or none, and sum up.

    The faults of all splits are shown at once. When a split has faults, those that this call wrote
    are deleted again, so that the next attempt starts from a clean folder.

    Args:
        out: folder or URI; each split goes to `out/<split>`.
        imports: for each split, what writes it.

    Raises:
        typer.BadParameter: no split at all.
    """
    if not imports:
        raise typer.BadParameter("name at least one split")
    prepared: list[PreparedDataset] = []
    faults: list[Fault] = []
    for split, run in imports.items():
        try:
            with _progress(split) as on_progress:
                prepared.append(run(on_progress))
        except DataError as error:
            faults += error.faults
    if faults:
        for dataset in prepared:
            delete_dataset(dataset.uri)
        _exit_with(DataError(faults))
    _print_summary(out, prepared)


def _exit_with(error: DataError) -> NoReturn:
    """Show what is wrong, without a traceback, and exit with code 2."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"Nothing was written. {error}", markup=False, highlight=False)
    if {fault.kind for fault in error.faults} & BOX_FAULTS:
        hint = "Bad boxes can be left out (--on-bad-box drop) or mended (--on-bad-box clip)."
        console.print(hint, markup=False, highlight=False)
    sys.exit(_EXIT_BAD_DATA)


@contextmanager
def _progress(split: str) -> Iterator[OnProgress]:
    """A progress bar on a terminal, silence elsewhere."""
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(escape(split), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _print_summary(out: str, prepared: list[PreparedDataset]) -> None:
    """A table with a column for each split: images, boxes by class, what was changed."""
    table = Table(title=escape(out))
    table.add_column("")
    for dataset in prepared:
        table.add_column(escape(dataset.info.split), justify="right")
    rows: dict[str, list[object]] = {
        "images": [d.info.num_images for d in prepared],
        "boxes": [d.info.num_boxes for d in prepared],
        "crowd regions": [d.info.num_crowd for d in prepared],
    }
    for name in prepared[0].class_names:
        rows[f"boxes of {name}"] = [d.info.class_counts.get(name, 0) for d in prepared]
    for key in ("dropped_boxes", "clipped_boxes", "rounded_boxes", "dropped_images"):
        rows[key.replace("_", " ")] = [d.report.get(key, 0) for d in prepared]
    for name, values in rows.items():
        table.add_row(escape(name), *(str(value) for value in values))
    console = Console(soft_wrap=True)
    console.print(table)
    for dataset in prepared:
        for example in dataset.report.get("examples", []):
            console.print(f"{dataset.info.split}: {example}", markup=False, highlight=False)
        console.print(f"{dataset.info.split}: {dataset.uri}", markup=False, highlight=False)
