"""The annotation file of COCO: one JSON with images, annotations and categories.

Somebody else wrote it, so any value may be of any kind and size: each is looked at before it is
taken for what it should be.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import PurePath
from typing import Any, TypeGuard

import numpy as np

from retina_ray.data.importers.box_checks import MALFORMED_BOX, ImportLog, repeated
from retina_ray.data.importers.raw import RawBox, RawImage
from retina_ray.data.prepared.record_checks import is_id
from retina_ray.data.prepared.schema import Category
from retina_ray.data.rotated_boxes import enclosing_boxes
from retina_ray.errors import DataError, Fault
from retina_ray.storage.files import read_bytes
from retina_ray.storage.uris import shown_uri

_AN_ID = "an integer id of at most 64 bits"


def load_json(path: str) -> dict[str, list[dict[str, Any]]]:
    """Read the file and check its outline.

    Raises:
        DataError: missing, not JSON, or without one of the three lists.
    """
    shown = shown_uri(path)
    try:
        data = json.loads(read_bytes(path))
    except FileNotFoundError:
        raise DataError(f"{shown}: no such annotation file") from None
    except RecursionError:
        raise DataError(
            f"{shown}: cannot be read as JSON: brackets within brackets, hundreds deep, "
            "which no annotations need; have the file written again"
        ) from None
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
            f"{key}[{i}] is {_shown(entry, 60)}, expected an object",
            PurePath(shown).name,
        )
        for key in wanted
        for i, entry in enumerate(data[key])
        if not isinstance(entry, dict)
    ]
    if faults:
        raise DataError(faults)
    return data


def read_categories(entries: list[dict], file: str, log: ImportLog) -> list[Category]:
    """Sort the categories by id; ids and names that repeat or are missing go to the log."""
    good = []
    for entry in entries:
        id_, name = entry.get("id"), entry.get("name")
        if is_id(id_) and _is_text(name) and name:
            good.append(Category(id_, name))
        else:
            message = f"category {_shown(entry)} needs {_AN_ID} and a name"
            log.bad_structure(Fault("malformed category", message, file))
    for what in ("id", "name"):
        for value in repeated(getattr(category, what) for category in good):
            message = f"category {what} {value!r} is used more than once"
            log.bad_structure(Fault(f"duplicate category {what}", message, file))
    unique = {category.id: category for category in good}
    names = {category.name: category for category in unique.values()}
    return sorted(names.values(), key=lambda category: category.id)


def read_images(entries: list[dict], file: str, log: ImportLog) -> dict[int, RawImage]:
    """Read the images by id; ids that repeat and entries that cannot be used go to the log."""
    counts = Counter(entry["id"] for entry in entries if is_id(entry.get("id")))
    images: dict[int, RawImage] = {}
    for entry in entries:
        id_, name = entry.get("id"), entry.get("file_name")
        height, width = entry.get("height"), entry.get("width")
        sizes_fine = all(v is None or (is_id(v) and v >= 0) for v in (height, width))
        if not is_id(id_) or not _is_text(name) or not sizes_fine:
            message = (
                f"image {_shown(entry, 120)} needs {_AN_ID}, a file_name, and an integer height "
                "and width where they are given"
            )
            shown = name if _is_text(name) else file
            log.bad_structure(Fault("malformed image entry", message, shown, _named_id(id_)))
        elif id_ in images:
            message = f"image id {id_} is used {counts[id_]} times; ids must be unique"
            log.bad_structure(Fault("duplicate image id", message, name, id_))
        else:
            images[id_] = RawImage(id_, name, height or None, width or None)
    return images


def read_annotations(
    entries: list[dict],
    images: dict[int, RawImage],
    labels: dict[int, int],
    file: str,
    log: ImportLog,
    rotated: bool,
) -> None:
    """Hang each annotation on its image; those without image or category go to the log."""
    counts = Counter(entry["id"] for entry in entries if is_id(entry.get("id")))
    seen: set[int] = set()
    for entry in entries:
        id_, image_id, category_id = (entry.get(k) for k in ("id", "image_id", "category_id"))
        image = images.get(image_id) if is_id(image_id) else None
        where = (image.file_name if image else file, _named_id(image_id), _named_id(id_))
        if not is_id(id_):
            message = f"annotation {_shown(entry)} needs {_AN_ID}"
            log.bad_structure(Fault("malformed annotation", message, *where))
            continue
        if id_ in seen:
            message = f"annotation id {id_} is used {counts[id_]} times; ids must be unique"
            log.bad_structure(Fault("duplicate annotation id", message, *where))
        seen.add(id_)
        if image is None:
            message = f"image id {_shown(image_id)} is not among the images"
            log.bad_structure(Fault("annotation of an unknown image", message, *where))
        label = labels.get(category_id) if is_id(category_id) else None
        if label is None:
            message = f"category id {_shown(category_id)} is not among the categories"
            log.bad_structure(Fault("annotation of an unknown category", message, *where))
        if image is not None and label is not None:
            image.boxes.append(_read_box(entry, id_, label, log, rotated))


def has_rotated_boxes(entries: list[dict]) -> bool:
    """Whether any annotation has a bbox of five numbers; then all must."""
    boxes = (entry.get("bbox") for entry in entries)
    return any(isinstance(bbox, list) and len(bbox) == 5 for bbox in boxes)


def _read_box(entry: dict, id_: int, label: int, log: ImportLog, rotated: bool) -> RawBox:
    """Read one annotation; a bbox that is not four (five) numbers becomes a problem of the box."""
    bbox, crowd = entry.get("bbox"), bool(entry.get("iscrowd", 0))
    values = [_number(value) for value in bbox] if isinstance(bbox, list) else []
    numbers = tuple(value for value in values if value is not None)
    count = 5 if rotated else 4
    if not len(numbers) == len(values) == count:
        nothing = (math.nan, math.nan, math.nan, math.nan)
        wanted = "four numbers (x, y, width, height)"
        if rotated:
            wanted = "five numbers (x_center, y_center, width, height, angle), as others here have"
        problem = (MALFORMED_BOX, f"bbox {_shown(bbox)} is not {wanted}")
        return RawBox(id_, label, nothing, nothing, 0.0, crowd, problem)
    x, y, w, h = numbers[:4]
    area = _number(entry.get("area"))
    if area is None or not math.isfinite(area) or area < 0:
        area = w * h
        log.counts["areas_taken_from_boxes"] += 1
    if not rotated:
        return RawBox(id_, label, (x, y, x + w, y + h), (x, y, w, h), area, crowd)
    x0, y0, x1, y1 = enclosing_boxes(np.array([numbers]))[0].tolist()
    xywh = (x0, y0, x1 - x0, y1 - y0)
    return RawBox(id_, label, (x0, y0, x1, y1), xywh, area, crowd, rotated=numbers)


def _number(value: Any) -> float | None:
    """A number as a float, infinite where no float is as large; None for what is no number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # JSON's integers have no limit
        return math.inf if value > 0 else -math.inf


def _is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is a text that can be written: JSON may hold halves of characters."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _named_id(value: Any) -> int | str | None:
    """What stands in the place of an id, where it can name anything in a message."""
    return value if is_id(value) or _is_text(value) else None


def _shown(value: Any, length: int = 80) -> str:
    """The start of a value, for messages."""
    try:
        return f"{value!r:.{length}}"
    except RecursionError:  # it was just not too deep to be read
        return "of brackets within brackets, hundreds deep,"
