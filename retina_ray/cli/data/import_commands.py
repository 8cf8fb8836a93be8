"""`retina-ray data import FORMAT ... --out DIR`: a data set of some format, prepared.

Each command finds out which splits there are and where, and has them written by `import_splits`.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from retina_ray.cli.data.import_options import with_import_options
from retina_ray.cli.data.import_splits import import_splits
from retina_ray.data.importers.coco import import_coco
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.importers.voc import import_voc
from retina_ray.data.importers.voc_xml import DifficultPolicy
from retina_ray.data.importers.yolo import import_yolo
from retina_ray.storage.uris import join_uri

import_app = typer.Typer(
    help="Turn a data set into shards, and check all of it on the way.", no_args_is_help=True
)

Out = Annotated[str, typer.Option(help="Folder or URI; each split goes below it.")]


@import_app.command()
@with_import_options
def coco(
    out: Out,
    source: Annotated[str | None, typer.Option(help="Folder or URI in COCO's own layout.")] = None,
    splits: Annotated[str, typer.Option(help="Splits of --source, by comma.")] = "train,val",
    year: Annotated[str, typer.Option(help="As it stands in the names of --source.")] = "2017",
    annotations: Annotated[str | None, typer.Option(help="One annotation file.")] = None,
    images: Annotated[str | None, typer.Option(help="The folder of its images.")] = None,
    split: Annotated[str, typer.Option(help="What to call the split of --annotations.")] = "train",
    *,
    options: ImportOptions,
) -> None:
    """Turn COCO, or another data set in its format, into shards."""
    places: dict[str, tuple[str, str]] = {}
    if source is not None and annotations is None and images is None:
        for part in _listed(splits):
            file = join_uri(source, f"annotations/instances_{part}{year}.json")
            places[part] = (file, join_uri(source, f"{part}{year}"))
    elif source is None and annotations is not None and images is not None:
        places[split] = (annotations, images)
    else:
        raise typer.BadParameter("give either --source, or --annotations together with --images")
    parts = {
        part: partial(import_coco, *place, join_uri(out, part), split=part, options=options)
        for part, place in places.items()
    }
    import_splits(out, parts)


@import_app.command()
@with_import_options
def voc(
    source: Annotated[
        str, typer.Option(help="Folder or URI with Annotations, JPEGImages, ImageSets.")
    ],
    out: Out,
    splits: Annotated[str, typer.Option(help="Files of ImageSets/Main, by comma.")] = "train,val",
    classes: Annotated[
        str | None, typer.Option(help="Class names by comma, in the order of the labels.")
    ] = None,
    difficult: Annotated[DifficultPolicy, typer.Option(help="Objects marked difficult.")] = "keep",
    *,
    options: ImportOptions,
) -> None:
    """Turn a Pascal VOC data set into shards."""
    run = partial(
        import_voc,
        source,
        class_names=[name.strip() for name in classes.split(",")] if classes else None,
        difficult=difficult,
        options=options,
    )
    parts = {split: partial(run, join_uri(out, split), split=split) for split in _listed(splits)}
    import_splits(out, parts)


@import_app.command()
@with_import_options
def yolo(
    data: Annotated[str, typer.Option(help="The data.yaml: a file or a URI.")],
    out: Out,
    splits: Annotated[str, typer.Option(help="Splits of data.yaml, by comma.")] = "train,val",
    root: Annotated[
        str | None, typer.Option(help="Where the data set lies, in place of `path` in data.yaml.")
    ] = None,
    *,
    options: ImportOptions,
) -> None:
    """Turn a YOLO data set into shards."""
    run = partial(import_yolo, data, root=root, options=options)
    parts = {split: partial(run, join_uri(out, split), split=split) for split in _listed(splits)}
    import_splits(out, parts)


def _listed(text: str) -> list[str]:
    """The names in a list by comma."""
    return [name.strip() for name in text.split(",") if name.strip()]
