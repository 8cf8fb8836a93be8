"""Draw the synthetic shapes: `python datasets/shapes.py --out data/shapes`.

Discs, rings and bars over a textured ground, or with `--rotated` ellipses, frames and bars turned
to any side, with rotated boxes. Nothing is downloaded.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer
from summary import prepare_splits

from retina_ray.data.importers.convert import OnProgress
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.synthetic.prepare import make_shapes
from retina_ray.storage.uris import join_uri


def main(
    out: Annotated[str, typer.Option(help="Folder or URI; train and val go below it.")],
    num_train: Annotated[int, typer.Option(min=1, help="Pictures to train on.")] = 320,
    num_val: Annotated[int, typer.Option(min=1, help="Pictures to validate on.")] = 80,
    size: Annotated[int, typer.Option(min=32, help="Height and width in pixels.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the drawing; the same seed, the same set.")] = 0,
    rotated: Annotated[bool, typer.Option(help="Turned shapes, with rotated boxes.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace what is there.")] = False,
) -> None:
    """Draw a training and a validation set of shapes."""

    def draw(split: str, num_images: int, on_progress: OnProgress) -> PreparedDataset:
        return make_shapes(
            join_uri(out, split),
            num_images=num_images,
            size_px=size,
            seed=seed,
            split=split,
            rotated=rotated,
            overwrite=overwrite,
            on_progress=on_progress,
        )

    prepare_splits(
        out, {"train": partial(draw, "train", num_train), "val": partial(draw, "val", num_val)}
    )


if __name__ == "__main__":
    typer.run(main)
