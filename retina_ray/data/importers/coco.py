"""COCO: one JSON with images, annotations and categories, beside a folder of images.

Conventions: `bbox` is XYWH in 0-based pixels and becomes XYXY; categories are sorted by their
original id and become labels 0 to K-1, so ids may have gaps (COCO's 80 classes use 1 to 90).
A `bbox` of five numbers is a rotated box as detectron2 has it (x_center, y_center, width, height,
and the angle in degrees counter-clockwise), and the set becomes one of rotated boxes.
Segmentations are not kept; the area (which sorts objects into small, medium and large) and iscrowd
are. The annotated bbox is kept in float64, so that evaluation against the prepared set gives the
figures of the original file.
"""

from __future__ import annotations

import os
from pathlib import PurePath

from retina_ray.data.importers.box_checks import ImportLog
from retina_ray.data.importers.coco_json import (
    has_rotated_boxes,
    load_json,
    read_annotations,
    read_categories,
    read_images,
)
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.importers.raw import RawDataset
from retina_ray.data.importers.writing.convert import OnProgress, write_images
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.errors import DataError, Fault
from retina_ray.storage.source_folder import SourceFolder
from retina_ray.storage.uris import shown_uri


def import_coco(
    annotations_json: str | os.PathLike[str],
    images_dir: str | os.PathLike[str],
    out_uri: str | os.PathLike[str],
    *,
    split: str,
    options: ImportOptions | None = None,
    on_progress: OnProgress | None = None,
) -> PreparedDataset:
    """Turn a COCO data set into shards, and check all of it on the way.

    Args:
        annotations_json: such as `instances_train2017.json`: a local path or a URI.
        images_dir: the folder that `file_name` is relative to: a local path or a URI.
        out_uri: folder of the prepared set: a local path or a URI.
        split: e.g. "train".
        options: what all formats share; None: the defaults.
        on_progress: called with (images done, images in all).

    Returns:
        The prepared set; what was dropped or changed is in its `report`.

    Raises:
        DataError: everything that is wrong, at once.
    """
    log = ImportLog(options)
    raw = read_coco(annotations_json, images_dir, log=log)
    return write_images(raw, out_uri, split=split, log=log, on_progress=on_progress)


def read_coco(
    annotations_json: str | os.PathLike[str],
    images_dir: str | os.PathLike[str],
    *,
    log: ImportLog,
) -> RawDataset:
    """Read the annotations of a COCO data set, without looking at an image.

    Args:
        annotations_json: such as `instances_train2017.json`: a local path or a URI.
        images_dir: the folder that `file_name` is relative to: a local path or a URI.
        log: receives the faults of the annotations' structure.

    Returns:
        The images in the order of the file, with their boxes.

    Raises:
        DataError: the file or the folder is missing, or the file is not COCO's JSON.
    """
    images_folder = SourceFolder(images_dir)
    if not images_folder.is_dir():
        raise DataError(f"{images_folder}: no such folder of images")
    path = os.fspath(annotations_json)
    file = PurePath(shown_uri(path)).name
    data = load_json(path)
    categories = read_categories(data["categories"], file, log)
    images = read_images(data["images"], file, log)
    labels = {category.id: label for label, category in enumerate(categories)}
    rotated = has_rotated_boxes(data["annotations"])
    read_annotations(data["annotations"], images, labels, file, log, rotated)
    if not categories:
        log.bad_structure(Fault("no categories", "holds no usable category", file))
    return RawDataset(
        images=list(images.values()),
        categories=categories,
        folder=images_folder,
        format="coco",
        source=f"{shown_uri(path)} with {shown_uri(images_dir)}",
        box_type="rotated" if rotated else "aligned",
    )
