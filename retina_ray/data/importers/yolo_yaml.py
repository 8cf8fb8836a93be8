"""YOLO's `data.yaml`: where the splits are, and what the classes are called.

Only plain values are read (see `plain_yaml`), and nothing is downloaded.
"""

from __future__ import annotations

import math
import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from retina_ray.data.importers.box_checks import ImportLog, repeated
from retina_ray.data.importers.plain_yaml import load_plain_yaml
from retina_ray.errors import DataError, Fault, SourceFileError
from retina_ray.storage.source_folder import SourceFolder
from retina_ray.storage.uris import join_uri, parent_uri, shown_uri

IMAGE_SUFFIXES = (".bmp", ".dng", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp")
"""What counts as an image in a folder; Ultralytics' list without formats that need more software.
"""

_SPLITS = ("train", "val", "test")
_MAX_UNNAMED = 100_000  # classes without names: more are no list, but a slip


@dataclass(frozen=True)
class YoloDescription:
    """The content of a `data.yaml`.

    Attributes:
        file: where it was read from, for messages.
        folder: of the data set, which all names are relative to.
        class_names: in the order of the labels.
        splits: for each split, the folders or text files that name its images.
        keypoint_values: numbers that follow each box in a set of poses, else 0.
    """

    file: str
    folder: SourceFolder
    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[str, ...]]
    keypoint_values: int = 0


def read_data_yaml(
    data_yaml: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None
) -> YoloDescription:
    """Read a `data.yaml`.

    Args:
        data_yaml: a local path or a URI.
        root: where the data set lies; None: where its `path` says, else its own folder.

    Raises:
        DataError: missing, not plain YAML, or what it says does not fit together: all at once.
    """
    file = shown_uri(data_yaml)
    data = load_plain_yaml(data_yaml, file)
    if not isinstance(data, dict):
        raise DataError(f"{file}: not a YOLO description: expected names, train and val")
    faults: list[Fault] = []
    names = _class_names(data, file, faults)
    splits = _splits(data, file, faults)
    keypoints = data.get("kpt_shape", [0])
    if not isinstance(keypoints, list) or not all(isinstance(v, int) for v in keypoints):
        message = f"kpt_shape {keypoints!r:.60} is not a list of two whole numbers"
        faults.append(Fault("malformed data.yaml", message, file))
        keypoints = [0]
    if faults:
        raise DataError(faults)
    folder = SourceFolder(root) if root is not None else _folder_of(data.get("path"), data_yaml)
    if not folder.is_dir():
        raise DataError(
            f"{file}: the data set's folder {folder} does not exist; mend `path`, or name the "
            "folder (--root)"
        )
    return YoloDescription(file, folder, tuple(names), splits, math.prod(keypoints))


def list_images(description: YoloDescription, split: str, log: ImportLog) -> list[str]:
    """The images of a split, sorted; names that repeat or leave the folder go to the log.

    Returns:
        Names relative to the data set's folder.

    Raises:
        DataError: the split is not described, a folder or list is missing, or there is no image.
    """
    file = description.file
    if split not in description.splits:
        found = ", ".join(description.splits) or "none"
        raise DataError(f"{file}: describes no split {split!r}; there are: {found}")
    names: list[str] = []
    for entry in description.splits[split]:
        names += _images_of(description, entry, split, log)
    for name in repeated(names):
        message = f"is named {names.count(name)} times in split {split}"
        log.bad_structure(Fault("duplicate image", message, name))
    if not names:
        entries = ", ".join(description.splits[split])
        raise DataError(f"{file}: split {split} ({entries}) holds no image")
    return sorted(set(names))


def _class_names(data: Mapping[str, Any], file: str, faults: list[Fault]) -> list[str]:
    """The class names: a list, or a mapping of 0 to K-1; `nc` must agree."""

    def bad(message: str) -> list[str]:
        faults.append(Fault("malformed data.yaml", message, file))
        return []

    names, count = data.get("names"), data.get("nc")
    if names is None and isinstance(count, int) and 0 < count <= _MAX_UNNAMED:
        return [f"class_{i}" for i in range(count)]
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            return bad(f"names has the keys {list(names)!r:.80}, expected 0 to {len(names) - 1}")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        return bad("names is missing: expected a list of class names, or a mapping of 0, 1, ...")
    texts = [str(name).strip() for name in names]
    if any(isinstance(name, (list, dict)) or not str(name).strip() for name in names):
        return bad(f"names {names!r:.80} holds what is no name")
    for name in repeated(texts):
        bad(f"class name {name!r} is used more than once")
    if count is not None and count != len(texts):
        bad(f"nc is {count!r:.20}, but there are {len(texts)} names")
    return texts


