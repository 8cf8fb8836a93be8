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

from retina_ray.cli import clean_exit, load_config, run_name, say, storage_uri
from retina_ray.cli.options import (
    NameOption,
    ResumeOption,
    SetOption,
    StorageOption,
    recipe_option,
)
from retina_ray.cli.run import report_of_run
from retina_ray.config import ConfigError
from retina_ray.train.errors import NonRetryableError, RunError
from retina_ray.train.run.launch import prepare_run, resume_run, run

SCRIPTS = Path(__file__).parent.name
console = Console()


def main(
    recipe: Annotated[str, recipe_option(RECIPES)] = "shapes",
    set_: SetOption = None,
    name: NameOption = None,
    storage: StorageOption = "results",
    resume: ResumeOption = False,
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
                    "--resume takes a run as it was: give --name, and neither --set nor "
                    "--init-from (to change something, start a new run with --init-from)"
                )
            spec = resume_run(f"{root}/{name}")
        else:
            config = load_config(recipe, set_, RECIPES)
            spec = prepare_run(
                config, name=run_name(name, recipe), storage=root, init_from=init_from
            )
        resume_with = f"python {SCRIPTS}/train.py --name {spec.name} --storage {root} --resume"
        try:
            result = run(spec, console=console)
        except (KeyboardInterrupt, RunError) as error:
            if not isinstance(error, NonRetryableError):
                say(f"resume with: {resume_with}", console)
            raise
        if result.metrics:  # else the run ended before its first evaluation
            ap, ap50 = result.metrics["val/AP"], result.metrics["val/AP50"]
            say(f"AP {ap:.3f}  AP50 {ap50:.3f}", console)
        say(f"best checkpoint: {result.best}\nrun: {spec.run_uri}", console)
        if page := report_of_run(spec.run_uri, console=console):
            say(f"page: {page}", console)
        say(
            f"evaluate: python {SCRIPTS}/evaluate.py --checkpoint {result.best} "
            f"--dataset {spec.val_uri}",
            console,
        )


if __name__ == "__main__":
    typer.run(main)
