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

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree
from xml.parsers import expat

from retina_ray.data.checks import (
    MALFORMED_BOX,
    UNKNOWN_CLASS,
    ZERO_SIZE,
    BadBoxPolicy,
    BadImagePolicy,
    ImportLog,
    RawBox,
    RawImage,
    repeated,
)
from retina_ray.data.image_files import SourceFileError, resolve_inside
from retina_ray.data.importers.convert import OnProgress, write_images
from retina_ray.data.schema import Category, DataError, Fault
from retina_ray.data.shards import PreparedDataset

__all__ = ["DifficultPolicy", "import_voc", "voc_class_names"]

DifficultPolicy = Literal["keep", "crowd", "drop"]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def import_voc(
    root: str | os.PathLike[str],
    out_uri: str | os.PathLike[str],
    *,
    split: str,
    image_set: str = "train",
    name: str = "voc",
    class_names: Sequence[str] | None = None,
    difficult: DifficultPolicy = "keep",
    on_bad_box: BadBoxPolicy = "error",
    on_bad_image: BadImagePolicy = "error",
    max_size_px: int | None = None,
    rows_per_group: int = 32,
    rows_per_shard: int = 2048,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> PreparedDataset:
    """Turn one split of a VOC data set into shards, and check all of it on the way.

    Args:
        root: the folder that holds Annotations, ImageSets and JPEGImages.
        out_uri: folder of the prepared set: a local path or a URI.
        split: its name in the prepared set, e.g. "train".
        image_set: `ImageSets/Main/<image_set>.txt`.
        name: of the data set.
        class_names: in the order of the labels; None: all names in all XMLs of the root, sorted,
            so that the splits agree. An object of another class is a bad box.
        difficult: objects marked so: "keep" trains and evaluates them as any other (detectron2's
            practice in training); "crowd" marks them iscrowd, so that neither training nor COCO
            evaluation counts them (near to VOC's own evaluation); "drop" leaves them out.
        on_bad_box: "error", "drop" or "clip": see `retina_ray.data.checks`.
        on_bad_image: "error" or "drop": for images that cannot be used.
        max_size_px: re-encode larger images so that the longer side is at most this; boxes and
            areas are scaled with them. None: keep the files as they are.
        rows_per_group: images of a row group.
        rows_per_shard: images of a file.
        overwrite: replace a set that is there already.
        on_progress: called with (images done, images in all).

    Returns:
        The prepared set; what was dropped or changed is in its `report`.

    Raises:
        DataError: everything that is wrong, at once.
        ValueError: `difficult` is none of the three.
    """
    if difficult not in ("keep", "crowd", "drop"):
        raise ValueError(f"difficult = {difficult!r}: expected 'keep', 'crowd' or 'drop'")
    root = Path(root)
    log = ImportLog(on_bad_box=on_bad_box, on_bad_image=on_bad_image)
    ids = _read_image_set(root, image_set, log)
    names = list(class_names) if class_names is not None else voc_class_names(root)
    labels = {class_name: label for label, class_name in enumerate(names)}
    images = []
    next_annotation = 1
    for image_id, stem in enumerate(ids, start=1):
        image = _read_image(root, stem, image_id, log)
        if image is None:
            continue
        raw, annotation = image
        boxes = []
        for obj in annotation.findall("object"):
            box = _read_object(obj, next_annotation, labels, difficult, log)
            next_annotation += 1
            if box is not None:
                boxes.append(box)
        images.append(RawImage(image_id, raw.file_name, raw.height, raw.width, boxes))
    if not names:
        log.bad_structure(Fault("no classes", f"no object in {root / 'Annotations'} has a name"))
        raise DataError(log.faults)
    return write_images(
        images,
        out_uri,
        images_dir=root / "JPEGImages",
        name=name,
        split=split,
        source=f"{root}, image set {image_set}",
        categories=[Category(label + 1, class_name) for class_name, label in labels.items()],
        log=log,
        max_size_px=max_size_px,
        rows_per_group=rows_per_group,
        rows_per_shard=rows_per_shard,
        overwrite=overwrite,
        on_progress=on_progress,
    )


def voc_class_names(root: str | os.PathLike[str]) -> list[str]:
    """All class names in all XMLs of a root, sorted; XMLs that cannot be read are passed over.

    Args:
        root: the folder that holds Annotations.

    Returns:
        The names; the same for every split of the root.
    """
    names = set()
    for path in sorted((Path(root) / "Annotations").glob("*.xml")):
        try:
            annotation = _parse_xml(path)
        except SourceFileError:
            continue  # the import names it, if its split uses it
        names.update((obj.findtext("name") or "").strip() for obj in annotation.findall("object"))
    return sorted(names - {""})


def _read_image_set(root: Path, image_set: str, log: ImportLog) -> list[str]:
    """Read the image ids of a split; those that repeat go to the log.

    Raises:
        DataError: no such root or split.
    """
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        if not (root / folder).is_dir():
            raise DataError(
                f"{root}: not a VOC data set: it has no folder {folder} (expected Annotations, "
                "JPEGImages and ImageSets/Main)"
            )
    path = root / "ImageSets" / "Main" / f"{image_set}.txt"
    if not path.is_file():
        found = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))) or "none"
        raise DataError(f"{path}: no such image set; there are: {found}")
    ids = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    for stem in repeated(ids):
        message = f"is named {ids.count(stem)} times in {path.name}"
        log.bad_structure(Fault("duplicate image id", message, stem, stem))
    if not ids:
        raise DataError(f"{path}: names no image; the data set would be empty")
    return list(dict.fromkeys(ids))


