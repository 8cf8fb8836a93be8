"""The annotation files of Pascal VOC: an XML for each image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from typing import Literal
from xml.etree import ElementTree
from xml.parsers import expat

from retina_ray.data.importers.box_checks import MALFORMED_BOX, UNKNOWN_CLASS, ZERO_SIZE, ImportLog
from retina_ray.data.importers.raw import RawBox, RawImage
from retina_ray.errors import SourceFileError
from retina_ray.storage.source_folder import SourceFolder, map_ahead

DifficultPolicy = Literal["keep", "crowd", "drop"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def parse_all(
    folder: SourceFolder, stems: Sequence[str]
) -> Iterator[tuple[str, ElementTree.Element | SourceFileError]]:
    """Parse the XMLs of these names in order, reading a few ahead; a fault comes in its place."""

    def parse(stem: str) -> ElementTree.Element | SourceFileError:
        try:
            return _parse_xml(folder, f"{stem}.xml")
        except SourceFileError as fault:
            return fault

    yield from zip(stems, map_ahead(parse, stems, is_local=folder.is_local), strict=True)


def read_image(
    annotation: ElementTree.Element, stem: str, image_id: int, files: Set[str]
) -> RawImage:
    """Find the image file among those that there are, and read the annotated size."""
    names = (f"{stem}{suffix}" for suffix in (*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES)))
    file_name = next((n for n in names if n in files), f"{stem}.jpg")
    sizes = []
    for side in ("height", "width"):
        text = annotation.findtext(f"size/{side}")
        value = _number(text)
        # Many tools write 0 for "not known".
        sizes.append(int(value) if math.isfinite(value) and value > 0 else None)
    return RawImage(image_id, file_name, *sizes)


def read_object(
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


def _parse_xml(folder: SourceFolder, name: str) -> ElementTree.Element:
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
        data = folder.read_bytes(name)
        guard = expat.ParserCreate()
        guard.StartDoctypeDeclHandler = refuse
        guard.Parse(data, True)
        annotation = ElementTree.fromstring(data)
    except FileNotFoundError:
        raise SourceFileError("missing annotation", f"{folder}/{name} does not exist") from None
    except (OSError, expat.ExpatError, ElementTree.ParseError, ValueError) as error:
        if isinstance(error, SourceFileError):
            raise
        raise SourceFileError("malformed annotation", f"cannot be read as XML: {error}") from None
    if annotation.tag != "annotation":
        raise SourceFileError(
            "malformed annotation", f"the root is <{annotation.tag}>, not <annotation>"
        )
    return annotation
