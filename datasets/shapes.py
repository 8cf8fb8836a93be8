"""Draw the synthetic shapes: `python datasets/shapes.py --out data/shapes`.

Discs, rings and bars over a textured ground, or with `--rotated` ellipses, frames and bars at any
angle, with rotated boxes. Nothing is downloaded.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from retina_ray.cli.data.import_splits import import_splits
from retina_ray.data.synthetic.prepare import make_shapes
from retina_ray.storage.uris import join_uri


def main(
    out: Annotated[str, typer.Option(help="Folder or URI; train and val go below it.")],
    num_train: Annotated[int, typer.Option(min=1, help="Images to train on.")] = 320,
    num_val: Annotated[int, typer.Option(min=1, help="Images to validate on.")] = 80,
    size: Annotated[int, typer.Option(min=32, help="Height and width in pixels.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the drawing; the same seed, the same set.")] = 0,
    rotated: Annotated[bool, typer.Option(help="Shapes at any angle, with rotated boxes.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace what is there.")] = False,
) -> None:
    """Draw a training and a validation set of shapes."""
    draw = partial(make_shapes, size_px=size, seed=seed, rotated=rotated, overwrite=overwrite)
    imports = {
        split: partial(draw, join_uri(out, split), num_images=num_images, split=split)
        for split, num_images in {"train": num_train, "val": num_val}.items()
    }
    import_splits(out, imports)


if __name__ == "__main__":
    typer.run(main)
