"""Which kind of data set lies somewhere, and what its splits are.

A prepared set, or a folder of such; COCO's layout (`annotations/instances_<split>.json` beside a
folder of images for each, or `<split>/_annotations.coco.json` within one); Pascal VOC's
(`Annotations`, `JPEGImages`, `ImageSets/Main`); YOLO's (a `data.yaml`). A COCO file that
lies anywhere is named together with the folder of its images: a `CocoFile`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePath
from typing import Literal

import pyarrow.fs as pafs

from retina_ray.checks.prepared import PreparedSplit
from retina_ray.checks.raw import RawSplit
from retina_ray.data.importers.box_checks import ImportLog
from retina_ray.data.importers.coco import read_coco
from retina_ray.data.importers.raw import RawDataset
from retina_ray.data.importers.voc import read_voc, voc_class_names
from retina_ray.data.importers.yolo import read_yolo
from retina_ray.data.importers.yolo_yaml import read_data_yaml
from retina_ray.data.prepared.completeness import list_shards
from retina_ray.data.prepared.info import INFO_FILE
from retina_ray.errors import DataError
from retina_ray.storage.source_folder import SourceFolder
from retina_ray.storage.uris import open_filesystem, shown_uri

LayoutName = Literal["prepared", "coco", "voc", "yolo"]

_FOLDER_JSON = "_annotations.coco.json"
_ORDER = ("train", "val", "valid", "test")
_NUM_PROBED = 20
_YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_YAML_ENDS = (".yaml", ".yml")


@dataclass(frozen=True)
class CocoFile(os.PathLike[str]):
    """A data set of one split: an annotation file of COCO's format, and a folder of images.

    Attributes:
        annotations_json: a local path or a URI; it stands for the data set in reports.
        images_dir: what its file names are relative to: a local path or a URI.
    """

    annotations_json: str
    images_dir: str

    def __fspath__(self) -> str:
        return self.annotations_json


@dataclass(frozen=True)
class Layout:
    """A data set that can be checked.

    Attributes:
        splits: what opens each split, by its name, in the order train, val, test, others.
        passed_over: splits that are only made of others, and why, in words.
    """

    name: LayoutName
    splits: Mapping[str, Callable[[], PreparedSplit | RawSplit]]
    passed_over: tuple[str, ...] = ()


def find_layout(dataset: str | os.PathLike[str], *, root: str | None = None) -> Layout:
    """Find out what kind of data set it is.

    Args:
        dataset: a folder or URI, YOLO's `data.yaml` itself, or a `CocoFile`.
        root: of YOLO's images, where the description's `path` does not lead to them.

    Raises:
        DataError: it is none that is known.
    """
    if isinstance(dataset, CocoFile):
        return _coco_file(dataset)
    text = os.fspath(dataset).rstrip("/") or "/"
    if text.endswith(_YAML_ENDS):
        return _yolo(text, root)
    folder = SourceFolder(text)
    if not folder.is_dir():
        if _is_file(text):
            raise DataError(
                f"{shown_uri(text)}: is a file; of a COCO file name the folder of its images as "
                "well (--images DIR), of any other data set the folder"
            )
        raise DataError(f"{text}: no such folder; name a prepared set or a data set's own folder")
    layout = _prepared(text, folder) or _coco(text, folder) or _voc(text, folder)
    if layout is not None:
        return layout
    yamls = [name for name in _YAMLS if folder.exists(name)]
    if yamls:
        return _yolo(f"{text}/{yamls[0]}", root)
    raise DataError(
        f"{text}: not a data set that is known: expected dataset.json with shards (a prepared set, "
        "or folders of such), annotations/instances_*.json (COCO), Annotations with JPEGImages and "
        "ImageSets/Main (Pascal VOC), or data.yaml (YOLO; any other name can be given itself)"
    )


def _coco_file(dataset: CocoFile) -> Layout:
    """One COCO file with its images; the split is called as the file is.

    Raises:
        DataError: the two are not a file and a folder, so that nothing could be checked.
    """
    text, images = dataset.annotations_json, dataset.images_dir
    shown = shown_uri(text)
    if text.endswith(_YAML_ENDS) or SourceFolder(text).is_dir():
        raise DataError(
            f"{shown}: is no COCO file; a folder of images (--images {shown_uri(images)}) goes "
            "with such a file only: leave it out, or name the file"
        )
    if not _is_file(text):
        raise DataError(f"{shown}: no such annotation file")
    if not SourceFolder(images).is_dir():
        raise DataError(f"{shown_uri(images)}: no such folder of images")
    split = PurePath(shown).stem.removeprefix("instances_")
    return Layout("coco", {split: partial(RawSplit, split, partial(read_coco, text, images))})


def _prepared(text: str, folder: SourceFolder) -> Layout | None:
    """A prepared set, whole or not, or the folders of several."""
    filesystem, path = open_filesystem(text)
    if folder.exists(INFO_FILE) or list_shards(filesystem, path):
        return Layout("prepared", {_last(path): partial(PreparedSplit, text)})
    names = _folders(folder)
    infos = [f"{path}/{name}/{INFO_FILE}" for name in names]
    described = [info.is_file for info in filesystem.get_file_info(infos)]
    if not any(described):
        return None
    # Shards without a description are a set that is not whole: opening it says so.
    found = [
        name
        for name, is_described in zip(names, described, strict=True)
        if is_described or list_shards(filesystem, f"{path}/{name}")
    ]
    return Layout(
        "prepared", {name: partial(PreparedSplit, f"{text}/{name}") for name in _sorted(found)}
    )


def _coco(text: str, folder: SourceFolder) -> Layout | None:
    """COCO's own layout, or a JSON within each folder of images."""
    places: dict[str, tuple[str, list[str]]] = {}
    for file in folder.list_files("annotations", suffixes=(".json",)):
        name = _last(file)
        if name.startswith("instances_"):
            split = name[len("instances_") : -len(".json")]
            images = [split, f"images/{split}", f"{split}/images", "images"]
            found = [f"{text}/{place}" for place in images if folder.is_dir(place)]
            places[split] = (f"{text}/{file}", [*found, text])
    if not places:
        for name in _folders(folder):
            if folder.exists(f"{name}/{_FOLDER_JSON}"):
                places[name] = (f"{text}/{name}/{_FOLDER_JSON}", [f"{text}/{name}"])
    if not places:
        return None
    read = {split: partial(_read_coco, *place) for split, place in places.items()}
    return Layout("coco", {split: partial(RawSplit, split, read[split]) for split in _sorted(read)})


