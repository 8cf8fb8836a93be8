"""Options that several commands and scripts share, and what is made of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

RECIPES_FILE = Path("experiments/recipes.py")
"""Where recipes are looked for, from the current folder."""

RecipeOption = Annotated[
    str | None,
    typer.Option(help="A recipe's name, or a run's config.json; default: the plain config."),
]
RecipesOption = Annotated[
    Path | None, typer.Option(help=f"Python file of the recipes; default: {RECIPES_FILE}.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="path=value, as often as needed.")
]
NameOption = Annotated[str | None, typer.Option(help="Name and folder; default: recipe and time.")]
StorageOption = Annotated[
    str, typer.Option(help="Folder of all runs (a run takes a URI, too); every node must see it.")
]
ResumeOption = Annotated[bool, typer.Option(help="Resume --name, as it was.")]
CheckpointOption = Annotated[str, typer.Option(help="A checkpoint's folder, or a run's.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: a GPU.")]


def recipe_option(recipes: Iterable[str]) -> Any:
    """The option `--recipe` of a script that has these recipes."""
    return typer.Option(help=f"One of {', '.join(recipes)}, or a run's config.json.")
