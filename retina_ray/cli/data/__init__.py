"""`retina-ray data ...`: what can be asked of a data set before any training."""

from __future__ import annotations

import typer

from retina_ray.cli.data import anchors, check, export, show
from retina_ray.cli.data.import_commands import import_app

__all__ = ["data_app"]

data_app = typer.Typer(
    help="Import data sets, and look at them before training.", no_args_is_help=True
)
data_app.add_typer(import_app, name="import")
for command in (check.check, anchors.anchors, show.show, export.export):
    data_app.command()(command)
