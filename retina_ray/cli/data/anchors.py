"""`retina-ray data anchors DATASET`: do the anchors of a recipe fit the boxes of a data set?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from retina_ray.cli.options import RecipeOption, RecipesOption, SetOption
from retina_ray.cli.recipes import config_of_options
from retina_ray.cli.scripts import clean_exit, say
from retina_ray.config import ConfigError
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.info import INFO_FILE
from retina_ray.storage.files import write_text
from retina_ray.storage.uris import open_filesystem

_PIPE_WIDTH = 120


def anchors(
    dataset: Annotated[
        str, typer.Argument(help="A prepared set, or a folder of splits (its train is taken).")
    ],
    recipe: RecipeOption = None,
    recipes: RecipesOption = None,
    set_: SetOption = None,
    images: Annotated[
        int, typer.Option(min=1, help="Of a larger set, this many images are drawn.")
    ] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 0,
    json_: Annotated[
        Path | None, typer.Option("--json", help="File for all metrics as JSON.")
    ] = None,
) -> None:
    """Say how many boxes get an anchor at the training size, and propose better anchors."""
    console = Console()
    if not console.is_terminal:  # a log has no width of its own, and 80 columns are too few
        console = Console(width=_PIPE_WIDTH)
    with clean_exit(console):
        config = config_of_options(recipe, recipes, set_)
        prepared = PreparedDataset.open(_with_train(dataset))
        # Here, since it brings PyTorch, which the other commands can do without.
        from retina_ray.anchors.study import study_anchors
        from retina_ray.anchors.tables import study_tables

        with console.status("matching"):
            study = study_anchors(config, prepared, max_images=images, seed=seed)
        for part in study_tables(study):
            if isinstance(part, str):
                say(part, console)
            else:
                console.print(part)
        if json_ is not None:
            try:
                write_text(json_.expanduser(), json.dumps(study.as_tree(), indent=1))
            except OSError as error:
                raise ConfigError(f"--json {json_}: {error.strerror or error}") from error
            say(f"metrics: {json_}", console)


def _with_train(dataset: str) -> str:
    """The folder itself where it is a prepared set, else its `train` where that is one."""
    filesystem, path = open_filesystem(dataset)
    own, train = filesystem.get_file_info([f"{path}/{INFO_FILE}", f"{path}/train/{INFO_FILE}"])
    return f"{dataset.rstrip('/')}/train" if train.is_file and not own.is_file else dataset
