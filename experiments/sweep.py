r"""Sweep RetinaNet configurations with Ray Tune.

python experiments/sweep.py
python experiments/sweep.py --recipe bccd_cpu --space losses --num-samples 4 \
        --set data.train=data/bccd/train --set data.val=data/bccd/val
python experiments/sweep.py --name SWEEP --resume
ray job submit --working-dir . -- python experiments/sweep.py --storage /shared/results
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from recipes import RECIPES
from rich.console import Console
from spaces import SPACES

from retina_ray.cli import (
    FAILED,
    INTERRUPTED,
    TERMINATED,
    clean_exit,
    load_config,
    named,
    run_name,
    storage_uri,
)
from retina_ray.cli.options import (
    NameOption,
    ResumeOption,
    SetOption,
    StorageOption,
    recipe_option,
)
from retina_ray.config import ConfigError
from retina_ray.sweep.launch import finish_sweep, prepare_sweep
from retina_ray.sweep.plan import SweepPlan
from retina_ray.sweep.runner import run_sweep

console = Console()


class Scheduler(StrEnum):
    """How trials are stopped."""

    asha = "asha"
    fifo = "fifo"


class Search(StrEnum):
    """How values are drawn."""

    random = "random"
    optuna = "optuna"


def main(
    recipe: Annotated[str, recipe_option(RECIPES)] = "shapes",
    space: Annotated[str, typer.Option(help=f"One of {', '.join(SPACES)}.")] = "default",
    num_samples: Annotated[int, typer.Option(min=1, help="Trials.")] = 8,
    scheduler: Annotated[
        Scheduler, typer.Option(help="asha stops weak trials early; fifo runs all to the end.")
    ] = Scheduler.asha,
    search: Annotated[Search, typer.Option(help="How values are drawn.")] = Search.random,
    set_: SetOption = None,
    name: NameOption = None,
    storage: StorageOption = "results",
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="Trials at once; default: what the cluster holds.")
    ] = None,
    grace_epochs: Annotated[
        int, typer.Option(min=1, help="ASHA stops no trial before this many epochs.")
    ] = 2,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    keep_low_recall_anchors: Annotated[
        bool, typer.Option(help="Try anchors too that hardly a box of the training set fits.")
    ] = False,
    resume: ResumeOption = False,
) -> None:
    """Compare configurations: Ray Tune draws them, each trial is a training run of its own."""
    with clean_exit(console):
        root = storage_uri(storage)
        if resume:
            if name is None or set_:
                raise ConfigError("--resume takes a sweep as it was: give --name, no --set")
            plan = SweepPlan.load(f"{root}/{name}")
        else:
            config = load_config(recipe, set_, RECIPES)
            plan = prepare_sweep(
                config,
                named(space, SPACES, "--space")(config),
                name=run_name(name, f"sweep-{recipe}"),
                storage=root,
                num_samples=num_samples,
                scheduler=scheduler.value,
                search=search.value,
                max_concurrent=max_concurrent,
                grace_epochs=grace_epochs,
                seed=seed,
                keep_low_recall_anchors=keep_low_recall_anchors,
            )
        outcome = run_sweep(plan, resume=resume)
        finish_sweep(plan, outcome, console=console)
        if outcome.interrupted:
            raise typer.Exit(TERMINATED if outcome.terminated else INTERRUPTED)
        if not outcome.has_result:
            raise typer.Exit(FAILED)


if __name__ == "__main__":
    typer.run(main)
