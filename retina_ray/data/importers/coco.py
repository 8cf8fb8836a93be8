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

import json
import math
import os
from collections import Counter
from pathlib import PurePath
from typing import Any, TypeGuard

import numpy as np

from retina_ray.data.checks import (
    MALFORMED_BOX,
    BadBoxPolicy,
    BadImagePolicy,
    ImportLog,
    RawBox,
    RawImage,
    repeated,
)
from retina_ray.data.dataset_info import shown_uri
from retina_ray.data.image_files import MAX_PIXELS
from retina_ray.data.importers.convert import MapShards, OnProgress, map_in_process, write_images
from retina_ray.data.importers.raw import RawDataset
from retina_ray.data.rotated_boxes import enclosing_boxes
from retina_ray.data.schema import Category, DataError, Fault
from retina_ray.data.shards import PreparedDataset
from retina_ray.data.sources import SourceFolder, read_file

__all__ = ["import_coco", "read_coco"]


def import_coco(
    annotations_json: str | os.PathLike[str],
    images_dir: str | os.PathLike[str],
    out_uri: str | os.PathLike[str],
    *,
    split: str,
    name: str = "coco",
    on_bad_box: BadBoxPolicy = "error",
    on_bad_image: BadImagePolicy = "error",
    max_size_px: int | None = None,
    rows_per_group: int = 32,
    rows_per_shard: int = 2048,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    max_pixels: int = MAX_PIXELS,
    map_shards: MapShards = map_in_process,
) -> PreparedDataset:
    """Turn a COCO data set into shards, and check all of it on the way.

    Args:
        annotations_json: such as `instances_train2017.json`: a local path or a URI.
        images_dir: the folder that `file_name` is relative to: a local path or a URI.
        out_uri: folder of the prepared set: a local path or a URI.
        split: e.g. "train".
        name: of the data set.
        on_bad_box: "error", "drop" or "clip": see `retina_ray.data.checks`.
        on_bad_image: "error" or "drop": for images that cannot be used.
        max_size_px: re-encode larger images so that the longer side is at most this; boxes and
            areas are scaled with them. None: keep the files as they are.
        rows_per_group: images of a row group.
        rows_per_shard: images of a file.
        overwrite: replace a set that is there already.
        on_progress: called with (images done, images in all).
        max_pixels: images whose headers claim more are refused before they are decoded.
        map_shards: who writes the shards: this process, or `retina_ray.data.parallel`.

    Returns:
        The prepared set; what was dropped or changed is in its `report`.

    Raises:
        DataError: everything that is wrong, at once.
    """
    log = ImportLog(on_bad_box=on_bad_box, on_bad_image=on_bad_image)
    return write_images(
        read_coco(annotations_json, images_dir, log=log),
        out_uri,
        name=name,
        split=split,
        log=log,
        max_size_px=max_size_px,
        rows_per_group=rows_per_group,
        rows_per_shard=rows_per_shard,
        overwrite=overwrite,
        on_progress=on_progress,
        max_pixels=max_pixels,
        map_shards=map_shards,
    )


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
    data = _load_json(path)
    categories = _read_categories(data["categories"], file, log)
    images = _read_images(data["images"], file, log)
    labels = {category.id: label for label, category in enumerate(categories)}
    rotated = _has_rotated_boxes(data["annotations"])
    _read_annotations(data["annotations"], images, labels, file, log, rotated)
    if not categories:
        log.bad_structure(Fault("no categories", "holds no usable category", file))
    return RawDataset(
        images=list(images.values()),
        categories=categories,
        folder=images_folder,
        source=f"{shown_uri(path)} with {shown_uri(images_dir)}",
        box_type="rotated" if rotated else "aligned",
    )


def _load_json(path: str) -> dict[str, list[dict[str, Any]]]:
    """Read the file and check its outline.

    Raises:
        DataError: missing, not JSON, or without one of the three lists.
    """
    shown = shown_uri(path)
    try:
        data = json.loads(read_file(path))
    except FileNotFoundError:
        raise DataError(f"{shown}: no such annotation file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{shown}: cannot be read as JSON ({error})") from error
    wanted = ("images", "annotations", "categories")
    if not isinstance(data, dict) or any(not isinstance(data.get(key), list) for key in wanted):
        found = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise DataError(
            f"{shown}: not a COCO annotation file: expected an object with the lists "
            f"{', '.join(wanted)}, found {found}"
        )
    faults = [
        Fault(
            f"malformed entry in {key}",
            f"{key}[{i}] is {entry!r:.60}, expected an object",
            PurePath(shown).name,
        )
        for key in wanted
        for i, entry in enumerate(data[key])
        if not isinstance(entry, dict)
    ]
    if faults:
        raise DataError(faults)
    return data


