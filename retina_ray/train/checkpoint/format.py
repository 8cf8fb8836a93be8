"""The files of one checkpoint: how they are written, checked and read.

    step-00000120/
      model.safetensors     the weights that are trained
      ema.safetensors       their moving average, where the run keeps one
      state.pt              optimizer, schedule and whatever else the run goes on from
      config.json           the complete configuration
      meta.json             step, classes, metrics; size and SHA-256 of the other files

Weights are safetensors; the rest is read with `weights_only=True`: nothing is unpickled from a
file.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from retina_ray.config import ConfigError, ExperimentConfig, from_json

FORMAT_VERSION = 2
"""The format that is written, and the only one that is read."""

META = "meta.json"
MODEL, EMA, STATE, CONFIG = "model.safetensors", "ema.safetensors", "state.pt", "config.json"


class CheckpointFormatError(ConfigError):
    """A format that this version does not know."""


class DamagedCheckpointError(ConfigError):
    """A checkpoint that is not what was written, or that holds what is not read."""


@dataclass(frozen=True)
class CheckpointMeta:
    """What a checkpoint says of itself, readable without its weights.

    Steps and (whole) epochs are done ones: the run goes on with the plan's row of this step.

    Attributes:
        categories: (original id, name) of each class, in the order of the labels.
        dataset_fingerprint: of the training data.
        metrics: of the last validation, e.g. `val/AP`; empty before the first.
        metrics_step: step of that validation, which may be an earlier one; None before the first.
    """

    step: int
    epoch: int
    categories: list[tuple[int, str]]
    dataset_fingerprint: str
    metrics: dict[str, float] = field(default_factory=dict)
    wandb_run_id: str = ""
    version: int = FORMAT_VERSION
    metrics_step: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        state: the other parts by name (criterion, optimizer, schedule, scaler, rng, ...); None
            where only the weights were asked for.
        ema: moving average of the weights in `model`; None where the run keeps none.
    """

    model: dict[str, Tensor]
    state: dict[str, Any] | None
    config: ExperimentConfig
    meta: CheckpointMeta
    ema: dict[str, Tensor] | None = None

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights to evaluate, predict and start from: the average where there is one."""
        return self.model if self.ema is None else self.ema


def write_folder(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the files of a checkpoint into an empty local folder, `meta.json` last.

    Raises:
        OSError: no space, no permission; safetensors and torch have errors of their own for it.
    """
    _write_weights(folder / MODEL, checkpoint.model)
    if checkpoint.ema is not None:
        _write_weights(folder / EMA, checkpoint.ema)
    with (folder / STATE).open("wb") as file:
        torch.save(checkpoint.state, file)
    (folder / CONFIG).write_text(checkpoint.config.model_dump_json(indent=1))
    files = {path.name: _stamp(path) for path in sorted(folder.iterdir())}
    tree = {**asdict(checkpoint.meta), "files": files}
    tree["checksum"] = _checksum(tree)
    (folder / META).write_text(json.dumps(tree, indent=1))


def read_folder(folder: Path, *, uri: str, weights_only: bool = False) -> Checkpoint:
    """Read a checkpoint's local folder, and check it against what was written.

    `uri` is its place, for messages; `weights_only` leaves optimizer and the like unread.

    Raises:
        CheckpointFormatError: of another format.
        DamagedCheckpointError: cut short, changed, or with pickled code in it.
        ConfigError: the disk does not give the files.
    """
    path = folder / META
    meta, stamps = _parse(path.read_bytes() if path.is_file() else None, uri)
    try:
        _check_files(folder, stamps, skipped={STATE} if weights_only else set())
        return Checkpoint(
            model=load_file(folder / MODEL),
            state=None if weights_only else _read_state(folder / STATE),
            config=from_json(ExperimentConfig, (folder / CONFIG).read_text()),
            meta=meta,
            ema=load_file(folder / EMA) if EMA in stamps else None,
        )
    except MemoryError:
        raise
    except Exception as error:  # whatever torch, safetensors and JSON make of a broken file
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise ConfigError(
                f"{uri}: its files cannot be had ({_in_words(error)}): that is the disk's or the "
                "permissions' fault, and says nothing of the checkpoint"
            ) from error
        raise _damaged(uri, error) from error


