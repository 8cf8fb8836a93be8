"""Loading a checkpoint by its own folder or that of its run, and what to do where it is damaged."""

from __future__ import annotations

import contextlib

from retina_ray.config import ConfigError
from retina_ray.storage.files import exists, read_text
from retina_ray.storage.uris import join_uri
from retina_ray.train.checkpoint.format import (
    META,
    Checkpoint,
    CheckpointMeta,
    DamagedCheckpointError,
    read_meta,
)
from retina_ray.train.checkpoint.index import CheckpointIndex
from retina_ray.train.checkpoint.store import CheckpointStore, read_checkpoint
from retina_ray.train.run_files import CHECKPOINTS


def load_checkpoint(uri: str, *, weights_only: bool = False) -> Checkpoint:
    """Read a checkpoint's folder, or the last checkpoint of a run's (or its `checkpoints`).

    `weights_only` leaves optimizer and the like unread.

    Raises:
        ConfigError: nothing there, cut short, changed, with pickled code in it, or of another
            format; says which and what to do.
    """
    uri = _resolve(uri)
    try:
        return read_checkpoint(uri, weights_only=weights_only)
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(f"{error}; {_way_out(uri)}") from error


def load_meta(uri: str) -> CheckpointMeta:
    """Read what a checkpoint says of itself, without its weights, as `load_checkpoint` does."""
    uri = _resolve(uri)
    try:
        text = read_text(f"{uri}/{META}")
    except UnicodeDecodeError:
        text = ""  # damaged, as the reader will say
    return read_meta(text, uri=uri)


def _way_out(uri: str) -> str:
    """What to do about a checkpoint that cannot be read: another one of the run that can be."""
    store, _, name = uri.rpartition("/")
    index = CheckpointIndex()
    with contextlib.suppress(ConfigError):
        index = CheckpointStore(store).index
    for entry in index.entries:
        if entry.name == name:
            continue
        with contextlib.suppress(ConfigError):
            read_checkpoint(CheckpointStore(store).uri_of(entry.name))
            return (
                f"{store}/{entry.name} of the same run can be read (step {entry.step}): give that "
                "one, or use --resume, which goes back to it"
            )
    if name in index.names:
        return "no other checkpoint of this run can be read: start a new run"
    return "take another one of the same run"


def _resolve(uri: str) -> str:
    """Turn a run's folder or a `checkpoints` folder into its last checkpoint."""
    uri = uri.rstrip("/")
    for candidate in (uri, join_uri(uri, CHECKPOINTS)):
        if exists(join_uri(candidate, META)):
            return candidate
        store = CheckpointStore(candidate)
        if store.last is not None:
            return store.last
    folder, _, name = uri.rpartition("/")
    with contextlib.suppress(ConfigError):
        if folder and name in CheckpointStore(folder).index.names:
            return uri  # what is wrong with it, the reader says
    raise ConfigError(
        f"{uri}: no checkpoint there; give a checkpoint's folder (checkpoints/step-...) or the "
        "folder of a run"
    )
