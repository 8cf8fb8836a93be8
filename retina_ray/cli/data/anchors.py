"""`retina-ray data anchors DATASET`: do the anchors of a recipe fit the boxes of a data set?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from retina_ray.cli.recipes import RecipesOption, config_of_recipe
from retina_ray.cli.scripts import clean_exit
from retina_ray.config import ConfigError, ExperimentConfig, with_overrides
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.info import INFO_FILE
from retina_ray.overrides import parse_assignments
from retina_ray.storage.uris import open_filesystem

_PIPE_WIDTH = 120


def anchors(
    dataset: Annotated[
        str, typer.Argument(help="A prepared set, or a folder of splits (its train is taken).")
    ],
    recipe: Annotated[
        str | None,
        typer.Option(help="A recipe's name, or a run's config.json; default: the plain config."),
    ] = None,
    recipes: RecipesOption = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="path=value, as often as needed.")
    ] = None,
    images: Annotated[
        int, typer.Option(min=1, help="Of a larger set, this many images are drawn.")
    ] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 0,
    json_: Annotated[
        Path | None, typer.Option("--json", help="File for all figures as JSON.")
    ] = None,
) -> None:
    """Say how many boxes get an anchor at the training size, and propose better anchors."""
    console = Console()
    if not console.is_terminal:  # a log has no width of its own, and 80 columns are too few
        console = Console(width=_PIPE_WIDTH)
    with clean_exit(console):
        config = _config(recipe, recipes, set_ or [])
        prepared = PreparedDataset.open(_with_train(dataset))
        # Here, since it brings PyTorch, which the other commands can do without.
        from retina_ray.anchors.study import study_anchors
        from retina_ray.anchors.tables import study_tables

        with console.status("matching"):
            study = study_anchors(config, prepared, max_images=images, seed=seed)
        for part in study_tables(study):
            if isinstance(part, str):
                console.print(part, highlight=False, markup=False, soft_wrap=True)
            else:
                console.print(part)
        if json_ is not None:
            _write(json_.expanduser(), json.dumps(study.as_tree(), indent=1))
            console.print(f"figures: {json_}", soft_wrap=True)


def _config(recipe: str | None, file: Path | None, assignments: list[str]) -> ExperimentConfig:
    """The config of the options; only a recipe's name needs the file of recipes."""
    if recipe is None:
        return with_overrides(ExperimentConfig(), parse_assignments(assignments))
    return config_of_recipe(recipe, file, assignments)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise ConfigError(f"--json {path}: {error.strerror or error}") from error


def _with_train(dataset: str) -> str:
    """The folder itself where it is a prepared set, else its `train` where that is one."""
    filesystem, path = open_filesystem(dataset)
    own, train = filesystem.get_file_info([f"{path}/{INFO_FILE}", f"{path}/train/{INFO_FILE}"])
    return f"{dataset.rstrip('/')}/train" if train.is_file and not own.is_file else dataset
