"""Back out of shards: any prepared set as COCO's JSON, with its images where they are wanted.

Original ids of images, annotations and categories, names, areas and crowd flags come back exactly,
and `bbox` as it was annotated (float64). So importing what was exported gives the same records.
What the import left out or made smaller stays so; segmentations were never kept.

An export that was killed goes on when it is called again: what it wrote is kept. Its JSON comes
last, so what was killed never looks whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePosixPath
from typing import TypeVar

import pyarrow.fs as pafs

from retina_ray.data.importers.box_checks import repeated
from retina_ray.data.importers.writing.convert import OnProgress
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.errors import DataError, Fault, SourceFileError
from retina_ray.storage.files import write_whole
from retina_ray.storage.source_folder import check_file_name, map_ahead
from retina_ray.storage.uris import open_filesystem, shown_uri

Result = TypeVar("Result")


@dataclass(frozen=True)
class Exported:
    """What an export did.

    Attributes:
        num_kept: images that were there already with the same bytes.
    """

    num_annotations: int
    num_written: int
    num_kept: int


def export_coco(
    dataset: PreparedDataset,
    out_json: str | os.PathLike[str],
    *,
    images_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> Exported:
    """Write a prepared set as COCO's JSON.

    A set of rotated boxes has a `bbox` of five numbers, as `coco.py` takes them. The images are
    written as they are in the shards, under their original names: one that became smaller or of
    another format on import may hold other bytes than its name says, which decoders do not mind.

    Files that are there with the very bytes that would be written are kept: so an export that was
    killed goes on, and one that is complete changes nothing.

    Args:
        dataset: of any source.
        out_json: the file: a local path or a URI. It is written last, and as a whole.
        images_dir: write the images below this folder, a local path or a URI; None: no images.
        overwrite: replace files that are there, whatever they hold.
        on_progress: called with (images written or kept, images in all).

    Returns:
        How much was written and kept.

    Raises:
        DataError: files are there already with other content, or names lead out of the folder of
            images: nothing is written then. Or images are damaged in the shards: all others are
            written, and no JSON.
        OSError: a file cannot be written.
        StorageError: a remote storage does not answer.
    """
    content, num_annotations = _coco_json(dataset)
    filesystem, path = open_filesystem(out_json)
    there = filesystem.get_file_info(path)
    is_there = there.type != pafs.FileType.NotFound
    keep_json = not overwrite and _holds(filesystem, there, content)
    faults: list[Fault] = []
    if is_there and not (overwrite or keep_json):
        faults.append(_in_the_way(shown_uri(out_json)))
    images = None if images_dir is None else _ImageFolder(dataset, images_dir, on_progress)
    if images is not None:
        name_faults = images.name_faults()
        faults += name_faults
        if not (name_faults or overwrite):
            faults += images.compare()
    if faults:
        raise DataError(faults)
    num_written = 0
    if images is not None:
        if is_there and overwrite:
            # Beside images of which some are replaced, the old one would look like a whole export.
            filesystem.delete_file(path)
        num_written = images.write()
    if not keep_json:
        filesystem.create_dir(path.rpartition("/")[0] or "/", recursive=True)
        write_whole(filesystem, path, content)
    return Exported(num_annotations, num_written, 0 if images is None else images.num_kept)


def _coco_json(dataset: PreparedDataset) -> tuple[bytes, int]:
    """The text of the JSON, the same for the same set, and the number of its annotations."""
    truth = dataset.ground_truth(box_type=dataset.box_type)
    info = dataset.info
    described = {"description": f"{info.name}, {info.split}", "source": info.source}
    text = json.dumps({"info": described, **truth}, allow_nan=False)
    return text.encode(), len(truth["annotations"])


def _holds(filesystem: pafs.FileSystem, info: pafs.FileInfo, content: bytes) -> bool:
    """Whether a file is there with this content; of another size it is not read."""
    if info.type != pafs.FileType.File or info.size != len(content):
        return False
    with filesystem.open_input_file(info.path) as file:
        return file.read() == content


def _in_the_way(path: str) -> Fault:
    message = "is there already, with other content; ask to overwrite it, or give another place"
    return Fault("file is there already", message, path)


class _ImageFolder:
    """The folder of images of an export: what is there, and what is to be written.

    Args:
        dataset: whose images they are.
        uri: of the folder.
        on_progress: called with (images written or kept, images in all).

    Attributes:
        num_kept: images that `compare` found there with the same bytes.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        uri: str | os.PathLike[str],
        on_progress: OnProgress | None,
    ) -> None:
        self._dataset, self._on_progress = dataset, on_progress
        self._filesystem, base = open_filesystem(uri)
        self._is_local = isinstance(self._filesystem, pafs.LocalFileSystem)
        index = dataset.index()
        self._names: list[str] = index["file_name"].to_pylist()
        self._ids: list[int] = index["image_id"].to_pylist()
        columns = (index[name].to_pylist() for name in ("shard", "row_group", "row"))
        self._places: list[tuple[int, int, int]] = list(zip(*columns, strict=True))
        self._paths = [f"{base}/{name}" for name in self._names]
        self._kept: set[int] = set()
        self._num_done = 0

    @property
    def num_kept(self) -> int:
        return len(self._kept)

    def name_faults(self) -> list[Fault]:
        """Names under which no file can be written, or two would be."""
        faults = [
            Fault("file name twice", "two images have this name; only one file can", name)
            for name in repeated(str(PurePosixPath(name)) for name in self._names)
        ]
        for name, image_id in zip(self._names, self._ids, strict=True):
            try:
                check_file_name(name)
            except SourceFileError as fault:
                faults.append(Fault(fault.kind, fault.message, name, image_id))
        return faults

    def compare(self) -> list[Fault]:
        """Find the files that are there; those that hold their image are not written again.

        Returns:
            A fault for each that holds something else.
        """
        there, faults = self._files_there()
        found = [position for position, path in enumerate(self._paths) if path in there]

        def holds(item: tuple[int, bytes]) -> tuple[int, bool]:
            position, image = item
            return position, _holds(self._filesystem, there[self._paths[position]], image)

        with closing(self._in_threads(holds, found, faults)) as compared:
            for position, same in compared:
                if same:
                    self._kept.add(position)
                    self._advance()
                else:
                    faults.append(_in_the_way(self._paths[position]))
        return faults

    def _files_there(self) -> tuple[dict[str, pafs.FileInfo], list[Fault]]:
        """List the folders of the images: by path what is there, and files in place of folders."""
        there: dict[str, pafs.FileInfo] = {}
        faults = []
        for folder in self._folders(range(len(self._paths))):
            selector = pafs.FileSelector(folder, allow_not_found=True)
            try:
                infos = self._filesystem.get_file_info(selector)
            except NotADirectoryError:
                faults.append(_in_the_way(folder))
                continue
            there.update((f"{folder}/{info.base_name}", info) for info in infos)
        return there, faults

    def _folders(self, positions: Sequence[int]) -> list[str]:
        return sorted({self._paths[position].rpartition("/")[0] for position in positions})

    def write(self) -> int:
        """Write the images that are not kept, several at once: a storage lets each wait.

        Returns:
            Their number.

        Raises:
            DataError: some are damaged in the shards; the others are written.
        """
        missing = [position for position in range(len(self._paths)) if position not in self._kept]
        for folder in self._folders(missing):
            self._filesystem.create_dir(folder, recursive=True)

        def write(item: tuple[int, bytes]) -> None:
            position, image = item
            write_whole(self._filesystem, self._paths[position], image, durable=False)

        damaged: list[Fault] = []
        with closing(self._in_threads(write, missing, damaged)) as written:
            for _ in written:
                self._advance()
        if damaged:
            raise DataError(damaged)
        return len(missing)

    def _in_threads(
        self,
        function: Callable[[tuple[int, bytes]], Result],
        positions: Sequence[int],
        damaged: list[Fault],
    ) -> Generator[Result, None, None]:
        """Apply a function to images, some at once; once this is closed, no thread goes on.

        Args:
            function: of position and encoded image.
            positions: see `_encoded`.
            damaged: see `_encoded`.

        Yields:
            Its results, in order.
        """
        yield from map_ahead(function, self._encoded(positions, damaged), is_local=self._is_local)

    def _advance(self) -> None:
        self._num_done += 1
        if self._on_progress is not None:
            self._on_progress(self._num_done, len(self._paths))

    def _encoded(
        self, positions: Sequence[int], damaged: list[Fault]
    ) -> Iterator[tuple[int, bytes]]:
        """Read images, those of a row group at once.

        Args:
            positions: of the images in the index, ascending.
            damaged: receives a fault for each that is not yielded because its bytes are no longer
                those that were written.

        Yields:
            Position and encoded image.
        """
        for (shard, _), group in groupby(positions, lambda position: self._places[position][:2]):
            members = list(group)
            places = [self._places[position] for position in members]
            for position, image in zip(members, self._dataset.read_images(places), strict=True):
                if image is not None:
                    yield position, image
                    continue
                message = (
                    f"its bytes in {self._dataset.info.shards[shard].file} are not those that were "
                    "written (CRC-32); copy or prepare the data set again"
                )
                name, image_id = self._names[position], self._ids[position]
                damaged.append(Fault("damaged image", message, name, image_id))
