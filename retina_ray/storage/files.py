"""Small files and folders, on a local disk or any `pyarrow.fs` URI; atomic writes.

A remote storage is waited for, see `retina_ray.storage.retry`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from retina_ray.storage.uris import open_filesystem

PARTIAL_SUFFIX = ".partial"
"""End of the names of local files and folders that are being written."""


def exists(uri: str) -> bool:
    """Whether there is a file or a folder at `uri`."""
    fs, path = open_filesystem(uri)
    return fs.get_file_info(path).type != pafs.FileType.NotFound


def read_bytes(uri: str | os.PathLike[str]) -> bytes:
    """Read a file, wherever it lies; a link is followed.

    Raises:
        DataError: the URI's scheme is unknown.
        OSError: it is not there, or cannot be read.
    """
    fs, path = open_filesystem(uri)
    with fs.open_input_file(path) as file:
        return file.read()


def read_text(uri: str) -> str | None:
    """A file's text; None where there is no such file."""
    try:
        return read_bytes(uri).decode()
    except (FileNotFoundError, NotADirectoryError):
        return None


class AtomicFile:
    """A file that readers see whole or not at all, also after a power cut.

    On a local disk it is written aside, synced and renamed into its place; an object store shows a
    file when it is closed. As a context manager it commits, or aborts after an error.

    Args:
        fs: where it goes.
        path: on that file system; its folder exists.
        durable: wait until a local file is on the disk; False: for what is easily made again.

    Attributes:
        sink: to write the bytes to.
    """

    def __init__(self, fs: pafs.FileSystem, path: str, *, durable: bool = True) -> None:
        self._fs, self._path, self._durable = fs, path, durable
        self._partial: Path | None = None
        if isinstance(fs, pafs.LocalFileSystem):
            self._partial = _partial_of(Path(path))
            self.sink: Any = self._partial.open("xb")
        else:
            self.sink = fs.open_output_stream(path)

    def commit(self) -> None:
        """Give the file its name."""
        if self._partial is None:
            self.sink.close()
            return
        try:
            self.sink.close()
            if self._durable:
                sync(self._partial)
            os.replace(self._partial, self._path)
        except BaseException:
            self._partial.unlink(missing_ok=True)
            raise
        if self._durable:
            sync(Path(self._path).parent)

    def abort(self) -> None:
        """Leave no file."""
        if self._partial is not None:
            with contextlib.suppress(OSError):  # what it still holds may not fit on a full disk
                self.sink.close()
            self._partial.unlink(missing_ok=True)
            return
        self.sink.close()
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(self._path)

    def __enter__(self) -> Any:
        return self.sink

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.commit()
        else:
            self.abort()


@contextlib.contextmanager
def atomic_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A local folder that readers see whole or not at all, also after a power cut.

    Args:
        folder: its place; the folders above it are made.
        overwrite: replace what lies there.

    Yields:
        An empty folder beside it to write into; what is in it at the end is synced and renamed.

    Raises:
        OSError: something lies at its place already, or it cannot be written.
    """
    partial = _partial_of(folder)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in (*partial.rglob("*"), partial):
            sync(path)
        if overwrite:
            shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(folder.parent)


def _partial_of(path: Path) -> Path:
    """A name of its own: what an earlier process left behind may still be written to."""
    start = path.name[:60]  # a name has 255 bytes at most
    return path.with_name(f"{start}.{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}")


def write_whole(fs: pafs.FileSystem, path: str, content: bytes, *, durable: bool = True) -> None:
    """Write an `AtomicFile` of this content."""
    with AtomicFile(fs, path, durable=durable) as sink:
        sink.write(content)


def write_bytes(uri: str | os.PathLike[str], content: bytes) -> None:
    """Write an `AtomicFile`, and the folders above it."""
    fs, path = open_filesystem(uri)
    fs.create_dir(path.rsplit("/", 1)[0], recursive=True)
    write_whole(fs, path, content)


def write_text(uri: str | os.PathLike[str], text: str) -> None:
    """Write an `AtomicFile`, and the folders above it."""
    write_bytes(uri, text.encode())


def sync(path: Path) -> None:
    """Wait until a local file's content, or a folder's list of names, is on the disk.

    Without it a file that was renamed into its place can be empty after a power cut.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some mounted file systems know no such thing, above all for folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def copy_up(folder: Path, uri: str) -> None:
    """Copy what a local folder holds to the folder `uri`, over what is there."""
    fs, path = open_filesystem(uri)
    pafs.copy_files(
        str(folder),
        path,
        source_filesystem=pafs.LocalFileSystem(),
        destination_filesystem=fs,
    )


def copy_down(uri: str, file: Path) -> bool:
    """Copy the file `uri` to a local one; False where there is none."""
    fs, path = open_filesystem(uri)
    try:
        source = fs.open_input_file(path)
    except FileNotFoundError:
        return False
    with source, file.open("wb") as sink:
        shutil.copyfileobj(source, sink, 2**24)
    return True
