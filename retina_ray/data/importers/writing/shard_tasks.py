"""What one task of an import is given and what comes of it, and the notes of finished shards.

A note is a small file beside the shards for each one that is whole, with a key of all that its
bytes depend on. So an import that was interrupted resumes where it was, and one of other data or
options does not.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.fs as pafs

from retina_ray.data.importers.box_checks import ImportLog
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.importers.raw import RawImage
from retina_ray.data.prepared.completeness import IMPORT_FOLDER
from retina_ray.data.prepared.info import FORMAT_VERSION
from retina_ray.data.prepared.schema import BoxType
from retina_ray.data.prepared.shard_file import ShardContent, shard_name
from retina_ray.storage.files import write_whole
from retina_ray.storage.source_folder import SourceFolder
from retina_ray.storage.uris import open_filesystem

_log = logging.getLogger(__name__)

_SAME_BYTES = {"name", "overwrite", "num_workers", "rows_per_shard"}
"""Options that a shard of these very images does not depend on."""


@dataclass(frozen=True)
class ShardPlan:
    """What all shards of an import have in common.

    Attributes:
        folder: what the file names of the images are relative to.
        box_type: "rotated": every raw box has a rotated one.
        check_only: there are faults already: look for more, and write nothing.
        generation: of the file names, which a set is replaced under: see `renamed_beside`.
    """

    uri: str
    folder: SourceFolder
    num_classes: int
    box_type: BoxType
    options: ImportOptions
    check_only: bool
    generation: int = 0


@dataclass(frozen=True)
class ShardTask:
    """The images of one shard.

    Attributes:
        images: in order.
        key: SHA-256 of all that the shard's bytes depend on, but the content of the image files.
    """

    index: int
    images: Sequence[RawImage]
    plan: ShardPlan
    key: str

    @classmethod
    def of(cls, index: int, images: Sequence[RawImage], plan: ShardPlan) -> ShardTask:
        """A task with its key."""
        versions = [FORMAT_VERSION, cv2.__version__, pa.__version__]
        options = plan.options.model_dump(exclude=_SAME_BYTES)
        source = [plan.folder.uri, plan.num_classes, plan.box_type, plan.check_only]
        digest = hashlib.sha256(json.dumps([versions, index, options, source]).encode())
        for image in images:
            digest.update(repr(image).encode())
        return cls(index, images, plan, digest.hexdigest())

    @property
    def file(self) -> str:
        """Name of the shard within the folder of the set."""
        return shard_name(self.index, self.plan.generation)


@dataclass(frozen=True)
class ShardResult:
    """What came of a task.

    Attributes:
        content: None where no image was left to write, or there are faults.
        log: faults, and what was changed or left out.
        largest_size: (height, width) in pixels of the file with the longest side.
    """

    index: int
    content: ShardContent | None
    log: ImportLog
    largest_size: tuple[int, int]


def renamed_beside(tasks: list[ShardTask], taken: Set[str]) -> list[ShardTask]:
    """Give the shards of an import names that none of those has which are to stay for now.

    So a set can be replaced where no folder can be renamed at once, as in a bucket: the new shards
    lie beside the old ones, and `dataset.json`, written last, says which ones are the set. The
    names follow from those that are taken, so an import that was interrupted finds its own again.

    Args:
        tasks: of the import.
        taken: names of the shards of the set that is there.

    Returns:
        The tasks, with the first generation whose names are free.
    """
    if not tasks:
        return tasks
    plans = (replace(tasks[0].plan, generation=generation) for generation in count())
    candidates = ([replace(task, plan=plan) for task in tasks] for plan in plans)
    return next(c for c in candidates if taken.isdisjoint(task.file for task in c))


def read_finished(tasks: Sequence[ShardTask]) -> dict[int, ShardResult]:
    """Find the shards that an interrupted import of the same data with the same options finished.

    Returns:
        Their results by index of the shard; those of other data or options are passed over.
    """
    if not tasks:
        return {}
    filesystem, path = open_filesystem(tasks[0].plan.uri)
    selector = pafs.FileSelector(f"{path}/{IMPORT_FOLDER}", allow_not_found=True)
    notes = {info.base_name for info in filesystem.get_file_info(selector) if info.is_file}
    finished = {}
    for task in tasks:
        if _note_name(task) not in notes:
            continue
        try:
            with filesystem.open_input_file(_note_path(path, task)) as file:
                note = json.loads(file.read())
            if note["key"] == task.key:
                finished[task.index] = _result_from(note, task)
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.info("shard %d is written again: its note cannot be read: %s", task.index, error)
    shards = {index: r.content.info for index, r in finished.items() if r.content is not None}
    found = filesystem.get_file_info([f"{path}/{shard.file}" for shard in shards.values()])
    for (index, shard), info in zip(shards.items(), found, strict=True):
        if info.size != shard.num_bytes:
            del finished[index]
    return finished


def _note_name(task: ShardTask) -> str:
    return f"{task.file}.json"


def _note_path(path: str, task: ShardTask) -> str:
    return f"{path}/{IMPORT_FOLDER}/{_note_name(task)}"


def note_finished(task: ShardTask, result: ShardResult) -> None:
    """Write down that a shard is whole, after it is."""
    filesystem, path = open_filesystem(task.plan.uri)
    note = {
        "key": task.key,
        "content": None if result.content is None else asdict(result.content),
        "log": result.log.to_dict(),
        "largest_size": result.largest_size,
    }
    filesystem.create_dir(f"{path}/{IMPORT_FOLDER}", recursive=True)
    write_whole(filesystem, _note_path(path, task), json.dumps(note).encode())


def _result_from(note: dict[str, Any], task: ShardTask) -> ShardResult:
    """What a note tells of a finished shard."""
    log = ImportLog(task.plan.options)
    log.absorb_counts(note["log"])
    content = note["content"]
    height, width = note["largest_size"]
    return ShardResult(
        task.index,
        None if content is None else ShardContent.from_dict(content),
        log,
        (height, width),
    )
