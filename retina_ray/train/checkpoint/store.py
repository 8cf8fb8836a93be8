"""Where a run keeps its checkpoints: folders beside an index that is switched atomically.

    checkpoints/
      index.json            which folders count: the last ones and the best one
      step-00000120/        see `retina_ray.train.checkpoint.format`

A folder is written whole before the index names it, so a kill at any moment leaves the previous
checkpoint loadable.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow.fs as pafs

from retina_ray.config import ConfigError
from retina_ray.errors import StorageError
from retina_ray.storage.files import atomic_folder, copy_down, copy_up, read_text, write_text
from retina_ray.storage.uris import join_uri, open_filesystem
from retina_ray.train.checkpoint.format import (
    META,
    STATE,
    Checkpoint,
    DamagedCheckpointError,
    read_folder,
    with_metrics,
    write_folder,
)
from retina_ray.train.checkpoint.index import CheckpointIndex, Entry
from retina_ray.train.run_files import CHECKPOINT_INDEX

logger = logging.getLogger(__name__)


class FencedError(RuntimeError):
    """Another process holds the lease of the run: this one may not add to its checkpoints."""


class CheckpointStore:
    """The checkpoints of one run, on a local disk or any `pyarrow.fs` URI."""

    def __init__(self, uri: str, *, keep: int = 1) -> None:
        """Open (and do not yet create) a folder that keeps some of the last ones, and the best."""
        self.uri = uri
        self.keep = keep
        self._fs, self._root = open_filesystem(uri)

    @property
    def index(self) -> CheckpointIndex:
        """Which checkpoints count at this moment.

        Raises:
            ConfigError: the index cannot be read.
        """
        try:
            text = read_text(self.uri_of(CHECKPOINT_INDEX))
            return CheckpointIndex() if text is None else CheckpointIndex.from_json(text)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ConfigError(
                f"{self.uri_of(CHECKPOINT_INDEX)}: not an index of checkpoints ({error!r}); delete "
                "it and give a checkpoint's folder beside it by name, e.g. to --init-from"
            ) from error

    @property
    def last(self) -> str | None:
        """URI of the newest checkpoint; None before the first."""
        last = self.index.last
        return None if last is None else self.uri_of(last.name)

    @property
    def last_step(self) -> int:
        """Training steps that the newest checkpoint has done; 0 before the first."""
        last = self.index.last
        return 0 if last is None else last.step

    @property
    def best(self) -> str | None:
        """URI of the checkpoint with the best metric; the last one while none has a metric."""
        index = self.index
        entry = index.best or index.last
        return None if entry is None else self.uri_of(entry.name)

    def uri_of(self, name: str) -> str:
        """URI of what is called so in this folder."""
        return join_uri(self.uri, name)

    def acquire_lease(self) -> CheckpointIndex:
        """Become the one who adds to this run's checkpoints; who did so before is fenced off.

        So a worker that was given up for lost, and is not, cannot spoil what its successor keeps.
        What killed ones left half written is removed.
        """
        index = replace(self.index, writer=os.urandom(8).hex())
        write_text(self.uri_of(CHECKPOINT_INDEX), index.to_json())
        self._drop_all_but(index.names)
        return index

    def add(
        self,
        entry: Entry,
        checkpoint: Checkpoint,
        index: CheckpointIndex,
        *,
        is_pending: bool = False,
        before_switch: Callable[[], None] | None = None,
    ) -> CheckpointIndex:
        """Write a checkpoint under the name of an entry, and switch the index to it.

        The entry is from `index.new_entry`, the index as it was read, or as the last `add` left it.
        One that is pending is evaluated from now on, and stays until `index.settled`. When the
        checkpoint is written and does not yet count, `before_switch` is done.

        Raises:
            FencedError: another process holds the lease.
        """
        new = index.with_entry(entry, keep=self.keep, is_pending=is_pending)
        try:
            _put_checkpoint(self.uri_of(entry.name), checkpoint)
            self._require_lease(index)
            if before_switch is not None:
                before_switch()
                self._require_lease(index)
            write_text(self.uri_of(CHECKPOINT_INDEX), new.to_json())
        except BaseException:
            with contextlib.suppress(Exception):  # on a full disk its space is needed
                if entry.name not in self.index.names:
                    self._fs.delete_dir(f"{self._root}/{entry.name}")
            with contextlib.suppress(OSError, StorageError, ConfigError):
                self._require_lease(index)  # else its successor took away what was half written
            raise
        self._drop_all_but(new.names)
        return new

    def settle(
        self, index: CheckpointIndex, metrics: Mapping[str, float], *, metric: float | None
    ) -> CheckpointIndex:
        """Record the validation of the pending checkpoint at the end of a run.

        `index` is as the last `add` left it; the new one is returned.

        Raises:
            FencedError: another process holds the lease.
        """
        assert index.pending is not None
        assert index.last is not None
        self._require_lease(index)
        for name in {index.pending.name, index.last.name}:
            self.write_metrics(name, metrics, step=index.pending.step)
        new = index.settled(metric)
        write_text(self.uri_of(CHECKPOINT_INDEX), new.to_json())
        self._drop_all_but(new.names)
        return new

    def write_metrics(self, name: str, metrics: Mapping[str, float], *, step: int) -> None:
        """Write the metrics of a validation that came in later into a checkpoint's folder.

        Raises:
            ConfigError: what the checkpoint says of itself cannot be read.
        """
        uri = self.uri_of(f"{name}/{META}")
        text = with_metrics(read_text(uri), metrics, step=step, uri=self.uri_of(name))
        write_text(uri, text)

    def go_back_to_whole(self) -> Checkpoint | None:
        """Where the last checkpoint cannot be read, make the newest that can be the last one.

        Nothing but time is lost by it: the steps in between are done again. Says so in the log.

        Returns:
            The checkpoint that is the last one then; None before the first.

        Raises:
            ConfigError: there are checkpoints, but none of them can be read.
        """
        index, faults = self.index, {}
        for entry in index.entries:
            try:
                checkpoint = read_checkpoint(self.uri_of(entry.name))
            except DamagedCheckpointError as error:
                faults[entry.name] = str(error)
                continue
            if faults:
                logger.warning(
                    "%s. The run goes on from %s instead, and does the steps from %d on again",
                    "; ".join(faults.values()),
                    self.uri_of(entry.name),
                    entry.step,
                )
                new = index.gone_back(entry, damaged=faults)
                write_text(self.uri_of(CHECKPOINT_INDEX), new.to_json())
            return checkpoint
        if faults:
            raise ConfigError(
                [("", fault) for fault in faults.values()]
                + [("", f"{self.uri}: no checkpoint of this run can be read: start a new run")]
            )
        return None

    def _require_lease(self, index: CheckpointIndex) -> None:
        writer = self.index.writer
        if writer not in ("", index.writer):  # "": the index is gone, and is written anew
            raise FencedError(
                f"{self.uri}: another process has taken this run over, and only one may write its "
                "checkpoints: this one ends without its last"
            )

    def _drop_all_but(self, names: set[str]) -> None:
        for info in self._fs.get_file_info(pafs.FileSelector(self._root)):
            if info.type == pafs.FileType.Directory and info.base_name not in names:
                with contextlib.suppress(OSError):
                    self._fs.delete_dir(info.path)


def _put_checkpoint(uri: str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint's folder whole, over what a killed process may have left there."""
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
