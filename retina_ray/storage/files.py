"""Small files and folders of a run, on a local disk or any `pyarrow.fs` URI.

A remote storage is waited for, see `retina_ray.storage.retry`.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pyarrow.fs as pafs

from retina_ray.storage.uris import open_filesystem


def exists(uri: str) -> bool:
    """Whether there is a file or a folder at `uri`."""
    fs, path = open_filesystem(uri)
    return fs.get_file_info(path).type != pafs.FileType.NotFound


def read_text(uri: str) -> str | None:
    """A file's text; None where there is no such file."""
    fs, path = open_filesystem(uri)
    if fs.get_file_info(path).type != pafs.FileType.File:
        return None
    with fs.open_input_file(path) as file:
        return file.read().decode()


def write_text(uri: str, text: str) -> None:
    """Write a file whole (its folders are made): a reader sees the old text or the new one."""
    write_bytes(uri, text.encode())


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file whole (its folders are made): a reader sees the old content or the new one.

    On a local disk that holds for a power cut as well; an object store sees to it by itself.
    """
    fs, path = open_filesystem(uri)
    fs.create_dir(path.rsplit("/", 1)[0], recursive=True)
    if not isinstance(fs, pafs.LocalFileSystem):
        with fs.open_output_stream(path) as file:
            file.write(content)
        return
    partial, target = Path(f"{path}.partial"), Path(path)
    try:
        partial.write_bytes(content)
        sync(partial)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(target.parent)


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
    if fs.get_file_info(path).type != pafs.FileType.File:
        return False
    with fs.open_input_file(path) as source, file.open("wb") as sink:
        while piece := source.read(2**24):
            sink.write(piece)
    return True
