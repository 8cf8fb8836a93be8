"""`retina-ray`: the commands that need no recipe of their own."""

from __future__ import annotations

import typer

from retina_ray.cli.data import data_app
from retina_ray.cli.run import run_app

app = typer.Typer(
    name="retina-ray",
    help="Train RetinaNet detectors, and experiment with them at scale, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(run_app, name="run")


@app.callback()
def _root() -> None:
    """Train RetinaNet detectors, and experiment with them at scale, on Ray."""


def main() -> None:
    """Entry point of the command."""
    app()


if __name__ == "__main__":
    main()
