"""`retina-ray data export DATASET --out FILE`: a prepared set as COCO's JSON."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from retina_ray.cli.data.progress import progress_bar
from retina_ray.cli.scripts import clean_exit, say
from retina_ray.data.export import export_coco
from retina_ray.data.prepared.dataset import PreparedDataset


def export(
    dataset: Annotated[str, typer.Argument(help="A prepared set: a folder or a URI.")],
    out: Annotated[str, typer.Option(help="The JSON file to write: a path or a URI.")],
    images: Annotated[
        str | None, typer.Option(help="Write the images below this folder or URI, too.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace files of other content.")] = False,
) -> None:
    """Write a prepared set as COCO's JSON, with its original ids.

    An export that was killed goes on when it is called again.
    """
    console = Console()
    with clean_exit(console):
        prepared = PreparedDataset.open(dataset)
        with progress_bar("images", hidden=images is None) as on_progress:
            exported = export_coco(
                prepared, out, images_dir=images, overwrite=overwrite, on_progress=on_progress
            )
        say(
            f"{out}: {prepared.num_images} images, {exported.num_annotations} annotations, "
            f"{prepared.num_classes} categories",
            console,
        )
        if images is not None:
            kept = f", {exported.num_kept} were there already" if exported.num_kept else ""
            say(f"images in {images}: {exported.num_written} written{kept}", console)
