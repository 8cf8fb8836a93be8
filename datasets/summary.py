"""What the scripts of this folder share on the terminal: progress, a summary, a clean error."""

from __future__ import annotations

import logging
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
from retina_ray.data.dataset_info import INFO_FILE, join_uri, open_filesystem, shown_uri
from retina_ray.data.importers.convert import OnProgress
from retina_ray.data.patience import StorageError
from retina_ray.data.schema import DataError, Fault
from retina_ray.data.shard_writer import delete_dataset
from retina_ray.data.shards import PreparedDataset

__all__ = ["prepare_splits"]

_EXIT_BAD_DATA = 2
_EXIT_STOPPED = 1


Import = Callable[[OnProgress], PreparedDataset]
"""Writes one split and reports its progress."""


def prepare_splits(out: str, imports: Mapping[str, Import]) -> None:
    """Prepare the splits of a data set under one folder, all of them or none, and sum up.

    The faults of all splits are shown at once. When a split has faults, those that this call wrote
    are deleted again, so that the next attempt starts from a clean folder. Splits that were there
    already, of the same data with the same options, are left as they are.

    Args:
        out: folder or URI; each split goes to `out/<split>`.
        imports: for each split, what writes it.

    Raises:
        typer.BadParameter: no split at all.
    """
    if not imports:
        raise typer.BadParameter("name at least one split")
    _show_notes()
    prepared: list[PreparedDataset] = []
    written: list[PreparedDataset] = []
    faults: list[Fault] = []
    for split, run in imports.items():
        try:
            before = _written_at(join_uri(out, split))
            with _progress(split) as on_progress:
                prepared.append(run(on_progress))
            if _written_at(join_uri(out, split)) != before:
                written.append(prepared[-1])
        except DataError as error:
            faults += error.faults
        except (StorageError, OSError) as error:
            _exit_stopped(split, error)
    if faults:
        for dataset in written:
            delete_dataset(dataset.uri)
        _exit_with(DataError(faults))
    _print_summary(out, prepared)


def _show_notes() -> None:
    """Show what the importers say, such as which shards an interrupted import left."""
    logger = logging.getLogger("retina_ray")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)


def _written_at(uri: str) -> object:
    """When a set was completed; None where there is none."""
    filesystem, path = open_filesystem(uri)
    return filesystem.get_file_info(f"{path}/{INFO_FILE}").mtime_ns


def _exit_with(error: DataError) -> NoReturn:
    """Show what is wrong, without a traceback, and exit with code 2."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"Nothing was written. {error}", markup=False, highlight=False)
    if {fault.kind for fault in error.faults} & BOX_FAULTS:
        hint = "Bad boxes can be left out (--on-bad-box drop) or mended (--on-bad-box clip)."
        console.print(hint, markup=False, highlight=False)
    sys.exit(_EXIT_BAD_DATA)


def _exit_stopped(split: str, error: Exception) -> NoReturn:
    """Say what stopped the import, which is no fault of the data, and exit with code 1."""
    console = Console(stderr=True, soft_wrap=True)
    text = (
        f"{split}: stopped: {error}\nWhat is finished is kept, and is no data set yet; the same "
        "command goes on from there."
    )
    console.print(text, markup=False, highlight=False)
    sys.exit(_EXIT_STOPPED)


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
    table = Table(title=escape(shown_uri(out)))
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
        console.print(
            f"{dataset.info.split}: {shown_uri(dataset.uri)}", markup=False, highlight=False
        )
