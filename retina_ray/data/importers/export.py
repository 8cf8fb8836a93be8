"""Back out of shards: any prepared set as COCO's JSON, with its images where they are wanted.

Original ids of images, annotations and categories, names, areas and crowd flags come back exactly,
and `bbox` as it was annotated (float64). So importing what was exported gives the same records.
What the import left out or made smaller stays so; segmentations were never kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import PurePosixPath

import pyarrow.fs as pafs

from retina_ray.data.checks import repeated
from retina_ray.data.dataset_info import open_filesystem, shown_uri
from retina_ray.data.importers.convert import OnProgress
from retina_ray.data.schema import IMAGE_COLUMN, DataError, Fault
from retina_ray.data.shard_file import write_whole
from retina_ray.data.shards import PreparedDataset
from retina_ray.data.sources import SourceFileError, check_file_name

__all__ = ["export_coco"]


def export_coco(
    dataset: PreparedDataset,
    out_json: str | os.PathLike[str],
    *,
    images_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> int:
    """Write a prepared set as COCO's JSON.

    A set of rotated boxes has a `bbox` of five numbers, as `coco.py` takes them. The images are
    written as they are in the shards, under their original names: one that became smaller or of
    another format on import may hold other bytes than its name says, which decoders do not mind.

    Args:
        dataset: of any source.
        out_json: the file: a local path or a URI. It is written last, and as a whole.
        images_dir: write the images below this folder, a local path or a URI; None: no images.
        overwrite: replace files that are there.
        on_progress: called with (images written, images in all).

    Returns:
        The number of annotations.

    Raises:
        DataError: a file is there already, or a name leads out of the folder of images.
    """
    filesystem, path = open_filesystem(out_json)
    if not overwrite and filesystem.get_file_info(path).type != pafs.FileType.NotFound:
        raise DataError(f"{shown_uri(out_json)}: is there already; ask to overwrite it")
    if images_dir is not None:
        _write_images(dataset, images_dir, overwrite=overwrite, on_progress=on_progress)
    truth = dataset.ground_truth(box_type=dataset.box_type)
    info = dataset.info
    described = {"description": f"{info.name}, {info.split}", "source": info.source}
    text = json.dumps({"info": described, **truth}, allow_nan=False)
    filesystem.create_dir(path.rpartition("/")[0] or "/", recursive=True)
    write_whole(filesystem, path, text.encode())
    return len(truth["annotations"])


def _write_images(
    dataset: PreparedDataset,
    images_dir: str | os.PathLike[str],
    *,
    overwrite: bool,
    on_progress: OnProgress | None,
) -> None:
    """Write the images of a set below a folder.

    Raises:
        DataError: see `export_coco`; all faults of names at once.
    """
    filesystem, base = open_filesystem(images_dir)
    names = dataset.index()["file_name"].to_pylist()
    ids = dataset.index()["image_id"].to_pylist()
    faults = [
        Fault("file name twice", "two images have this name; only one file can", name)
        for name in repeated(names)
    ]
    for name, image_id in zip(names, ids, strict=True):
        try:
            check_file_name(name)
        except SourceFileError as fault:
            faults.append(Fault(fault.kind, fault.message, name, image_id))
    if not overwrite and not faults:
        found = filesystem.get_file_info([f"{base}/{name}" for name in names])
        faults += [
            Fault("file is there already", "ask to overwrite it, or give another folder", info.path)
            for info in found
            if info.type != pafs.FileType.NotFound
        ]
    if faults:
        raise DataError(faults)
    for folder in sorted({str(PurePosixPath(name).parent) for name in names}):
        filesystem.create_dir(f"{base}/{folder}", recursive=True)
    for done, (name, data) in enumerate(_images(dataset), start=1):
        write_whole(filesystem, f"{base}/{name}", data)
        if on_progress is not None:
            on_progress(done, len(names))


def _images(dataset: PreparedDataset) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of every image, in order."""
    for shard, info in enumerate(dataset.info.shards):
        for group in range(len(info.row_group_rows)):
            table = dataset.read_row_group(shard, group)
            for name, data in zip(table["file_name"], table[IMAGE_COLUMN], strict=True):
                yield name.as_py(), data.as_py()
