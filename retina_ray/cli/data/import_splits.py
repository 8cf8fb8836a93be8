"""Importing the splits of a data set under one folder: progress, a summary, clean errors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NoReturn, Protocol

import pyarrow.fs as pafs
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from retina_ray.cli.data.progress import progress_bar
from retina_ray.cli.scripts import FAILED, USER_FAULT, clean_exit, say
from retina_ray.data.importers.box_checks import BOX_FAULTS
from retina_ray.data.importers.writing.convert import OnProgress
from retina_ray.data.prepared.completeness import delete_dataset
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.info import INFO_FILE
from retina_ray.errors import DataError, Fault, StorageError
from retina_ray.storage.uris import join_uri, open_filesystem, shown_uri


class Import(Protocol):
    """Writes one split and reports its progress."""

    def __call__(self, *, on_progress: OnProgress) -> PreparedDataset:
        """Write it.

        Raises:
            DataError: the data has faults.
        """
        ...


def import_splits(out: str, imports: Mapping[str, Import]) -> None:
    """Prepare the splits of a data set under one folder, and sum up.

    The faults of all splits are shown at once. When a split has faults, new ones that this call
    wrote are deleted again, so that the next attempt starts from a clean folder. Splits that were
    there already, of the same data with the same options, are left as they are. One that was
    replaced stays, since what was there before is gone; one that has faults is not replaced.

    Args:
        out: folder or URI; each split goes to `out/<split>`.
        imports: for each split, what writes it.

    Raises:
        typer.BadParameter: no split at all.
        typer.Exit: faults in the data (2), a storage or a disk that fails (1), Ctrl-C (130).
    """
    if not imports:
        raise typer.BadParameter("name at least one split")
    _show_notes()
    before: dict[str, _Version] = {}
    prepared: dict[str, PreparedDataset] = {}
    faults: list[Fault] = []
    with clean_exit(Console(stderr=True)):
        for split, run in imports.items():
            try:
                before[split] = _version_at(join_uri(out, split))
                with progress_bar(split) as on_progress:
                    prepared[split] = run(on_progress=on_progress)
            except DataError as error:
                faults += error.faults
            except (StorageError, OSError) as error:
                _exit_stopped(split, error, is_kept=_is_kept(out, split, before))
        if faults:
            _exit_with(DataError(faults), *_take_back(out, before, prepared))
        _print_summary(out, list(prepared.values()))


def _take_back(
    out: str, before: Mapping[str, _Version], prepared: Mapping[str, PreparedDataset]
) -> tuple[list[str], list[str]]:
    """Delete the splits that are new; name those replaced, and those with faults as before."""
    replaced, kept = [], []
    for split, version in before.items():
        is_as_before = _version_at(join_uri(out, split)) == version
        if split in prepared and version is None:
            delete_dataset(prepared[split].uri)
        elif split in prepared and not is_as_before:
            replaced.append(split)
        elif split not in prepared and version is not None and is_as_before:
            kept.append(split)
    return replaced, kept


def _show_notes() -> None:
    """Show what the importers say, such as which shards an interrupted import left."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("retina_ray").setLevel(logging.INFO)


_Version = tuple[int | None, int | None] | None
"""Time and size of a set's description, which tell one set from the next; None: there is none."""


def _version_at(uri: str) -> _Version:
    """Which set is there; one that was begun only is none."""
    filesystem, path = open_filesystem(uri)
    info = filesystem.get_file_info(f"{path}/{INFO_FILE}")
    return (info.mtime_ns, info.size) if info.type != pafs.FileType.NotFound else None


def _is_kept(out: str, split: str, before: Mapping[str, _Version]) -> bool:
    """Whether a set was there before and still is; False where the storage does not say."""
    try:
        version = before.get(split)
        return version is not None and _version_at(join_uri(out, split)) == version
    except (StorageError, OSError):
        return False


def _exit_with(error: DataError, replaced: list[str], kept: list[str]) -> NoReturn:
    """Show what is wrong with the data."""
    said = "Nothing was written."
    if replaced:
        said = f"Written in place of what was there: {', '.join(replaced)}; nothing else."
    if kept:
        said += f" As it was before: {', '.join(kept)}."
    say(f"{said} {error}")
    if {fault.kind for fault in error.faults} & BOX_FAULTS:
        say("Bad boxes can be left out (--on-bad-box drop) or mended (--on-bad-box clip).")
    raise typer.Exit(USER_FAULT)


def _exit_stopped(split: str, error: Exception, *, is_kept: bool) -> NoReturn:
    """Say what stopped the import, which is no fault of the data."""
    text = (
        f"{split}: stopped: {error}\nWhat is finished is kept, and is no data set yet; the same "
        "command resumes from there."
    )
    if is_kept:
        text += " Until then, the set that was there is as it was."
    say(text)
    raise typer.Exit(FAILED)


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
            say(f"{dataset.info.split}: {example}", console)
        say(f"{dataset.info.split}: {shown_uri(dataset.uri)}", console)
