"""`retina-ray data ...`: what can be asked of a data set before any training."""

from __future__ import annotations

import typer

from retina_ray.cli.data import anchors, check, export, show

__all__ = ["data_app"]

data_app = typer.Typer(help="Look at data sets before training on them.", no_args_is_help=True)
for command in (check.check, anchors.anchors, show.show, export.export):
    data_app.command()(command)
