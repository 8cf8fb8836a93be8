"""Whether a folder holds a prepared set, and all of it; and if not, why.

Needs pyarrow only: Ray Data's tasks import it without PyTorch.
"""

from __future__ import annotations

import pyarrow.fs as pafs

from retina_ray.data.dataset_info import INFO_FILE, DatasetInfo
from retina_ray.data.schema import Fault
from retina_ray.data.shard_writer import list_shards

__all__ = ["shard_faults", "why_not_a_dataset"]


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