def _read_categories(entries: list[dict], file: str, log: ImportLog) -> list[Category]:
    """Sort the categories by id; ids and names that repeat or are missing go to the log."""
    good = []
    for entry in entries:
        id_, name = entry.get("id"), entry.get("name")
        if _is_int(id_) and isinstance(name, str) and name:
            good.append(Category(id_, name))
        else:
            message = f"category {entry!r:.80} needs an integer id and a name"
            log.bad_structure(Fault("malformed category", message, file))
    for what in ("id", "name"):
        for value in repeated(getattr(category, what) for category in good):
            message = f"category {what} {value!r} is used more than once"
            log.bad_structure(Fault(f"duplicate category {what}", message, file))
    unique = {category.id: category for category in good}
    names = {category.name: category for category in unique.values()}
    return sorted(names.values(), key=lambda category: category.id)


def _read_images(entries: list[dict], file: str, log: ImportLog) -> dict[int, RawImage]:
    """Read the images by id; ids that repeat and entries that cannot be used go to the log."""
    counts = Counter(entry["id"] for entry in entries if _is_int(entry.get("id")))
    images: dict[int, RawImage] = {}
    for entry in entries:
        id_, name = entry.get("id"), entry.get("file_name")
        height, width = entry.get("height"), entry.get("width")
        sizes_fine = all(v is None or (_is_int(v) and v >= 0) for v in (height, width))
        if not _is_int(id_) or not isinstance(name, str) or not sizes_fine:
            message = (
                f"image {entry!r:.120} needs an integer id, a file_name, and an integer height and "
                "width where they are given"
            )
            shown = name if isinstance(name, str) else file
            log.bad_structure(Fault("malformed image entry", message, shown, id_))
        elif id_ in images:
            message = f"image id {id_} is used {counts[id_]} times; ids must be unique"
            log.bad_structure(Fault("duplicate image id", message, name, id_))
        else:
            images[id_] = RawImage(id_, name, height or None, width or None)
    return images


def _read_annotations(
    entries: list[dict],
    images: dict[int, RawImage],
    labels: dict[int, int],
    file: str,
    log: ImportLog,
    rotated: bool,
) -> None:
    """Hang each annotation on its image; those without image or category go to the log."""
    counts = Counter(entry["id"] for entry in entries if _is_int(entry.get("id")))
    seen: set[int] = set()
    for entry in entries:
        id_, image_id, category_id = (entry.get(k) for k in ("id", "image_id", "category_id"))
        image = images.get(image_id) if _is_int(image_id) else None
        where = (image.file_name if image else file, image_id, id_)
        if not _is_int(id_):
            message = f"annotation {entry!r:.80} needs an integer id"
            log.bad_structure(Fault("malformed annotation", message, *where))
            continue
        if id_ in seen:
            message = f"annotation id {id_} is used {counts[id_]} times; ids must be unique"
            log.bad_structure(Fault("duplicate annotation id", message, *where))
        seen.add(id_)
        if image is None:
            message = f"image id {image_id!r} is not among the images"
            log.bad_structure(Fault("annotation of an unknown image", message, *where))
        label = labels.get(category_id) if _is_int(category_id) else None
        if label is None:
            message = f"category id {category_id!r} is not among the categories"
            log.bad_structure(Fault("annotation of an unknown category", message, *where))
        if image is not None and label is not None:
            image.boxes.append(_read_box(entry, id_, label, log, rotated))


def _has_rotated_boxes(entries: list[dict]) -> bool:
    """Whether any annotation has a bbox of five numbers; then all must."""
    boxes = (entry.get("bbox") for entry in entries)
    return any(isinstance(bbox, list) and len(bbox) == 5 for bbox in boxes)


def _read_box(entry: dict, id_: int, label: int, log: ImportLog, rotated: bool) -> RawBox:
    """Read one annotation; a bbox that is not four (five) numbers becomes a problem of the box."""
    bbox, crowd = entry.get("bbox"), bool(entry.get("iscrowd", 0))
    count = 5 if rotated else 4
    if not isinstance(bbox, list) or len(bbox) != count or not all(_is_number(v) for v in bbox):
        nothing = (math.nan, math.nan, math.nan, math.nan)
        wanted = "four numbers (x, y, width, height)"
        if rotated:
            wanted = "five numbers (x_center, y_center, width, height, angle), as others here have"
        problem = (MALFORMED_BOX, f"bbox {bbox!r:.80} is not {wanted}")
        return RawBox(id_, label, nothing, nothing, 0.0, crowd, problem)
    x, y, w, h = (float(v) for v in bbox[:4])
    area = entry.get("area")
    if not _is_number(area) or not math.isfinite(area) or area < 0:
        area = w * h
        log.counts["areas_taken_from_boxes"] += 1
    if not rotated:
        return RawBox(id_, label, (x, y, x + w, y + h), (x, y, w, h), float(area), crowd)
    turned = tuple(float(v) for v in bbox)
    x0, y0, x1, y1 = enclosing_boxes(np.array([turned]))[0].tolist()
    xywh = (x0, y0, x1 - x0, y1 - y0)
    return RawBox(id_, label, (x0, y0, x1, y1), xywh, float(area), crowd, rotated=turned)


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