def _splits(data: Mapping[str, Any], file: str, faults: list[Fault]) -> dict[str, tuple[str, ...]]:
    """For each split, its folders or lists."""
    found = {}
    for split in _SPLITS:
        entry = data.get(split)
        if entry is None and split == "val":
            entry = data.get("validation")
        if entry is None or entry == "":
            continue
        entries = entry if isinstance(entry, list) else [entry]
        if not entries or not all(isinstance(one, str) and one for one in entries):
            message = f"{split} is {entry!r:.60}, expected a folder, a .txt file, or a list of them"
            faults.append(Fault("malformed data.yaml", message, file))
        else:
            found[split] = tuple(entries)
    return found


def _folder_of(path: Any, data_yaml: str | os.PathLike[str]) -> SourceFolder:
    """The data set's folder: `path`, from the folder of the description on.

    Raises:
        DataError: `path` is not a text.
    """
    own = parent_uri(data_yaml)
    if path is None or path == "":
        return SourceFolder(own)
    if not isinstance(path, str):
        raise DataError(
            f"{shown_uri(data_yaml)}: path is {path!r:.60}, expected the folder of the data set"
        )
    if "://" in path or path.startswith(("/", "~")):
        return SourceFolder(path)
    if "://" not in own:
        return SourceFolder(f"{own}/{path}")
    for part in PurePosixPath(path).parts:  # a storage has no `..`
        own = parent_uri(own) if part == ".." else join_uri(own, part)
    return SourceFolder(own)


def _images_of(description: YoloDescription, entry: str, split: str, log: ImportLog) -> list[str]:
    """The images of one folder or list.

    Raises:
        DataError: there is no such folder or list, or it lies elsewhere.
    """
    folder = description.folder
    try:
        name = _inside(folder, entry)
        if name is None and entry.startswith("../"):  # exported so by some tools, and meant so
            name = _inside(folder, entry.removeprefix("../"))
        if name is None:
            raise SourceFileError(
                "file name leaves the folder", "lies outside; name a folder above both (--root)"
            )
        if name.lower().endswith(".txt"):
            return _names_in_list(folder, name, log)
        if not folder.is_dir("" if name == "." else name):
            raise SourceFileError("missing folder", "no such folder")
        subfolder = "" if name == "." else name
        return folder.list_files(subfolder, suffixes=IMAGE_SUFFIXES, recursive=True)
    except SourceFileError as fault:
        raise DataError(
            f"{description.file}: {split}: {entry} in {folder}: {fault.message}"
        ) from None


def _names_in_list(folder: SourceFolder, list_name: str, log: ImportLog) -> list[str]:
    """The images that a text file names, relative to its own folder.

    Raises:
        SourceFileError: it cannot be read.
    """
    try:
        text = folder.read_bytes(list_name).decode()
    except FileNotFoundError:
        raise SourceFileError("missing list", "no such list of images") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SourceFileError("unreadable list", f"cannot be read as text ({error})") from None
    parent = str(PurePosixPath(list_name).parent)
    names = []
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.strip()
        if not entry:
            continue
        is_absolute = entry.startswith("/") or "://" in entry
        name = _inside(folder, entry if is_absolute else f"{parent}/{entry}")
        if name is None:
            message = f"line {number} of {list_name}: not within {folder}"
            log.bad_structure(Fault("file name leaves the folder", message, entry))
        else:
            names.append(name)
    return names


def _inside(folder: SourceFolder, entry: str) -> str | None:
    """The entry as a plain name relative to the folder; None where it leads out of it."""
    for base in {folder.uri, os.path.realpath(folder.uri) if folder.is_local else folder.uri}:
        if entry == base or entry.startswith(f"{base.rstrip('/')}/"):
            entry = entry[len(base) :].lstrip("/") or "."
            break
    name = posixpath.normpath(entry)
    if name.startswith(("/", "../")) or name == ".." or "://" in entry:
        return None
    return name
