"""Pascal VOC: an XML for each image, and text files that name the images of each split.

Layout: `ImageSets/Main/<set>.txt`, `Annotations/<id>.xml`, `JPEGImages/<id>.jpg` (or .jpeg, .png).

Conventions: VOC's pixels are 1-based and inclusive, so a box becomes XYXY `(xmin - 1, ymin - 1,
xmax, ymax)`, as detectron2 does. A file with `xmax <= xmin` or `ymax <= ymin` is taken for a
mis-click of the annotator (a box of zero size), though strictly `xmax == xmin` would be one pixel
wide. Files of tools that write 0-based pixels stick out by one pixel; that passes for rounding.

Image ids are 1, 2, ... in the order of the split's file, annotation ids 1, 2, ... in reading order,
category ids 1 to K in the order of the labels.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from retina_ray.data.importers.box_checks import ImportLog, repeated
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.importers.raw import RawDataset
from retina_ray.data.importers.voc_xml import (
    IMAGE_SUFFIXES,
    DifficultPolicy,
    parse_all,
    read_image,
    read_object,
)
from retina_ray.data.importers.writing.convert import OnProgress, write_images
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import Category
from retina_ray.errors import DataError, Fault, SourceFileError
from retina_ray.storage.source_folder import SourceFolder
from retina_ray.storage.uris import shown_uri


def import_voc(
    root: str | os.PathLike[str],
    out_uri: str | os.PathLike[str],
    *,
    split: str,
    image_set: str | None = None,
    class_names: Sequence[str] | None = None,
    difficult: DifficultPolicy = "keep",
    options: ImportOptions | None = None,
    on_progress: OnProgress | None = None,
) -> PreparedDataset:
    """Turn one split of a VOC data set into shards, and check all of it on the way.

    Args:
        root: the folder that holds Annotations, ImageSets and JPEGImages: a local path or a URI.
        out_uri: folder of the prepared set: a local path or a URI.
        split: its name in the prepared set, e.g. "train".
        image_set: `ImageSets/Main/<image_set>.txt`; None: the split's.
        class_names: in the order of the labels; None: all names in all XMLs of the root, sorted,
            so that the splits agree. An object of another class is a bad box.
        difficult: objects marked so: "keep" trains and evaluates them as any other (detectron2's
            practice in training); "crowd" marks them iscrowd, so that neither training nor COCO
            evaluation counts them (near to VOC's own evaluation); "drop" leaves them out.
        options: what all formats share; None: the defaults.
        on_progress: called with (images done, images in all).

    Returns:
        The prepared set; what was dropped or changed is in its `report`.

    Raises:
        DataError: everything that is wrong, at once.
        ValueError: `difficult` is none of the three.
    """
    log = ImportLog(options)
    raw = read_voc(
        root, image_set=image_set or split, class_names=class_names, difficult=difficult, log=log
    )
    return write_images(raw, out_uri, split=split, log=log, on_progress=on_progress)


def read_voc(
    root: str | os.PathLike[str],
    *,
    image_set: str,
    class_names: Sequence[str] | None = None,
    difficult: DifficultPolicy = "keep",
    log: ImportLog,
) -> RawDataset:
    """Read the annotations of one split of a VOC data set, without looking at an image.

    Args:
        root: the folder that holds Annotations, ImageSets and JPEGImages: a local path or a URI.
        image_set: `ImageSets/Main/<image_set>.txt`.
        class_names: as `import_voc` takes them.
        difficult: as `import_voc` takes it.
        log: receives the faults of the annotations' structure.

    Returns:
        The images in the order of the split's file, with their boxes.

    Raises:
        DataError: no such root or split.
        ValueError: `difficult` is none of the three.
    """
    if difficult not in ("keep", "crowd", "drop"):
        raise ValueError(f"difficult = {difficult!r}: expected 'keep', 'crowd' or 'drop'")
    folder = SourceFolder(root)
    ids = _read_image_set(folder, image_set, log)
    names = list(class_names) if class_names is not None else voc_class_names(root)
    labels = {class_name: label for label, class_name in enumerate(names)}
    images_folder = folder.child("JPEGImages")
    nested = any("/" in stem for stem in ids)
    files = set(images_folder.list_files(suffixes=IMAGE_SUFFIXES, recursive=nested))
    annotations = folder.child("Annotations")
    images = []
    next_annotation = 1
    for image_id, (stem, root_element) in enumerate(parse_all(annotations, ids), start=1):
        if isinstance(root_element, SourceFileError):
            fault = root_element
            log.bad_structure(Fault(fault.kind, fault.message, f"{stem}.xml", image_id))
            continue
        image = read_image(root_element, stem, image_id, files)
        for obj in root_element.findall("object"):
            box = read_object(obj, next_annotation, labels, difficult, log)
            next_annotation += 1
            if box is not None:
                image.boxes.append(box)
        images.append(image)
    if not names:
        log.bad_structure(Fault("no classes", f"no object in {annotations} has a name"))
    return RawDataset(
        images=images,
        categories=[Category(label + 1, class_name) for class_name, label in labels.items()],
        folder=images_folder,
        format="voc",
        source=f"{shown_uri(root)}, image set {image_set}",
    )


def voc_class_names(root: str | os.PathLike[str]) -> list[str]:
    """All class names in all XMLs of a root, sorted; XMLs that cannot be read are passed over.

    Returns:
        The names; the same for every split of the root.
    """
    folder = SourceFolder(root).child("Annotations")
    stems = [name.removesuffix(".xml") for name in folder.list_files(suffixes=[".xml"])]
    names = set()
    for _, annotation in parse_all(folder, stems):
        if isinstance(annotation, SourceFileError):
            continue  # the import names it, if its split uses it
        names.update((obj.findtext("name") or "").strip() for obj in annotation.findall("object"))
    return sorted(names - {""})


def _read_image_set(root: SourceFolder, image_set: str, log: ImportLog) -> list[str]:
    """Read the image ids of a split; those that repeat go to the log.

    Raises:
        DataError: no such root or split.
    """
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        if not root.is_dir(name):
            raise DataError(
                f"{root}: not a VOC data set: it has no folder {name} (expected Annotations, "
                "JPEGImages and ImageSets/Main)"
            )
    folder = root.child("ImageSets/Main")
    file = f"{image_set}.txt"
    try:
        text = folder.read_bytes(file).decode()
    except FileNotFoundError:
        stems = [name.removesuffix(".txt") for name in folder.list_files(suffixes=[".txt"])]
        found = ", ".join(stems) or "none"
        raise DataError(f"{folder}/{file}: no such image set; there are: {found}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}/{file}: cannot be read as text ({error})") from error
    ids = [line.split()[0] for line in text.splitlines() if line.strip()]
    counts = Counter(ids)
    for stem in repeated(ids):
        message = f"is named {counts[stem]} times in {file}"
        log.bad_structure(Fault("duplicate image id", message, stem, stem))
    if not ids:
        raise DataError(f"{folder}/{file}: names no image; the data set would be empty")
    return list(dict.fromkeys(ids))
