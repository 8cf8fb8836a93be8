"""Paths and URIs: where files lie, and the file system that has them."""

from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.fs as pafs

from retina_ray.errors import DataError
from retina_ray.storage.retrying_filesystem import with_retries


def is_uri(uri: str | os.PathLike[str]) -> bool:
    """Whether a path names a remote file system (`s3://...`)."""
    return "://" in os.fspath(uri)


def open_filesystem(uri: str | os.PathLike[str]) -> tuple[pafs.FileSystem, str]:
    """Find the file system of a URI or a local path.

    Args:
        uri: a local path, absolute or relative, or a URI that `pyarrow.fs` knows.

    Returns:
        The file system, and the path on it without a trailing slash. A remote one waits for its
        storage, and raises `StorageError` where that was in vain: see
        `retina_ray.storage.retrying_filesystem`.

    Raises:
        DataError: the URI's scheme is unknown.
    """
    text = os.fspath(uri)
    if not is_uri(text):
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text))
    try:
        filesystem, path = pafs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, ValueError) as error:
        raise DataError(
            f"{shown_uri(text)}: not a storage that pyarrow knows ({error}); give a local path or "
            "a URI such as s3://bucket/folder or gs://bucket/folder"
        ) from error
    path = path.rstrip("/")
    scheme = text.partition("://")[0]
    return with_retries(filesystem, scheme=scheme, bucket=path.partition("/")[0]), path


def join_uri(uri: str | os.PathLike[str], name: str) -> str:
    """The URI or path of something below a folder; what stands behind a `?` stays behind."""
    folder, mark, options = os.fspath(uri).partition("?") if is_uri(uri) else (uri, "", "")
    text = os.fspath(folder).rstrip("/")
    return f"{text}/{name}{mark}{options}"


def parent_uri(uri: str | os.PathLike[str]) -> str:
    """The folder in which something lies; what stands behind a `?` stays behind."""
    path, mark, options = os.fspath(uri).partition("?") if is_uri(uri) else (uri, "", "")
    folder, slash, _ = os.fspath(path).rpartition("/")
    return f"{folder or slash or '.'}{mark}{options}"


def shown_uri(uri: str | os.PathLike[str]) -> str:
    """A URI as it may be shown and kept: without user, password and options."""
    text = os.fspath(uri)
    if not is_uri(uri):
        return text
    scheme, _, rest = text.partition("?")[0].partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"
