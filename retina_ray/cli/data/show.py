"""`retina-ray data show DATASET`: a page to look at before training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from retina_ray.cli.options import RecipeOption, RecipesOption, SetOption
from retina_ray.cli.pages import check_page, write_page
from retina_ray.cli.recipes import config_of_options
from retina_ray.cli.scripts import clean_exit, say

if TYPE_CHECKING:
    from retina_ray.reports.dataset.report import OnStage


def show(
    dataset: Annotated[
        str, typer.Argument(help="Folder or URI of a prepared set, or of a folder of splits.")
    ],
    out: Annotated[Path, typer.Option(help="The page; a file that is there is replaced.")] = Path(
        "page.html"
    ),
    recipe: RecipeOption = None,
    recipes: RecipesOption = None,
    set_: SetOption = None,
    num_images: Annotated[
        int,
        typer.Option(min=0, help="Images of the training split; of others, a quarter as many."),
    ] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of images.")] = 0,
) -> None:
    """Write a page of a data set: counts, sizes, images with boxes before and after augmentation.

    The page is one HTML file that needs no other, nor a network.
    """
    console = Console(stderr=True)
    with clean_exit(console):
        check_page(out, "page.html")
        # Here, since it brings PyTorch, which the other commands can do without.
        from retina_ray.reports.dataset.report import config_for, show_dataset
        from retina_ray.reports.dataset.splits import open_splits

        config = config_of_options(
            recipe, recipes, set_, base=lambda: config_for(open_splits(dataset))
        )
        with _progress(console) as on_stage:
            html = show_dataset(
                dataset, config=config, num_images=num_images, seed=seed, on_stage=on_stage
            )
        write_page(out, html)
        say(f"{out} ({len(html.encode()) / 1e6:.1f} MB)", Console())


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[OnStage]:
    """A line that says what is done on a terminal, silence elsewhere."""
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("reading", total=None)

        def on_stage(what: str, done: int, total: int) -> None:
            progress.update(task, description=escape(what), completed=done, total=total or None)

        yield on_stage
