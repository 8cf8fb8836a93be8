"""Where annotations and images are read from: a local folder, or any URI that `pyarrow.fs` knows.

File names come out of annotations that somebody else wrote, so each of them is checked before it is
read: it must stay within its folder, on a local disk also through links.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

import pyarrow.fs as pafs

from retina_ray.errors import SourceFileError
from retina_ray.storage.uris import join_uri, open_filesystem, shown_uri

Item = TypeVar("Item")
Result = TypeVar("Result")


_LOCAL_THREADS = 8
_REMOTE_THREADS = 16

_LEAVES = "file name leaves the folder"
_HINT = "a file name must be relative and stay within the folder of the images"


def resolve_inside(folder: Path, file_name: str) -> Path:
    """Find a file that an annotation names, and refuse one that lies elsewhere.

    Args:
        folder: of the images; may itself be a link.
        file_name: relative to it; may name sub-folders.

    Returns:
        The file with links resolved; it need not exist.

    Raises:
        OSError: it is a link that leads back to itself.
        SourceFileError: the name is absolute, climbs out with `..`, or is a link to the outside.
    """
    check_file_name(file_name)
    base = _resolved(folder)
    path = _resolved(base / file_name)
    if not path.is_relative_to(base):
        raise SourceFileError(_LEAVES, f"{file_name!r} is a link to {path}: {_HINT}; copy it in")
    return path


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError:  # of pathlib before Python 3.13, which is no fault of the program
        reason = "a link that leads back to itself; put the file in its place"
        raise OSError(errno.ELOOP, reason, str(path)) from None


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    is_local: bool,
    num_threads: int | None = None,
) -> Iterator[Result]:
    """Apply a function that reads files in threads, a few ahead, and yield results in order.

    Args:
        function: of one item.
        items: any number.
        is_local: whether it reads from a disk; answers of a remote storage take longer to come, so
            more of them are asked for at once.
        num_threads: None: up to 8 for a disk, 16 for a remote storage.
    """
    if num_threads is None:
        num_threads = min(_LOCAL_THREADS, os.cpu_count() or 1) if is_local else _REMOTE_THREADS
    with ThreadPoolExecutor(num_threads) as pool:
        ahead: deque[Future[Result]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) > 2 * num_threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


class SourceFolder:
    """A folder of source files. Picklable, so that tasks on other nodes can read from it.

    Args:
        uri: a local path, or a URI such as `s3://bucket/folder`, `gs://...` or `file://...`.

    Attributes:
        uri: as given; local paths are absolute.
        is_local: whether it lies on a disk of this machine (or one that is mounted).

    Raises:
        DataError: the URI's scheme is unknown.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        filesystem, path = open_filesystem(uri)
        self.is_local = isinstance(filesystem, pafs.LocalFileSystem)
        self.uri = path if self.is_local else os.fspath(uri).rstrip("/")

    def __repr__(self) -> str:
        return f"SourceFolder({str(self)!r})"

    def __str__(self) -> str:
        return shown_uri(self.uri)

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "is_local": self.is_local}

    @cached_property
    def _opened(self) -> tuple[pafs.FileSystem, str]:
        return open_filesystem(self.uri)

    @cached_property
    def _base(self) -> Path:
        return _resolved(Path(self.uri))

    def child(self, name: str) -> SourceFolder:
        """A folder below this one.

        Raises:
            SourceFileError: the name is absolute or climbs out.
        """
        check_file_name(name)
        return SourceFolder(join_uri(self.uri, name))

    def is_dir(self, name: str = "") -> bool:
        """Whether the folder, or one below it, exists."""
        return self._type(name) == pafs.FileType.Directory

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name; False for a name that leaves the folder."""
        return self._type(name) == pafs.FileType.File

    def _type(self, name: str) -> pafs.FileType:
        filesystem, path = self._opened
        if not name:
            return filesystem.get_file_info(path or "/").type
        try:
            check_file_name(name)
        except SourceFileError:
            return pafs.FileType.NotFound
        return filesystem.get_file_info(f"{path}/{name}").type

    def read_bytes(self, name: str, num_bytes: int | None = None) -> bytes:
        """Read a file.

        Args:
            name: relative to the folder; may name sub-folders.
            num_bytes: read only so many from its start; None: all.

        Raises:
            SourceFileError: as for `resolve_inside`.
            OSError: it is not there, or cannot be read.
            StorageError: a remote storage did not answer for a minute or two.
        """
        if self.is_local:
            with resolve_inside(self._base, name).open("rb") as file:
                return file.read(-1 if num_bytes is None else num_bytes)
        check_file_name(name)
        filesystem, base = self._opened
        with filesystem.open_input_file(f"{base}/{name}") as file:
            return file.read() if num_bytes is None else file.read_at(num_bytes, 0)

    def list_files(
        self, subfolder: str = "", *, suffixes: Collection[str], recursive: bool = False
    ) -> list[str]:
        """The files below a folder, sorted.

        Args:
            subfolder: relative to this folder; "" is the folder itself.
            suffixes: such as ".xml", in small letters; files with others are passed over, whatever
                the case of their letters.
            recursive: also those in sub-folders.

        Returns:
            Names relative to this folder, with `/`; none where there is no such sub-folder.

        Raises:
            SourceFileError: the sub-folder's name is absolute or climbs out.
        """
        if subfolder:
            check_file_name(subfolder)
        filesystem, base = self._opened
        start = f"{base}/{subfolder}".rstrip("/") or "/"
        selector = pafs.FileSelector(start, allow_not_found=True, recursive=recursive)
        wanted = tuple(suffixes)
        cut = len(base) + 1
        return sorted(
            info.path[cut:]
            for info in filesystem.get_file_info(selector)
            if info.is_file and info.path.lower().endswith(wanted)
        )


def check_file_name(file_name: str) -> None:
    """Refuse what is no relative name within a folder, whatever the system that it was made for.

    Raises:
        SourceFileError: the name is empty, absolute, or climbs out with `..`.
    """
    if not file_name or "\0" in file_name:
        raise SourceFileError(_LEAVES, f"{file_name!r} is not a file name")
    absolute = PurePosixPath(file_name).is_absolute() or PureWindowsPath(file_name).anchor
    parts = PurePosixPath(file_name.replace("\\", "/")).parts
    if absolute or ".." in parts:
        raise SourceFileError(_LEAVES, f"{file_name!r}: {_HINT}")
