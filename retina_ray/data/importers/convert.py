"""From checked annotations and image files to shards: what all importers share.

One pass over the images: each is read, decoded and checked in a thread, its boxes are checked
against its true size, and it is written. The first fault stops the writing but not the checking, so
that one error names everything.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from retina_ray.data.checks import ImportLog, RawImage, check_boxes
from retina_ray.data.image_files import EncodedImage, SourceFileError, load_image, resolve_inside
from retina_ray.data.rotated_boxes import scale_rotated
from retina_ray.data.schema import BoxType, Category, Fault, Record
from retina_ray.data.shards import PreparedDataset, ShardWriter

__all__ = ["OnProgress", "write_images"]

OnProgress = Callable[[int, int], None]
"""Called with (images done, images in all)."""

_MAX_THREADS = 8


def write_images(
    images: Sequence[RawImage],
    out_uri: str | os.PathLike[str],
    *,
    images_dir: Path,
    name: str,
    split: str,
    source: str,
    categories: Sequence[Category],
    log: ImportLog,
    max_size_px: int | None,
    rows_per_group: int,
    rows_per_shard: int,
    overwrite: bool,
    on_progress: OnProgress | None,
    box_type: BoxType = "aligned",
) -> PreparedDataset:
    """Check images and boxes, and write a prepared data set.

    Args:
        images: with their raw boxes, in the order in which they are written.
        out_uri: folder of the new set.
        images_dir: what the file names are relative to.
        name: of the data set.
        split: e.g. "train".
        source: where it came from, in words.
        categories: in the order of the labels.
        log: policies, and the faults of structure found so far.
        max_size_px: make the longer side at most this; None: keep the files as they are.
        rows_per_group: images of a row group.
        rows_per_shard: images of a file.
        overwrite: replace a set that is there already.
        on_progress: called after each image.
        box_type: "rotated": every raw box has a rotated one.

    Returns:
        The new set, opened.

    Raises:
        DataError: all faults at once; nothing is left behind that looks like a data set.
        ValueError: max_size_px is below 1.
    """
    if max_size_px is not None and max_size_px < 1:
        raise ValueError(f"max_size_px = {max_size_px} must be at least 1")
    writer = ShardWriter(
        out_uri,
        name=name,
        split=split,
        categories=categories,
        source=source,
        rows_per_group=rows_per_group,
        rows_per_shard=rows_per_shard,
        overwrite=overwrite,
        box_type=box_type,
    )
    largest = (0, 0)
    with writer:
        loaded = _load_all(images, images_dir, max_size_px)
        for done, (image, result) in enumerate(zip(images, loaded, strict=True), start=1):
            record = _checked_record(image, result, log, box_type)
            if isinstance(result, EncodedImage):
                largest = max(largest, (result.original_height, result.original_width), key=max)
            if record is not None and not log.faults:
                writer.add(record)
            if on_progress is not None:
                on_progress(done, len(images))
        log.raise_if_faulty()
        writer.report.update(log.report())
        writer.report["max_size_px"] = max_size_px
        writer.report["largest_original_size"] = list(largest)
    return PreparedDataset.open(out_uri)


def _load_all(
    images: Sequence[RawImage], images_dir: Path, max_size_px: int | None
) -> Iterator[EncodedImage | SourceFileError]:
    """Read the files in threads, a few ahead, and yield the results in order."""

    def load(image: RawImage) -> EncodedImage | SourceFileError:
        try:
            path = resolve_inside(images_dir, image.file_name)
            return load_image(path, max_size_px=max_size_px)
        except SourceFileError as fault:
            return fault

    num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(num_threads) as pool:
        ahead: deque[Future[EncodedImage | SourceFileError]] = deque()
        for image in images:
            ahead.append(pool.submit(load, image))
            if len(ahead) > 2 * num_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


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
    if height is None or width is None or not (usable or log.on_bad_image == "error"):
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
    turned = (image.height, image.width) == (width, height) and height != width
    hint = (
        "height and width are exchanged: perhaps an EXIF orientation that the annotator's tool did "
        "not apply"
        if turned
        else "the annotations may belong to another copy of the image"
    )
    return Fault(
        "annotated size differs from the image",
        f"annotated {image.width} x {image.height} pixels, decoded {width} x {height}; {hint}",
        image.file_name,
        image.image_id,
    )