def read_meta(text: str | None, *, uri: str) -> CheckpointMeta:
    """What a checkpoint says of itself, given its `meta.json`, or None where there is none.

    Raises:
        CheckpointFormatError: of another format.
        DamagedCheckpointError: cut short or changed.
    """
    return _parse(text, uri)[0]


def with_metrics(text: str | None, metrics: Mapping[str, float], *, step: int, uri: str) -> str:
    """The text of a `meta.json` with the metrics of a validation that came in later.

    Raises as `read_meta`.
    """
    _parse(text, uri)
    tree = {**json.loads(text or "{}"), "metrics": dict(metrics), "metrics_step": step}
    return json.dumps({**tree, "checksum": _checksum(tree)}, indent=1)


def _parse(text: str | bytes | None, uri: str) -> tuple[CheckpointMeta, Mapping[str, Any]]:
    """Read `meta.json`: what it says, and sizes and checksums of the other files by name."""
    try:
        if text is None:
            raise ValueError(f"{META} is missing")
        tree = json.loads(text)
        return _checked_meta(tree, uri), tree["files"]
    except CheckpointFormatError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(uri, error) from error


def _damaged(uri: str, error: Exception) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"{uri}: this checkpoint cannot be read ({_in_words(error)})")


def _checked_meta(tree: Any, uri: str) -> CheckpointMeta:
    version = tree["version"]
    if version != FORMAT_VERSION:
        is_newer = isinstance(version, int) and version > FORMAT_VERSION
        raise CheckpointFormatError(
            f"{uri}: checkpoint format {version!r} is not the one that this version of retina_ray "
            f"reads ({FORMAT_VERSION}): "
            + ("update retina_ray" if is_newer else "take another checkpoint")
        )
    if tree["checksum"] != _checksum(tree):
        raise ValueError(f"{META} was changed after it was written")
    known = {one.name for one in fields(CheckpointMeta)}
    values = {name: value for name, value in tree.items() if name in known}
    values["categories"] = [(number, name) for number, name in tree["categories"]]
    return CheckpointMeta(**values)


def _check_files(folder: Path, stamps: Mapping[str, Any], *, skipped: set[str]) -> None:
    """Compare the files with the sizes and checksums that `meta.json` gives; name every fault."""
    faults = []
    for name, stamp in stamps.items():
        path = folder / name
        if name in skipped:
            continue
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif path.stat().st_size != stamp["bytes"]:
            faults.append(
                f"{name} has {path.stat().st_size} bytes, but {stamp['bytes']} were written: it "
                "was cut short or replaced"
            )
        elif _stamp(path) != stamp:
            faults.append(f"{name} was changed after it was written: its SHA-256 is another")
    faults += [
        f"{name} is not named in {META}" for name in sorted({MODEL, STATE, CONFIG} - stamps.keys())
    ]
    if faults:
        raise ValueError("; ".join(faults))


def _read_state(path: Path) -> dict[str, Any]:
    """Read what is not weights, without executing anything that it holds."""
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path.name} is cut short, or not the archive that torch writes: it was not executed"
        )
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        # torch's own message goes on with advice on how to execute the file after all.
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path.name} holds {named[1] if named else 'something'}, which is no tensor, number, "
            "text, list or dict: a pickle like that can run any code, and it was not executed. No "
            "version of retina_ray writes it; do not trust where this file came from"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path.name} is cut short or changed: {error}") from error


def _write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)


def _stamp(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _checksum(tree: Mapping[str, Any]) -> str:
    """SHA-256 of what `meta.json` says, however it is laid out."""
    said = {key: value for key, value in tree.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _in_words(error: Exception) -> str:
    """An error of ours as it is; another one with its kind."""
    if isinstance(error, json.JSONDecodeError):
        return f"{META} is cut short or changed: {error}"
    if type(error) is ValueError:
        return str(error)
    return f"{type(error).__name__}: {error}"