def _read_coco(annotations_json: str, folders: list[str], *, log: ImportLog) -> RawDataset:
    """Read a split, and take the folder that has most of its images; names may hold folders."""
    raw = read_coco(annotations_json, folders[0], log=log)
    step = max(1, len(raw.images) // _NUM_PROBED)
    names = [image.file_name for image in raw.images[::step][:_NUM_PROBED]]
    candidates = [SourceFolder(folder) for folder in folders]
    hits = [sum(folder.exists(name) for name in names) for folder in candidates]
    return replace(raw, folder=candidates[hits.index(max(hits))])


def _voc(text: str, folder: SourceFolder) -> Layout | None:
    """Pascal VOC; lists of one class (VOC's own) and lists that join others are no splits."""
    if not (folder.is_dir("Annotations") and folder.is_dir("ImageSets/Main")):
        return None
    lists: dict[str, frozenset[str]] = {}
    for file in folder.list_files("ImageSets/Main", suffixes=(".txt",)):
        lines = [line.split() for line in _lines(folder, file) if line.strip()]
        if all(len(line) == 1 for line in lines):
            lists[_last(file)[: -len(".txt")]] = frozenset(line[0] for line in lines)
    splits, passed_over = [], []
    for name, members in lists.items():
        parts = [
            other for other, inner in lists.items() if inner and inner < members and other != name
        ]
        if len(parts) > 1 and members == frozenset().union(*(lists[part] for part in parts)):
            passed_over.append(f"{name} is made of {', '.join(_sorted(parts))}")
        else:
            splits.append(name)
    if not splits:
        return None
    names = voc_class_names(text)  # once, instead of for each split
    read = {s: partial(read_voc, text, image_set=s, class_names=names) for s in _sorted(splits)}
    return Layout("voc", {s: partial(RawSplit, s, read[s]) for s in read}, tuple(passed_over))


def _yolo(data_yaml: str, root: str | None) -> Layout:
    """YOLO: the splits that the description names.

    Raises:
        DataError: it cannot be used at all.
    """
    names = _sorted(read_data_yaml(data_yaml, root=root).splits)
    if not names:
        raise DataError(f"{data_yaml}: names no split; expected train, val or test")
    return Layout(
        "yolo",
        {s: partial(RawSplit, s, partial(read_yolo, data_yaml, split=s, root=root)) for s in names},
    )


def _folders(folder: SourceFolder) -> list[str]:
    """The names of the folders in a folder."""
    filesystem, path = open_filesystem(folder.uri)
    inside = filesystem.get_file_info(pafs.FileSelector(path or "/"))
    return sorted(i.base_name for i in inside if i.type == pafs.FileType.Directory)


def _is_file(text: str) -> bool:
    filesystem, path = open_filesystem(text)
    return filesystem.get_file_info(path).is_file


def _lines(folder: SourceFolder, file: str) -> list[str]:
    """The lines of a text file; none of one that cannot be read, which reading the split names."""
    try:
        return folder.read_bytes(file).decode().splitlines()
    except (OSError, ValueError):
        return []


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _sorted(names: Iterable[str]) -> list[str]:
    """Train, val and test first, years and the like after them."""

    def rank(name: str) -> tuple[int, str]:
        places = [i for i, known in enumerate(_ORDER) if name.startswith(known)]
        return (max(places) if places else len(_ORDER), name)

    return sorted(names, key=rank)
