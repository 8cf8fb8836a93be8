"""`retina-ray run ...`: what can be asked of a run, finished or not."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from retina_ray.cli.pages import check_page, write_page
from retina_ray.cli.scripts import clean_exit, say, storage_uri
from retina_ray.config import ConfigError
from retina_ray.errors import DataError, StorageError
from retina_ray.storage.files import copy_down, write_bytes
from retina_ray.storage.uris import is_uri, join_uri, shown_uri
from retina_ray.train import run_files

if TYPE_CHECKING:
    from retina_ray.reports.run.report import RunReport


logger = logging.getLogger(__name__)

run_app = typer.Typer(help="Look at a run, finished or not.", no_args_is_help=True)


@run_app.callback()
def _root() -> None:
    """Look at a run, finished or not."""


@run_app.command("report")
def report(
    run: Annotated[str, typer.Argument(help="Folder or URI of the run.")],
    out: Annotated[
        Path | None, typer.Option(help="The page; default: report.html in the run's folder.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="The validation set, where it has moved (folder or URI).")
    ] = None,
    num_images: Annotated[
        int, typer.Option(min=0, help="Worst images to show; of the best, a third as many.")
    ] = 12,
) -> None:
    """Write a page of a run: curves, precision by class, kinds of errors, worst and best images.

    The page is one HTML file that needs no other, nor a network. Parts that the folder has nothing
    for say so.
    """
    console = Console(stderr=True)
    with clean_exit(console):
        if out is not None:
            check_page(out, run_files.REPORT)
        data = None if data is None else storage_uri(data)
        with _stages(console) as on_stage:
            place, made = _write(run, out, data=data, num_images=num_images, on_stage=on_stage)
        for problem in made.problems:
            say(f"not on the page: {problem}", console)
        say(f"{place} ({len(made.html.encode()) / 1e6:.1f} MB)", Console())


def report_of_run(run_uri: str, *, console: Console) -> str | None:
    """Write `report.html` into the folder of a run that has just ended.

    The run is over and its results are safe, so a page that cannot be made is told of, and raises
    nothing.

    Returns:
        Where the page lies; None where it could not be made.
    """
    try:
        with _stages(console) as on_stage:
            return _write(run_uri, None, on_stage=on_stage)[0]
    except Exception as error:
        if not isinstance(error, (ConfigError, DataError, StorageError, OSError)):
            logger.exception("a fault of the page of %s", run_uri)
        say(f"the run's page was not written: {error}", console)
        return None


def _write(
    run: str,
    out: Path | None,
    *,
    data: str | None = None,
    num_images: int | None = None,
    on_stage: Callable[[str], None],
) -> tuple[str, RunReport]:
    """Make the page and write it; where it lies, and what it holds."""
    # Here, since it brings PyTorch, which the other commands can do without.
    from retina_ray.reports.run.report import NUM_IMAGES, run_report

    number = NUM_IMAGES if num_images is None else num_images
    shown = shown_uri(run)
    with contextlib.ExitStack() as stack:
        folder = Path(run).expanduser()
        if is_uri(run):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="retina_ray-")))
            on_stage("fetching the run")
            _fetch(run, folder)
        made = run_report(folder, shown_as=shown, data=data, num_images=number, on_stage=on_stage)
        if out is not None or not is_uri(run):
            path = out or folder / run_files.REPORT
            write_page(path, made.html)
            return str(path), made
        on_stage("sending the page")
        write_bytes(join_uri(run, run_files.REPORT), made.html.encode())
        return f"{shown.rstrip('/')}/{run_files.REPORT}", made


def _fetch(run_uri: str, folder: Path) -> None:
    """Bring the files that the page is made from to a local folder."""
    from retina_ray.evaluation.predictions_file import PREDICTIONS_FILE

    index = f"{run_files.CHECKPOINTS}/{run_files.CHECKPOINT_INDEX}"
    for name in (
        run_files.RUN,
        run_files.CONFIG,
        run_files.METRICS,
        run_files.BAD_IMAGES,
        run_files.FAILURE,
        PREDICTIONS_FILE,
        index,
    ):
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        copy_down(join_uri(run_uri, name), target)


@contextlib.contextmanager
def _stages(console: Console) -> Iterator[Callable[[str], None]]:
    """A line that says what is done on a terminal, silence elsewhere."""
    if not console.is_terminal:
        yield lambda what: None
        return
    with console.status("reading") as status:
        yield status.update
