"""Progress bars over the images of splits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, TaskID

from retina_ray.data.importers.writing.convert import OnProgress


@contextmanager
def progress_bars(*, hidden: bool = False) -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar for each split on a terminal, silence elsewhere.

    Yields:
        What is to be called with (split, images done, images in all; None: unknown).
    """
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    disable = hidden or not console.is_terminal
    with Progress(*columns, console=console, disable=disable) as progress:
        tasks: dict[str, TaskID] = {}

        def on_image(split: str, done: int, total: int | None) -> None:
            if split not in tasks:
                tasks[split] = progress.add_task(escape(split), total=total)
            progress.update(tasks[split], completed=done, total=total)

        yield on_image


@contextmanager
def progress_bar(label: str, *, hidden: bool = False) -> Iterator[OnProgress]:
    """One bar, which shows before the first image is done."""
    with progress_bars(hidden=hidden) as on_image:
        on_image(label, 0, None)
        yield partial(on_image, label)
