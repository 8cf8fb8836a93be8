"""Prepare COCO: `python datasets/coco.py --source coco --out data/coco`.

The source holds `annotations/instances_{train,val}2017.json` and the folders `train2017/` and
`val2017/`, as unpacked from https://cocodataset.org/#download. For any other data set in COCO's
format name the two places: `--annotations FILE --images DIR --split train`.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer
from summary import prepare_splits

from retina_ray.data.images.files import MAX_PIXELS
from retina_ray.data.importers.box_checks import BadBoxPolicy, BadImagePolicy
from retina_ray.data.importers.coco import import_coco
from retina_ray.data.importers.convert import OnProgress
from retina_ray.data.importers.ray_tasks import shard_mapper
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.storage.uris import join_uri


def main(
    out: Annotated[str, typer.Option(help="Folder or URI; each split goes below it.")],
    source: Annotated[str | None, typer.Option(help="Folder or URI in COCO's own layout.")] = None,
    splits: Annotated[str, typer.Option(help="Splits of --source, by comma.")] = "train,val",
    year: Annotated[str, typer.Option(help="As it stands in the names of --source.")] = "2017",
    annotations: Annotated[str | None, typer.Option(help="One annotation file.")] = None,
    images: Annotated[str | None, typer.Option(help="The folder of its images.")] = None,
    split: Annotated[str, typer.Option(help="What to call the split of --annotations.")] = "train",
    name: Annotated[str, typer.Option(help="Name of the data set.")] = "coco",
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
    """Turn COCO, or another data set in its format, into shards."""
    places: dict[str, tuple[str, str]] = {}
    if source is not None and annotations is None and images is None:
        for part in (part.strip() for part in splits.split(",") if part.strip()):
            file = join_uri(source, f"annotations/instances_{part}{year}.json")
            places[part] = (file, join_uri(source, f"{part}{year}"))
    elif source is None and annotations is not None and images is not None:
        places[split] = (annotations, images)
    else:
        raise typer.BadParameter("give either --source, or --annotations together with --images")

    def run(part: str, on_progress: OnProgress) -> PreparedDataset:
        return import_coco(
            *places[part],
            join_uri(out, part),
            split=part,
            name=name,
            on_bad_box=on_bad_box,
            on_bad_image=on_bad_image,
            max_size_px=max_size,
            overwrite=overwrite,
            on_progress=on_progress,
            max_pixels=max_pixels,
            map_shards=shard_mapper(num_workers),
        )

    prepare_splits(out, {part: partial(run, part) for part in places})


if __name__ == "__main__":
    typer.run(main)
