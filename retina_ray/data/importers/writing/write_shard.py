"""One shard of an import: read, check and write its images, in whatever process.

A task holds all that it needs, and what it writes depends on nothing else: not on the process, nor
on how many others there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow.fs as pafs

from retina_ray.data.images.files import EncodedImage, load_image, read_image_file
from retina_ray.data.importers.box_checks import ImportLog, check_boxes
from retina_ray.data.importers.raw import RawImage
from retina_ray.data.importers.writing.shard_tasks import (
    ShardPlan,
    ShardResult,
    ShardTask,
    note_finished,
)
from retina_ray.data.prepared.record_checks import record_faults
from retina_ray.data.prepared.schema import BoxType, Record
from retina_ray.data.prepared.shard_file import ShardFile
from retina_ray.data.rotated_boxes import scale_rotated
from retina_ray.errors import Fault, SourceFileError
from retina_ray.storage.source_folder import map_ahead
from retina_ray.storage.uris import open_filesystem


def write_shard(task: ShardTask, *, num_threads: int | None = None) -> Iterator[int | ShardResult]:
    """Read, check and write the images of one shard.

    The first fault stops the writing but not the checking, so that all of them are found.

    Args:
        task: the images, and what to do with them.
        num_threads: that read and decode; None: as many as suit a process of its own.

    Yields:
        1 after each image, and at the end the result.
    """
    plan = task.plan
    log = ImportLog(plan.options)
    filesystem, path = open_filesystem(plan.uri)
    file, largest = None, (0, 0)
    image_ids: set[int] = set()
    annotation_ids: set[int] = set()
    load = partial(_load, plan)
    loaded = map_ahead(load, task.images, is_local=plan.folder.is_local, num_threads=num_threads)
    try:
        for image, result in zip(task.images, loaded, strict=True):
            record = _checked_record(image, result, log, plan.box_type)
            if isinstance(result, EncodedImage):
                size = (result.original_height, result.original_width)
                largest = max(largest, size, key=max)
            if record is not None and not log.faults:
                log.faults += record_faults(
                    record,
                    num_classes=plan.num_classes,
                    box_type=plan.box_type,
                    image_ids=image_ids,
                    annotation_ids=annotation_ids,
                )
                image_ids.add(record.image_id)
                annotation_ids.update(int(i) for i in record.annotation_id)
            if record is not None and not log.faults and not plan.check_only:
                file = file or _open(filesystem, path, task)
                file.add(record)
            yield 1
        content = None
        if file is not None and not log.faults:
            content, file = file.close(), None
    finally:
        if file is not None:
            file.abort()
    outcome = ShardResult(task.index, content, log, largest)
    if not log.faults and not plan.check_only:
        note_finished(task, outcome)
    yield outcome


def _open(filesystem: pafs.FileSystem, path: str, task: ShardTask) -> ShardFile:
    return ShardFile(
        filesystem,
        path,
        task.file,
        num_classes=task.plan.num_classes,
        box_type=task.plan.box_type,
        rows_per_group=task.plan.options.rows_per_group,
    )


def _load(plan: ShardPlan, image: RawImage) -> EncodedImage | SourceFileError:
    """Read and decode one image; what is wrong with it comes in its place."""
    try:
        return load_image(
            read_image_file(plan.folder, image.file_name),
            max_size_px=plan.options.max_size_px,
            max_pixels=plan.options.max_pixels,
        )
    except SourceFileError as fault:
        return fault


def _checked_record(
    image: RawImage, result: EncodedImage | SourceFileError, log: ImportLog, box_type: BoxType
) -> Record | None:
    """Judge an image and its boxes; None where the image is not to be written."""

    def fault(kind: str, message: str) -> Fault:
        return Fault(kind, message, image.file_name, image.image_id)

    usable = True
    height, width = image.height, image.width
    if isinstance(result, SourceFileError):
        usable = False
        problem = fault(result.kind, result.message)
        escapes = result.kind == "file name leaves the folder"
        (log.bad_structure if escapes else log.bad_image)(problem)
    else:
        true_size = (result.original_height, result.original_width)
        if height is not None and width is not None and (height, width) != true_size:
            usable = False
            log.bad_image(_size_fault(image, *true_size))
        height, width = true_size
    if height is None or width is None or not (usable or log.options.on_bad_image == "error"):
        return None
    checked = check_boxes(image, height=height, width=width, log=log)
    if not usable or isinstance(result, SourceFileError):
        return None
    for change in result.changes:
        log.counts[f"images {change}".replace(" ", "_")] += 1
    scale = np.array([result.width / width, result.height / height])
    limit = np.array([result.width, result.height])
    rotated = scale_rotated(checked.rotated, *scale) if box_type == "rotated" else None
    xyxy = np.minimum(checked.boxes.reshape(-1, 2, 2) * scale, limit).reshape(-1, 4)
    return Record(
        image=result.data,
        file_name=image.file_name,
        image_id=image.image_id,
        height=result.height,
        width=result.width,
        boxes=xyxy.astype(np.float32),
        labels=checked.labels,
        iscrowd=checked.iscrowd,
        area=checked.area * scale.prod(),
        annotation_id=checked.annotation_id,
        bbox=(checked.bbox.reshape(-1, 2, 2) * scale).reshape(-1, 4),
        rotated_boxes=rotated,
    )


def _size_fault(image: RawImage, height: int, width: int) -> Fault:
    """Describe an annotated size that is not the file's."""
    exchanged = (image.height, image.width) == (width, height) and height != width
    hint = (
        "height and width are exchanged: perhaps an EXIF orientation that the annotator's tool did "
        "not apply"
        if exchanged
        else "the annotations may belong to another copy of the image"
    )
    return Fault(
        "annotated size differs from the image",
        f"annotated {image.width} x {image.height} pixels, decoded {width} x {height}; {hint}",
        image.file_name,
        image.image_id,
    )
