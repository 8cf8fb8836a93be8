"""YOLO: a text file of boxes for each image, and a `data.yaml` that names splits and classes.

The places are found by Ultralytics' rules: `train`, `val` and `test` are each a folder, a list of
folders, or a text file of image names, relative to `path`; the labels of `images/a/b.jpg` are in
`labels/a/b.txt` (the last folder called `images` counts; without one they lie beside the image).
A line is `class cx cy w h`, shares of the width and the height of the image as it is looked at,
with its EXIF orientation applied. A line of more numbers is a polygon, `class x y x y x y ...`, and
becomes the box around it. An empty file, or none, means an image without boxes.

Lines that say the same twice are read once, as Ultralytics does it. Otherwise a bad line is a fault
of its own, where Ultralytics leaves out the whole image.

Image ids are 1, 2, ... in the order of the names, annotation ids 1, 2, ... in reading order,
category ids are YOLO's class numbers, 0 to K-1.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial

from retina_ray.data.images.headers import read_header
from retina_ray.data.importers.box_checks import ImportLog
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.importers.raw import RawDataset, RawImage
from retina_ray.data.importers.writing.convert import OnProgress, write_images
from retina_ray.data.importers.yolo_labels import LabelReader, labels_of
from retina_ray.data.importers.yolo_yaml import list_images, read_data_yaml
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import Category
from retina_ray.errors import Fault, SourceFileError
from retina_ray.storage.source_folder import SourceFolder, map_ahead
from retina_ray.storage.uris import shown_uri

_HEAD_BYTES = 1 << 16


def import_yolo(
    data_yaml: str | os.PathLike[str],
    out_uri: str | os.PathLike[str],
    *,
    split: str,
    root: str | os.PathLike[str] | None = None,
    options: ImportOptions | None = None,
    on_progress: OnProgress | None = None,
) -> PreparedDataset:
    """Turn one split of a YOLO data set into shards, and check all of it on the way.

    Args:
        data_yaml: the data set's description: a local path or a URI.
        out_uri: folder of the prepared set: a local path or a URI.
        split: "train", "val" or "test", as in the description and in the prepared set.
        root: where the data set lies; None: where the description's `path` says.
        options: what all formats share; None: the defaults.
        on_progress: called with (images done, images in all).

    Returns:
        The prepared set; what was dropped or changed is in its `report`.

    Raises:
        DataError: everything that is wrong, at once.
    """
    log = ImportLog(options)
    raw = read_yolo(data_yaml, split=split, root=root, log=log)
    return write_images(raw, out_uri, split=split, log=log, on_progress=on_progress)


def read_yolo(
    data_yaml: str | os.PathLike[str],
    *,
    split: str,
    root: str | os.PathLike[str] | None = None,
    log: ImportLog,
) -> RawDataset:
    """Read the labels of one split of a YOLO data set, and the headers of its images.

    Args:
        data_yaml: the data set's description: a local path or a URI.
        split: "train", "val" or "test".
        root: where the data set lies; None: where the description's `path` says.
        log: receives the faults of the labels' structure.

    Returns:
        The images in the order of their names, with their boxes in pixels. An image whose header
        cannot be read has no boxes: it cannot be used, and the import says so.

    Raises:
        DataError: the description cannot be used, or names no image.
    """
    description = read_data_yaml(data_yaml, root=root)
    names = list_images(description, split, log)
    images = []
    labels = LabelReader(description.class_names, log, keypoint_values=description.keypoint_values)
    read = partial(_read_files, description.folder)
    found = map_ahead(read, names, is_local=description.folder.is_local)
    for image_id, (name, files) in enumerate(zip(names, found, strict=True), start=1):
        height, width = files.size or (None, None)
        image = RawImage(image_id, name, height, width)
        if isinstance(files.labels, SourceFileError):
            fault = files.labels
            log.bad_structure(Fault(fault.kind, fault.message, labels_of(name), image_id))
        elif files.labels is None:
            log.counts["images_without_label_file"] += 1
        elif files.size is not None:
            image.boxes.extend(labels.read(files.labels, labels_of(name), *files.size))
        images.append(image)
    if not any(entry.lower().endswith(".txt") for entry in description.splits[split]):
        _count_orphans(description.folder, names, log)
    return RawDataset(
        images=images,
        categories=[Category(i, name) for i, name in enumerate(description.class_names)],
        folder=description.folder,
        format="yolo",
        source=f"{shown_uri(data_yaml)}, split {split}",
    )


def _count_orphans(folder: SourceFolder, names: list[str], log: ImportLog) -> None:
    """Count labels whose image is missing, or of a format that is passed over.

    Only where the split is made of folders: beside the images of a list, there may be others.
    """
    expected = {labels_of(name) for name in names}
    places = {name.rpartition("/")[0] for name in expected}
    found = {name for place in places for name in folder.list_files(place, suffixes=[".txt"])}
    orphans = {name for name in found - expected if not name.endswith("classes.txt")}
    if orphans:
        log.counts["label_files_without_image"] += len(orphans)


@dataclass(frozen=True)
class _Files:
    """What was read for one image: its size as displayed, and the text of its labels."""

    size: tuple[int, int] | None
    labels: str | SourceFileError | None


def _read_files(folder: SourceFolder, name: str) -> _Files:
    """Read an image's header and its labels; whatever is wrong with the image comes out later."""
    size = None
    try:
        size = _shown_size(folder.read_bytes(name, _HEAD_BYTES))
        if size is None:  # a long EXIF block or a colour profile comes before it
            size = _shown_size(folder.read_bytes(name))
    except (SourceFileError, OSError):
        pass
    try:
        return _Files(size, folder.read_bytes(labels_of(name)).decode())
    except FileNotFoundError:
        return _Files(size, None)
    except SourceFileError as fault:
        return _Files(size, fault)
    except (OSError, ValueError) as error:
        fault = SourceFileError("unreadable labels", f"cannot be read as text ({error})")
        return _Files(size, fault)


def _shown_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) with the orientation applied, where the header says it."""
    header = read_header(data)
    height, width = header.shown_size() if header is not None else (None, None)
    return None if height is None or width is None else (height, width)
