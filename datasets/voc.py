"""Prepare a Pascal VOC data set: `python datasets/voc.py --source VOC2007 --out data/voc`.

The source holds `Annotations/*.xml`, `JPEGImages/*.jpg` and `ImageSets/Main/<split>.txt`. VOC
itself is at http://host.robots.ox.ac.uk/pascal/VOC/; many smaller sets come in the same layout,
among them BCCD (blood cells, https://github.com/Shenggan/BCCD_Dataset).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer
from summary import prepare_splits

from retina_ray.data.images.files import MAX_PIXELS
from retina_ray.data.importers.box_checks import BadBoxPolicy, BadImagePolicy
from retina_ray.data.importers.convert import OnProgress
from retina_ray.data.importers.ray_tasks import shard_mapper
from retina_ray.data.importers.voc import import_voc
from retina_ray.data.importers.voc_xml import DifficultPolicy
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.storage.uris import join_uri


def main(
    source: Annotated[
        str, typer.Option(help="Folder or URI with Annotations, JPEGImages, ImageSets.")
    ],
    out: Annotated[str, typer.Option(help="Folder or URI; each split goes below it.")],
    splits: Annotated[str, typer.Option(help="Files of ImageSets/Main, by comma.")] = "train,val",
    name: Annotated[str, typer.Option(help="Name of the data set.")] = "voc",
    classes: Annotated[
        str | None, typer.Option(help="Class names by comma, in the order of the labels.")
    ] = None,
    difficult: Annotated[DifficultPolicy, typer.Option(help="Objects marked difficult.")] = "keep",
    on_bad_box: Annotated[BadBoxPolicy, typer.Option(help="Boxes that cannot be used.")] = "error",
    on_bad_image: Annotated[
        BadImagePolicy, typer.Option(help="Images that cannot be used.")
    ] = "error",
    max_size: Annotated[
        int | None, typer.Option(min=1, help="Shrink the longer side to this many pixels.")
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Images of more pixels are not decoded.")
    ] = MAX_PIXELS,
    num_workers: Annotated[
        int | None,
        typer.Option(min=0, help="Ray tasks that write at once; 0: this process alone."),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what is there.")] = False,
) -> None:
    """Turn a Pascal VOC data set into shards."""

    def run(split: str, on_progress: OnProgress) -> PreparedDataset:
        return import_voc(
            source,
            join_uri(out, split),
            split=split,
            image_set=split,
            name=name,
            class_names=[c.strip() for c in classes.split(",")] if classes else None,
            difficult=difficult,
            on_bad_box=on_bad_box,
            on_bad_image=on_bad_image,
            max_size_px=max_size,
            overwrite=overwrite,
            on_progress=on_progress,
            max_pixels=max_pixels,
            map_shards=shard_mapper(num_workers),
        )

    chosen = [split.strip() for split in splits.split(",") if split.strip()]
    prepare_splits(out, {split: partial(run, split) for split in chosen})


if __name__ == "__main__":
    typer.run(main)
