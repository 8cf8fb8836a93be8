"""From annotations and image files to a prepared data set: what all importers share.

The images are cut into shards by their position, and each shard is written by one task: see
`retina_ray.data.importers.writing.write_shard`. Who runs the tasks, one process or the nodes of a
Ray cluster (`retina_ray.data.importers.writing.ray_tasks`), does not show in the bytes.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256

import pyarrow.fs as pafs

from retina_ray.data.importers.box_checks import ImportLog
from retina_ray.data.importers.raw import RawDataset
from retina_ray.data.importers.writing.ray_tasks import MapShards, shard_mapper
from retina_ray.data.importers.writing.shard_tasks import (
    ShardPlan,
    ShardResult,
    ShardTask,
    read_finished,
    renamed_beside,
)
from retina_ray.data.importers.writing.write_shard import write_shard
from retina_ray.data.prepared.completeness import begin_beside, clean_up
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.info import INFO_FILE
from retina_ray.data.prepared.record_checks import check_categories
from retina_ray.data.prepared.writer import finish_dataset
from retina_ray.errors import DataError
from retina_ray.storage.source_folder import SourceFolder
from retina_ray.storage.uris import open_filesystem, shown_uri

OnProgress = Callable[[int, int], None]
"""Called with (images done, images in all)."""

_log = logging.getLogger(__name__)


def write_images(
    raw: RawDataset,
    out_uri: str | os.PathLike[str],
    *,
    split: str,
    log: ImportLog,
    on_progress: OnProgress | None = None,
) -> PreparedDataset:
    """Check images and boxes, and write a prepared data set.

    An import that was killed leaves its finished shards and no `dataset.json`; the same import
    again keeps them and writes the rest. Where it was complete already, there is nothing to do.
    Image files that were changed in between are not noticed: overwrite the set then.

    A set that is overwritten stays whole until the new one is: an import that finds faults, or is
    killed, takes nothing from it.

    Args:
        raw: what a reader found.
        out_uri: folder of the new set.
        split: e.g. "train".
        log: the options, and the faults of structure found so far.
        on_progress: called after each image, or each few of them.

    Returns:
        The new set, opened.

    Raises:
        DataError: all faults at once; what is left behind is the set that was there, or none.
    """
    options = log.options
    if log.faults and not (raw.categories and raw.images):
        raise DataError(log.faults)
    plan = ShardPlan(
        uri=SourceFolder(out_uri).uri,
        folder=raw.folder,
        num_classes=len(raw.categories),
        box_type=raw.box_type,
        options=options,
        check_only=bool(log.faults),
    )
    if not log.faults:
        check_categories(raw.categories)
    tasks = _cut(raw, plan)
    name = options.name or raw.format
    named = [name, split, raw.source, *(asdict(category) for category in raw.categories)]
    key = sha256(json.dumps([*named, *(task.key for task in tasks)]).encode()).hexdigest()
    same = None if options.overwrite or log.faults else _same_import(out_uri, key)
    if same is not None:
        _log.info("%s: complete already: the same data with the same options", shown_uri(out_uri))
        clean_up(*open_filesystem(out_uri), keep=[shard.file for shard in same.info.shards])
        return same
    old_shards = begin_beside(out_uri, overwrite=options.overwrite)
    tasks = renamed_beside(tasks, old_shards)
    try:
        results = _write_shards(tasks, shard_mapper(options.num_workers), on_progress)
        for result in results:
            log.absorb(result.log)
        log.raise_if_faulty()
        largest = max((result.largest_size for result in results), key=max, default=(0, 0))
        finish_dataset(
            out_uri,
            name=name,
            split=split,
            source=raw.source,
            categories=raw.categories,
            contents=[result.content for result in results if result.content is not None],
            report={
                **log.report(),
                "max_size_px": options.max_size_px,
                "largest_original_size": list(largest),
                "import_key": key,
            },
            box_type=raw.box_type,
        )
    except DataError:
        clean_up(*open_filesystem(out_uri), keep=old_shards)
        raise
    return PreparedDataset.open(out_uri)


def _cut(raw: RawDataset, plan: ShardPlan) -> list[ShardTask]:
    """One task for each shard."""
    size = plan.options.rows_per_shard
    return [
        ShardTask.of(index, raw.images[start : start + size], plan)
        for index, start in enumerate(range(0, len(raw.images), size))
    ]


def _same_import(uri: str | os.PathLike[str], key: str) -> PreparedDataset | None:
    """The set that is there, where it was made of the same data with the same options."""
    filesystem, path = open_filesystem(uri)
    if filesystem.get_file_info(f"{path}/{INFO_FILE}").type == pafs.FileType.NotFound:
        return None
    try:
        dataset = PreparedDataset.open(uri)
    except DataError:
        return None
    return dataset if dataset.report.get("import_key") == key else None


def _write_shards(
    tasks: list[ShardTask], map_shards: MapShards, on_progress: OnProgress | None
) -> list[ShardResult]:
    """Write the shards that are not there yet, and return the results in order."""
    results = read_finished(tasks)
    total = sum(len(task.images) for task in tasks)
    done = sum(len(task.images) for task in tasks if task.index in results)
    if results:
        _log.info(
            "%s: an interrupted import finished %d of %d shards; they are kept",
            shown_uri(tasks[0].plan.uri),
            len(results),
            len(tasks),
        )
        if on_progress is not None:
            on_progress(done, total)
    missing = [task for task in tasks if task.index not in results]
    for event in map_shards(write_shard, missing):
        if isinstance(event, ShardResult):
            results[event.index] = event
        else:
            done += event
            if on_progress is not None:
                on_progress(done, total)
    return [results[task.index] for task in tasks]
