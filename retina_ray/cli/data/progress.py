"""A progress bar over the images of a split."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress

from retina_ray.data.importers.writing.convert import OnProgress


@contextmanager
def progress_bar(label: str, *, hidden: bool = False) -> Iterator[OnProgress]:
    """A progress bar on a terminal, silence elsewhere.

    Args:
        label: e.g. the name of the split.
        hidden: show nothing on a terminal either.

    Yields:
        What is to be called with (images done, images in all).
    """
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    disable = hidden or not console.is_terminal
    with Progress(*columns, console=console, disable=disable) as progress:
        task = progress.add_task(escape(label), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
