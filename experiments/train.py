r"""Train one RetinaNet on Ray.

python experiments/train.py --recipe shapes
python experiments/train.py --recipe bccd_cpu --set data.train=data/bccd/train \
        --set data.val=data/bccd/val
python experiments/train.py --name RUN --resume
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from recipes import RECIPES
from rich.console import Console

from retina_ray.cli import clean_exit, load_config, run_name, storage_uri
from retina_ray.cli.run import report_of_run
from retina_ray.config import ConfigError
from retina_ray.train.errors import NonRetryableError, RunError
from retina_ray.train.run.launch import prepare_run, resume_run, run

SCRIPTS = Path(__file__).parent.name
console = Console()


def main(
    recipe: Annotated[
        str, typer.Option(help=f"One of {', '.join(RECIPES)}, or a run's config.json.")
    ] = "shapes",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="path=value, as often as needed.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The run's name and folder.")] = None,
    storage: Annotated[
        str, typer.Option(help="Folder (or URI) of all runs; every node must see it.")
    ] = "results",
    resume: Annotated[bool, typer.Option(help="Carry on the run --name.")] = False,
    init_from: Annotated[
        str | None, typer.Option(help="Checkpoint to take the first weights from.")
    ] = None,
) -> None:
    """Train one RetinaNet: Ray Data streams, Ray Train's workers train, COCO metrics judge."""
    with clean_exit(console):
        root = storage_uri(storage)
        if resume:
            if name is None or set_ or init_from:
                raise ConfigError(
                    "--resume carries on a run as it was: give --name, and neither --set nor "
                    "--init-from (to change something, start a new run with --init-from)"
                )
            spec = resume_run(f"{root}/{name}")
        else:
            config = load_config(recipe, set_ or [], RECIPES)
            spec = prepare_run(
                config, name=run_name(name, recipe), storage=root, init_from=init_from
            )
        carry_on = f"python {SCRIPTS}/train.py --name {spec.name} --storage {root} --resume"
        try:
            result = run(spec, console=console)
        except (KeyboardInterrupt, RunError) as error:
            if not isinstance(error, NonRetryableError):
                console.print(f"carry on with: {carry_on}", soft_wrap=True)
            raise
        if result.metrics:  # else the run ended before its first evaluation
            ap, ap50 = result.metrics["val/AP"], result.metrics["val/AP50"]
            console.print(f"AP {ap:.3f}  AP50 {ap50:.3f}")
        console.print(f"best checkpoint: {result.best}\nrun: {spec.run_uri}", soft_wrap=True)
        if page := report_of_run(spec.run_uri, console=console):
            console.print(f"page: {page}", soft_wrap=True)
        console.print(
            f"evaluate: python {SCRIPTS}/evaluate.py --checkpoint {result.best} "
            f"--dataset {spec.val_uri}",
            soft_wrap=True,
        )


if __name__ == "__main__":
    typer.run(main)
