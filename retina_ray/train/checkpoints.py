"""Where a run keeps its checkpoints: folders beside an index that is switched atomically.

    checkpoints/
      index.json            which folder is the last one, which the best one
      step-00000120/        model.safetensors, state.pt, config.json, meta.json

A folder is written whole before the index names it, so a kill at any moment leaves the previous
checkpoint loadable. Weights are safetensors; the rest is read with `weights_only=True`: nothing is
unpickled from a file.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import torch
from safetensors.torch import load_file, save_file

from retina_ray.config import ConfigError, ExperimentConfig, from_json
from retina_ray.train.storage import exists, filesystem, read_text, write_text

FORMAT_VERSION = 1
INDEX = "index.json"

__all__ = ["Checkpoint", "CheckpointMeta", "CheckpointStore", "load_checkpoint"]


@dataclass(frozen=True)
class CheckpointMeta:
    """What a checkpoint says of itself, readable without its weights.

    Attributes:
        step: training steps done.
        epoch: whole epochs done.
        categories: (original id, name) of each class, in the order of the labels.
        dataset_fingerprint: of the training data.
        metrics: figures of the evaluation at this step, e.g. `val/AP`.
        wandb_run_id: the run that tracks this training.
        version: format of the checkpoint.
    """

    step: int
    epoch: int
    categories: list[tuple[int, str]]
    dataset_fingerprint: str
    metrics: dict[str, float] = field(default_factory=dict)
    wandb_run_id: str = ""
    version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        model: the model's state dict.
        state: the other parts by name (criterion, optimizer, schedule, scaler, rng); None where
            only the weights were asked for.
        config: the complete configuration of the run.
        meta: what the checkpoint says of itself.
    """

    model: dict[str, torch.Tensor]
    state: dict[str, Any] | None
    config: ExperimentConfig
    meta: CheckpointMeta


class CheckpointStore:
    """The checkpoints of one run, on a local disk or any `pyarrow.fs` URI."""

    def __init__(self, uri: str) -> None:
        """Open (and do not yet create) the folder `uri`."""
        self.uri = uri
        self._fs, self._root = filesystem(uri)

    @property
    def last(self) -> str | None:
        """URI of the newest checkpoint; None before the first."""
        return self._named("last")

    @property
    def last_step(self) -> int:
        """Training steps that the newest checkpoint has done; 0 before the first."""
        return self._index().get("last_step", 0)

    @property
    def best(self) -> str | None:
        """URI of the checkpoint with the best metric; None before the first."""
        return self._named("best")

    @property
    def best_metric(self) -> float | None:
        """Metric of the best checkpoint."""
        return self._index().get("best_metric")

    def save(self, checkpoint: Checkpoint, *, metric: float | None) -> str:
        """Write a checkpoint, name it the last one (and the best one where it is), drop the others.

        Args:
            checkpoint: what to write; `state` must be there.
            metric: what "best" means, higher is better; None or NaN is never the best.

        Returns:
            URI of the checkpoint.
        """
        name = f"step-{checkpoint.meta.step:08d}"
        index = self._index()
        best_metric = index.get("best_metric")
        if metric is not None and not math.isfinite(metric):
            metric = None
        is_best = metric is not None and (best_metric is None or metric > best_metric)
        if name in (index.get("last"), index.get("best")):
            name += "-again"
        with tempfile.TemporaryDirectory(prefix="retina_ray_checkpoint_") as folder:
            _write(Path(folder), checkpoint)
            self._put_folder(Path(folder), name)
        index.update(last=name, last_step=checkpoint.meta.step)
        if is_best or "best" not in index:
            index.update(best=name, best_metric=metric)
        write_text(self._join(INDEX), json.dumps(index, indent=1))
        self._drop_all_but({index["last"], index["best"]})
        return self._join(name)

    def _named(self, which: str) -> str | None:
        name = self._index().get(which)
        return None if name is None else self._join(name)

    def _join(self, *names: str) -> str:
        return "/".join([self.uri.rstrip("/"), *names])

    def _path(self, *names: str) -> str:
        return "/".join([self._root.rstrip("/"), *names])

    def _index(self) -> dict[str, Any]:
        return json.loads(read_text(self._join(INDEX)) or "{}")

    def _put_folder(self, folder: Path, name: str) -> None:
        """Copy under a temporary name, then rename: half a folder never has a final name."""
        partial = f".partial-{name}"
        with contextlib.suppress(FileNotFoundError, OSError):
            self._fs.delete_dir(self._path(partial))
        is_local = isinstance(self._fs, pafs.LocalFileSystem)
        target = partial if is_local else name
        self._fs.create_dir(self._path(target), recursive=True)
        pafs.copy_files(
            str(folder),
            self._path(target),
            source_filesystem=pafs.LocalFileSystem(),
            destination_filesystem=self._fs,
        )
        if is_local:
            if exists(self._join(name)):
                self._fs.delete_dir(self._path(name))
            self._fs.move(self._path(partial), self._path(name))

    def _drop_all_but(self, names: set[str]) -> None:
        for info in self._fs.get_file_info(pafs.FileSelector(self._root)):
            if info.type == pafs.FileType.Directory and info.base_name not in names:
                with contextlib.suppress(OSError):
                    self._fs.delete_dir(info.path)


