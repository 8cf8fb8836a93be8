"""What of a prepared set lies in a folder: all, a part and why, leftovers; room for a new one.

Needs numpy and pyarrow only: Ray Data's tasks import it without PyTorch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection

import pyarrow.fs as pafs

from retina_ray.data.prepared.info import INFO_FILE, DatasetInfo
from retina_ray.errors import DataError, Fault
from retina_ray.storage.files import PARTIAL_SUFFIX
from retina_ray.storage.uris import open_filesystem, shown_uri

IMPORT_FOLDER = "_import"
"""Folder beside the shards in which an import that goes on keeps account of what is finished."""


def list_shards(filesystem: pafs.FileSystem, path: str) -> list[pafs.FileInfo]:
    """The shard files in a folder, in order, whether or not a `dataset.json` names them."""
    return [info for info in _shard_files(filesystem, path) if info.base_name.endswith(".parquet")]


def _shard_files(filesystem: pafs.FileSystem, path: str) -> list[pafs.FileInfo]:
    """Shards, whole and partial."""
    selector = pafs.FileSelector(path, allow_not_found=True)
    infos = [
        info
        for info in filesystem.get_file_info(selector)
        if info.base_name.startswith("shard-")
        and info.base_name.endswith((".parquet", PARTIAL_SUFFIX))
    ]
    return sorted(infos, key=lambda info: info.base_name)


def named_shards(filesystem: pafs.FileSystem, path: str) -> frozenset[str] | None:
    """The shards that a folder's `dataset.json` names, whether or not they are there.

    Returns:
        Their file names; None where there is no description, or none that can be understood.

    Raises:
        OSError: the description is there and cannot be read.
    """
    info_path = f"{path}/{INFO_FILE}"
    if filesystem.get_file_info(info_path).type == pafs.FileType.NotFound:
        return None
    with filesystem.open_input_stream(info_path) as stream:
        text = stream.readall()
    try:  # not by DatasetInfo: a set of a newer format is one as well
        return frozenset(str(shard["file"]) for shard in json.loads(text)["shards"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def begin_dataset(uri: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Make the folder of a set, with nothing of an earlier one in it.

    Args:
        uri: folder of the set.
        overwrite: replace a complete set that is there.

    Raises:
        DataError: a complete set is there, and is not to be replaced.
    """
    filesystem, path = open_filesystem(uri)
    _refuse_complete(filesystem, path, uri, overwrite=overwrite)
    delete_dataset(uri)
    filesystem.create_dir(path, recursive=True)


def begin_beside(uri: str | os.PathLike[str], *, overwrite: bool) -> frozenset[str]:
    """Make the folder of a set; a complete one that is there stays whole until this one is.

    What an interrupted import finished stays as well.

    Args:
        uri: folder of the set.
        overwrite: replace a complete set that is there.

    Returns:
        The shards of the complete set, whose names the new ones must not have; none where there is
        no such set. `finish_dataset` deletes them once it has named the new ones in their place.

    Raises:
        DataError: a complete set is there, and is not to be replaced.
    """
    filesystem, path = open_filesystem(uri)
    exists = _refuse_complete(filesystem, path, uri, overwrite=overwrite)
    old = named_shards(filesystem, path)
    if exists and old is None:  # nothing can open it: there is no set to lose
        delete_dataset(uri)
    filesystem.create_dir(path, recursive=True)
    return old or frozenset()


def _refuse_complete(
    filesystem: pafs.FileSystem, path: str, uri: str | os.PathLike[str], *, overwrite: bool
) -> bool:
    """Whether a complete set is there.

    Raises:
        DataError: it is, and is not to be replaced.
    """
    exists = filesystem.get_file_info(f"{path}/{INFO_FILE}").type != pafs.FileType.NotFound
    if exists and not overwrite:
        raise DataError(
            f"{shown_uri(uri)}: holds a complete data set already; give another folder, or ask to "
            "overwrite it"
        )
    return exists


def delete_dataset(uri: str | os.PathLike[str]) -> None:
    """Delete a prepared data set, complete or not; other files of its folder stay.

    Args:
        uri: folder of the set; nothing happens where there is none.
    """
    filesystem, path = open_filesystem(uri)
    info_path = f"{path}/{INFO_FILE}"
    if filesystem.get_file_info(info_path).type != pafs.FileType.NotFound:
        filesystem.delete_file(info_path)
    clean_up(filesystem, path, keep=())


def clean_up(filesystem: pafs.FileSystem, path: str, *, keep: Collection[str]) -> None:
    """Delete the account of an import, and all shards but those to keep, whole or partial."""
    account = f"{path}/{IMPORT_FOLDER}"
    if filesystem.get_file_info(account).type != pafs.FileType.NotFound:
        filesystem.delete_dir(account)
    for info in _shard_files(filesystem, path):
        if info.base_name not in keep:
            filesystem.delete_file(info.path)


def why_not_a_dataset(filesystem: pafs.FileSystem, path: str, uri: str) -> str:
    """Say why a folder without `dataset.json` is not a prepared data set, and what to do."""
    if filesystem.get_file_info(path).type == pafs.FileType.NotFound:
        return f"{uri}: no such folder; prepare the data set first (see datasets/README.md)"
    if list_shards(filesystem, path):
        return (
            f"{uri}: holds shards but no {INFO_FILE}: its preparation was interrupted, or is still "
            "going on; prepare it again"
        )
    selector = pafs.FileSelector(path)
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        folders = [
            info.base_name
            for info in filesystem.get_file_info(selector)
            if info.type == pafs.FileType.Directory
        ]
        found = filesystem.get_file_info([f"{path}/{f}/{INFO_FILE}" for f in folders])
        inner = [f for f, info in zip(folders, found, strict=True) if info.is_file]
        if inner:
            choices = ", ".join(f"{uri.rstrip('/')}/{folder}" for folder in sorted(inner))
            return f"{uri}: holds no {INFO_FILE}, but these folders do: {choices}; name one of them"
    return f"{uri}: holds no {INFO_FILE}; prepare the data set first (see datasets/README.md)"


def shard_faults(filesystem: pafs.FileSystem, path: str, info: DatasetInfo) -> list[Fault]:
    """Find shards that are missing or of another size than `dataset.json` says."""
    found = filesystem.get_file_info([f"{path}/{shard.file}" for shard in info.shards])
    faults = []
    for shard, file_info in zip(info.shards, found, strict=True):
        where = f"{path}/{shard.file}"
        if file_info.type == pafs.FileType.NotFound:
            faults.append(Fault("missing shard", "is missing; copy or prepare it again", where))
        elif file_info.size != shard.num_bytes:
            faults.append(
                Fault(
                    "damaged shard",
                    f"has {file_info.size} bytes, expected {shard.num_bytes}: it was cut or "
                    "changed; copy or prepare it again",
                    where,
                )
            )
    return faults
