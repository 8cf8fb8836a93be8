"""`retina-ray data ...`: what can be asked of a data set before any training."""

from __future__ import annotations

import typer

from retina_ray.cli.data.anchors import anchors
from retina_ray.cli.data.check import check
from retina_ray.cli.data.export import export
from retina_ray.cli.data.show import show

__all__ = ["data_app"]

data_app = typer.Typer(help="Look at data sets before training on them.", no_args_is_help=True)
data_app.command("check")(check)
data_app.command("anchors")(anchors)
data_app.command("show")(show)
data_app.command("export")(export)
