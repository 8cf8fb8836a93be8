"""`retina-ray data check DATASET`: everything that is wrong with a data set, at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated

import pyarrow.fs as pafs
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from retina_ray.checks.check import CheckReport, check_dataset
from retina_ray.checks.formats import CocoFile
from retina_ray.checks.images import CheckSettings
from retina_ray.checks.json_report import report_json
from retina_ray.cli.data.progress import progress_bars
from retina_ray.cli.options import RecipeOption, RecipesOption
from retina_ray.cli.recipes import config_of_options
from retina_ray.cli.scripts import USER_FAULT, clean_exit, say
from retina_ray.config import ConfigError, InputConfig
from retina_ray.errors import DataError, StorageError
from retina_ray.storage.files import write_whole
from retina_ray.storage.uris import open_filesystem, shown_uri

ISSUES_FOUND = 1
"""Exit code where errors were found (with --strict: anything)."""

NO_ANSWER = 3
"""Exit code where a storage did not answer: elsewhere that is 1, which means data issues here."""

_PIPE_WIDTH = 160
_MARKS = {"error": "[bold red]error[/]", "warning": "[yellow]warning[/]"}


def check(
    dataset: Annotated[
        str,
        typer.Argument(
            help="Folder or URI: a prepared set, a folder of such, or a data set in the layout of "
            "COCO, Pascal VOC or YOLO (or its data.yaml); with --images, a COCO file.",
        ),
    ],
    images: Annotated[
        str | None, typer.Option(help="Folder or URI of the images of a COCO file.")
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", help="Write all cases to this file or URI; - is the output."),
    ] = None,
    train_size: Annotated[
        int | None, typer.Option(min=1, help="Shorter side in training, pixels.")
    ] = None,
    train_max_size: Annotated[
        int | None, typer.Option(min=1, help="Limit of the longer side in training, pixels.")
    ] = None,
    recipe: RecipeOption = None,
    recipes: RecipesOption = None,
    root: Annotated[
        str | None, typer.Option(help="Folder of a YOLO set, where data.yaml has it wrong.")
    ] = None,
    decode: Annotated[
        bool, typer.Option(help="Decode every image; without it, no look-alikes are found.")
    ] = True,
    strict: Annotated[bool, typer.Option(help="Warnings count as errors.")] = False,
    examples: Annotated[int, typer.Option(min=0, help="Cases of a kind that are shown.")] = 3,
) -> None:
    """Read a data set whole, and report all its data issues at once.

    Exit code: 0 clean or warnings only; 1 errors (with --strict also warnings); 2 wrong usage, or
    no data set that can be read; 3 a storage that does not answer.
    """
    console = Console(stderr=json_file == "-", soft_wrap=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    with clean_exit(console), _own_code_without_an_answer():
        config = config_of_options(recipe, recipes)
        settings = _settings(config.input, train_size, train_max_size, decode)
        _check_target(json_file)
        source = dataset if images is None else CocoFile(dataset, images)
        with _unreadable(dataset), progress_bars() as on_image:
            report = check_dataset(source, settings=settings, root=root, on_image=on_image)
        _show(console, report, examples)
        if json_file is not None:
            _write(json_file, report_json(report))
    if not report.splits:
        raise typer.Exit(USER_FAULT)
    if report.num_errors or (strict and report.num_warnings):
        raise typer.Exit(ISSUES_FOUND)


def _settings(
    config: InputConfig, train_size: int | None, train_max_size: int | None, decode: bool
) -> CheckSettings:
    settings = CheckSettings.from_config(config, decode=decode)
    sizes = {"train_size_px": train_size, "train_max_size_px": train_max_size}
    return replace(settings, **{name: size for name, size in sizes.items() if size})


@contextmanager
def _own_code_without_an_answer() -> Iterator[None]:
    """End with `NO_ANSWER` where a storage does not answer: who asks again may get another one."""
    try:
        yield
    except StorageError as error:
        say(f"error: {error}")
        raise typer.Exit(NO_ANSWER) from None


@contextmanager
def _unreadable(dataset: str) -> Iterator[None]:
    """Turn what the system refuses, such as to list a folder, into a fault of the data set."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{shown_uri(dataset)}: cannot be read ({error})") from error


def _show(console: Console, report: CheckReport, num_examples: int) -> None:
    """What the splits hold, the findings, and the verdict."""
    splits = Table(title=f"{escape(report.dataset)} ({report.layout})", title_justify="left")
    for name in ("split", "images", "without boxes", "boxes", "crowd regions", "classes"):
        splits.add_column(name, justify="left" if name == "split" else "right")
    for split in report.splits:
        numbers = (split.num_images, split.num_empty, split.num_boxes, split.num_crowd)
        present = sum(count > 0 for count in split.class_counts.values())
        classes = f"{present} of {len(split.class_counts)}"
        splits.add_row(escape(split.name), *map(str, numbers), classes)
    if report.splits:
        console.print(splits)
    for sentence in report.passed_over:
        console.print(f"passed over: {sentence}", markup=False, highlight=False)
    if report.findings:
        console.print(_findings_table(report, num_examples))
    if not report.settings.decode:
        console.print("images were not decoded: damage inside of them and look-alikes were missed")
    console.print(_verdict(report), markup=False, highlight=False)


def _findings_table(report: CheckReport, num_examples: int) -> Table:
    """A row for each kind, with its first cases."""
    table = Table(show_lines=True)
    table.add_column("")
    table.add_column("what", ratio=2)
    table.add_column("count", justify="right")
    table.add_column("where", ratio=5, overflow="fold")
    for finding in report.findings:
        kind = finding.kind
        cases = [escape(str(case)) for case in finding.cases[:num_examples]]
        left = finding.count - len(cases)
        if left:
            cases.append(f"[dim]and {left} more[/]" if cases else "")
        what = escape(kind.name) + (f"\n[dim]{escape(kind.advice)}[/]" if kind.advice else "")
        table.add_row(_MARKS[kind.severity], what, str(finding.count), "\n".join(cases))
    return table


def _verdict(report: CheckReport) -> str:
    if not report.splits:
        return "could not be checked: none of its splits can be read"
    if not report.findings:
        return "clean"
    numbers = ((report.num_errors, "error"), (report.num_warnings, "warning"))
    return ", ".join(f"{count} {word}{'s' * (count != 1)}" for count, word in numbers)


def _check_target(target: str | None) -> None:
    """Refuse a place for the JSON that lies in no folder, before the data set is read."""
    if target is None or target == "-":
        return
    filesystem, path = open_filesystem(target)
    folder = path.rpartition("/")[0] or "/"
    if isinstance(filesystem, pafs.LocalFileSystem) and not os.path.isdir(folder):
        raise ConfigError(f"--json {target}: there is no folder {folder}; make it first")


def _write(target: str, text: str) -> None:
    """Write the JSON to the output, a file or a URI; a reader sees all of it or none."""
    if target == "-":
        sys.stdout.write(text)
        return
    filesystem, path = open_filesystem(target)
    try:
        if isinstance(filesystem, pafs.LocalFileSystem) and _stays_in_place(path):
            with filesystem.open_output_stream(path) as stream:
                stream.write(text.encode())
        else:
            write_whole(filesystem, path, text.encode())
    except OSError as error:
        raise ConfigError(
            f"--json {target}: cannot be written ({error}); name a file in a folder that exists"
        ) from error


def _stays_in_place(path: str) -> bool:
    """Whether what is there must be written to, not replaced: a link, a pipe, `/dev/stdout`."""
    return os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path))