def _read_image(
    root: Path, stem: str, image_id: int, log: ImportLog
) -> tuple[RawImage, ElementTree.Element] | None:
    """Find the image file and parse the XML; None where there is no usable XML."""
    images_dir = root / "JPEGImages"
    try:
        path = resolve_inside(root / "Annotations", f"{stem}.xml")
        annotation = _parse_xml(path)
    except SourceFileError as fault:
        log.bad_structure(Fault(fault.kind, fault.message, f"{stem}.xml", image_id))
        return None
    names = (f"{stem}{suffix}" for suffix in _SUFFIXES)
    file_name = next((n for n in names if (images_dir / n).exists()), f"{stem}.jpg")
    sizes = []
    for side in ("height", "width"):
        text = annotation.findtext(f"size/{side}")
        value = _number(text)
        # Many tools write 0 for "not known".
        sizes.append(int(value) if math.isfinite(value) and value > 0 else None)
    return RawImage(image_id, file_name, *sizes), annotation


def _read_object(
    obj: ElementTree.Element,
    annotation_id: int,
    labels: dict[str, int],
    difficult: DifficultPolicy,
    log: ImportLog,
) -> RawBox | None:
    """Read one object; None where it is difficult and those are left out."""
    is_difficult = _number(obj.findtext("difficult")) == 1
    if is_difficult:
        log.counts["difficult_objects"] += 1
        if difficult == "drop":
            return None
    class_name = (obj.findtext("name") or "").strip()
    corners = [_number(obj.findtext(f"bndbox/{corner}")) for corner in _CORNERS]
    xmin, ymin, xmax, ymax = corners
    problem = None
    if class_name not in labels:
        message = f"class {class_name!r} is not one of {', '.join(labels)}"
        problem = (UNKNOWN_CLASS, message)
    elif not all(math.isfinite(value) for value in corners):
        shown = ", ".join(f"{c} {obj.findtext(f'bndbox/{c}')!r}" for c in _CORNERS)
        problem = (MALFORMED_BOX, f"bndbox ({shown}) is not four numbers")
    elif xmax <= xmin or ymax <= ymin:
        message = f"bndbox ({xmin:g}, {ymin:g}, {xmax:g}, {ymax:g}) has width {xmax - xmin:g}"
        problem = (ZERO_SIZE, f"{message}, height {ymax - ymin:g}")
    x0, y0 = xmin - 1, ymin - 1
    width, height = xmax - x0, ymax - y0
    return RawBox(
        annotation_id=annotation_id,
        label=labels.get(class_name, -1),
        xyxy=(x0, y0, xmax, ymax),
        xywh=(x0, y0, width, height),
        area=width * height,
        iscrowd=is_difficult and difficult == "crowd",
        problem=problem,
    )


def _number(text: str | None) -> float:
    """Read a number; NaN where there is none."""
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def _parse_xml(path: Path) -> ElementTree.Element:
    """Parse an XML file without a document type, so without entities of any kind.

    Raises:
        SourceFileError: missing, malformed, not an annotation, or with a DOCTYPE (entities may
            expand without bound or name files outside; VOC needs none).
    """

    def refuse(*_: object) -> None:
        raise SourceFileError(
            "annotation with a DOCTYPE", "document types are refused; remove the DOCTYPE"
        )

    try:
        data = path.read_bytes()
        guard = expat.ParserCreate()
        guard.StartDoctypeDeclHandler = refuse
        guard.Parse(data, True)
        annotation = ElementTree.fromstring(data)
    except FileNotFoundError:
        raise SourceFileError("missing annotation", f"{path} does not exist") from None
    except (OSError, expat.ExpatError, ElementTree.ParseError, ValueError) as error:
        if isinstance(error, SourceFileError):
            raise
        raise SourceFileError("malformed annotation", f"cannot be read as XML: {error}") from None
    if annotation.tag != "annotation":
        raise SourceFileError(
            "malformed annotation", f"the root is <{annotation.tag}>, not <annotation>"
        )
    return annotation
