"""`retina-ray data show DATASET`: a page to look at before training."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from retina_ray.cli.recipes import RecipesOption, config_of_recipe
from retina_ray.cli.scripts import clean_exit
from retina_ray.config import ConfigError, ExperimentConfig, with_overrides
from retina_ray.overrides import parse_assignments
from retina_ray.storage.files import write_bytes

if TYPE_CHECKING:
    from retina_ray.reports.dataset.report import OnStage


def show(
    dataset: Annotated[
        str, typer.Argument(help="Folder or URI of a prepared set, or of a folder of splits.")
    ],
    out: Annotated[Path, typer.Option(help="The page; a file that is there is replaced.")] = Path(
        "page.html"
    ),
    recipe: Annotated[
        str | None,
        typer.Option(help="What training does with images: a recipe's name, or a config.json."),
    ] = None,
    recipes: RecipesOption = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="path=value, as often as needed.")
    ] = None,
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
        _check_out(out)
        # Here, since it brings PyTorch, which the other commands can do without.
        from retina_ray.reports.dataset.report import show_dataset

        config = _config(dataset, recipe, recipes, set_ or [])
        with _progress(console) as on_stage:
            html = show_dataset(
                dataset, config=config, num_images=num_images, seed=seed, on_stage=on_stage
            )
        size = _replace(out, html)
        Console(soft_wrap=True).print(f"{out} ({size / 1e6:.1f} MB)", markup=False, highlight=False)


def _config(
    dataset: str, recipe: str | None, recipes: Path | None, assignments: list[str]
) -> ExperimentConfig:
    """The recipe's config, or the defaults for the data set, with overrides."""
    from retina_ray.reports.dataset.report import config_for
    from retina_ray.reports.dataset.splits import open_splits

    if recipe is None:
        return with_overrides(config_for(open_splits(dataset)), parse_assignments(assignments))
    return config_of_recipe(recipe, recipes, assignments)


def _check_out(out: Path) -> None:
    """Refuse before the work what could not be written after it."""
    if re.match(r"[A-Za-z][\w+.-]+:/", os.fspath(out)):
        raise ConfigError(f"--out {out}: a local file is needed")
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; name a file, e.g. {out / 'page.html'}")


def _replace(out: Path, html: str) -> int:
    """Write the page and put it into its place in one step; its size in bytes."""
    data = html.encode()
    try:
        write_bytes(out, data)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror or error}") from error
    return len(data)


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[OnStage]:
    """A line that says what is done on a terminal, silence elsewhere."""
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("reading", total=None)

        def on_stage(what: str, done: int, total: int) -> None:
            progress.update(task, description=escape(what), completed=done, total=total or None)

        yield on_stage
