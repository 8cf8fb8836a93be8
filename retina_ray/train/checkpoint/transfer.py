"""One checkpoint's folder at its place: a local disk, or any `pyarrow.fs` URI."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs

from retina_ray.storage.files import atomic_folder, copy_down, copy_up, write_text
from retina_ray.storage.uris import open_filesystem
from retina_ray.train.checkpoint.format import META, STATE, Checkpoint, read_folder, write_folder


def put_checkpoint(uri: str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint's folder whole, over what a killed process may have left there.

    Raises:
        OSError: no space, no permission; safetensors and torch have errors of their own for it.
        StorageError: a remote storage did not answer.
    """
    fs, path = open_filesystem(uri)
    if isinstance(fs, pafs.LocalFileSystem):
        with atomic_folder(Path(path), overwrite=True) as folder:
            write_folder(folder, checkpoint)
    else:
        _put_remote(fs, path, uri, checkpoint)


def _put_remote(fs: pafs.FileSystem, path: str, uri: str, checkpoint: Checkpoint) -> None:
    """Send the files, `meta.json` last: without it a folder is no checkpoint."""
    with contextlib.suppress(FileNotFoundError, OSError):
        fs.delete_dir(path)
    with tempfile.TemporaryDirectory(prefix="retina_ray_checkpoint_") as temporary:
        folder = Path(temporary)
        write_folder(folder, checkpoint)
        meta = (folder / META).read_text()
        (folder / META).unlink()
        fs.create_dir(path, recursive=True)
        copy_up(folder, uri)
    write_text(f"{uri}/{META}", meta)


def read_checkpoint(uri: str, *, weights_only: bool = False) -> Checkpoint:
    """As `read_folder`, wherever it lies; `load_checkpoint` also takes the folder of a run."""
    with _local_copy(uri, skipped={STATE} if weights_only else set()) as folder:
        return read_folder(folder, uri=uri, weights_only=weights_only)


@contextlib.contextmanager
def _local_copy(uri: str, *, skipped: set[str]) -> Iterator[Path]:
    """The folder itself where it is local, else a temporary copy of all files but some."""
    fs, path = open_filesystem(uri)
    if isinstance(fs, pafs.LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="retina_ray_checkpoint_") as folder:
        for info in fs.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
            if info.type == pafs.FileType.File and info.base_name not in skipped:
                copy_down(f"{uri}/{info.base_name}", Path(folder) / info.base_name)
        yield Path(folder)
