"""Small files and folders of a run, on a local disk or any `pyarrow.fs` URI."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.fs as pafs

__all__ = ["exists", "filesystem", "is_uri", "read_text", "write_text"]


def is_uri(path: str) -> bool:
    """Whether a path names a remote file system (`s3://...`)."""
    return "://" in path


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system that holds `uri`, and the path inside it."""
    if is_uri(uri):
        return pafs.FileSystem.from_uri(uri)
    return pafs.LocalFileSystem(), os.path.abspath(Path(uri).expanduser())


def exists(uri: str) -> bool:
    """Whether there is a file or a folder at `uri`."""
    fs, path = filesystem(uri)
    return fs.get_file_info(path).type != pafs.FileType.NotFound


def read_text(uri: str) -> str | None:
    """A file's text; None where there is no such file."""
    fs, path = filesystem(uri)
    if fs.get_file_info(path).type != pafs.FileType.File:
        return None
    with fs.open_input_file(path) as file:
        return file.read().decode()


def write_text(uri: str, text: str) -> None:
    """Write a file whole (its folders are made): a reader sees the old text or the new one."""
    fs, path = filesystem(uri)
    fs.create_dir(path.rsplit("/", 1)[0], recursive=True)
    is_local = isinstance(fs, pafs.LocalFileSystem)
    target = f"{path}.partial" if is_local else path
    with fs.open_output_stream(target) as file:
        file.write(text.encode())
    if is_local:
        Path(target).replace(path)