class _NewerFormatError(ConfigError):
    """A format that this version cannot know."""


def load_checkpoint(uri: str, *, weights_only: bool = False) -> Checkpoint:
    """Read a checkpoint folder, or the last checkpoint of a run's folder.

    Args:
        uri: a checkpoint's folder, a `checkpoints` folder, or a run's folder.
        weights_only: leave optimizer and the like unread.

    Raises:
        ConfigError: nothing there, cut short, or of a newer version; says which and what to do.
    """
    uri = _resolve(uri)
    with _local_copy(uri) as folder:
        try:
            meta_tree = json.loads((folder / "meta.json").read_text())
            version = meta_tree["version"]
            if version > FORMAT_VERSION:
                raise _NewerFormatError(
                    f"{uri}: checkpoint format {version} is newer than this version of "
                    f"retina_ray reads ({FORMAT_VERSION}): update retina_ray"
                )
            meta_tree["categories"] = [tuple(c) for c in meta_tree["categories"]]
            return Checkpoint(
                model=load_file(folder / "model.safetensors"),
                state=None
                if weights_only
                else torch.load(folder / "state.pt", weights_only=True, map_location="cpu"),
                config=from_json(ExperimentConfig, (folder / "config.json").read_text()),
                meta=CheckpointMeta(**meta_tree),
            )
        except _NewerFormatError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{uri}: this checkpoint cannot be read ({type(error).__name__}: {error}); "
                "take another one of the same run"
            ) from error


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    save_file(
        {name: tensor.contiguous() for name, tensor in checkpoint.model.items()},
        folder / "model.safetensors",
    )
    torch.save(checkpoint.state, folder / "state.pt")
    (folder / "config.json").write_text(checkpoint.config.model_dump_json(indent=1))
    (folder / "meta.json").write_text(json.dumps(asdict(checkpoint.meta), indent=1))


def _resolve(uri: str) -> str:
    """Turn a run's folder or a `checkpoints` folder into its last checkpoint."""
    uri = uri.rstrip("/")
    for candidate in (uri, f"{uri}/checkpoints"):
        if exists(f"{candidate}/meta.json"):
            return candidate
        last = CheckpointStore(candidate).last
        if last is not None:
            return last
    raise ConfigError(
        f"{uri}: no checkpoint there; give a checkpoint's folder (checkpoints/step-...) or the "
        "folder of a run"
    )


@contextlib.contextmanager
def _local_copy(uri: str) -> Iterator[Path]:
    """The folder itself where it is local, else a temporary copy."""
    fs, path = filesystem(uri)
    if isinstance(fs, pafs.LocalFileSystem):
        yield Path(path)
        return
    folder = Path(tempfile.mkdtemp(prefix="retina_ray_checkpoint_"))
    try:
        pafs.copy_files(path, str(folder), source_filesystem=fs)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
