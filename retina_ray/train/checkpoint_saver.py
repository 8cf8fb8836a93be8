"""Checkpoints off the training path: copied in the step, written behind it.

The copy to host memory is all that a step waits for; serialising, writing, sending and switching
the index happen in a thread. At most one checkpoint is under way.
"""

from __future__ import annotations

import copy
import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retina_ray.data.patience import StorageError
from retina_ray.train.checkpoint_files import Checkpoint
from retina_ray.train.checkpoint_store import CheckpointStore, OvertakenError
from retina_ray.train.storage import is_uri

__all__ = ["CheckpointError", "CheckpointSaver", "host_copy"]

logger = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the previous one stays."""


class CheckpointSaver:
    """Keeps the checkpoints of a run, from the one process that does so."""

    def __init__(self, store: CheckpointStore) -> None:
        """Take the run over; who wrote its checkpoints before may no more."""
        self._store = store
        self._index = store.claim()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def best_metric(self) -> float | None:
        """Metric of the best checkpoint, those under way included."""
        return None if self._index.best is None else self._index.best.metric

    def is_better(self, metric: float | None) -> bool:
        """Whether a checkpoint of this metric would be the best one."""
        return self._index.is_better(metric)

    def save(
        self,
        checkpoint: Checkpoint,
        *,
        metric: float | None,
        before_switch: Callable[[], None] | None = None,
    ) -> str:
        """Copy a checkpoint, and let it be written.

        Args:
            checkpoint: may change once this returns: a step changes the tensors in place.
            metric: what "best" means, higher is better; None or NaN is never the best.
            before_switch: done in the background when the checkpoint is written, before it counts.

        Returns:
            URI that the checkpoint will have. Until then a run goes on from the one before.

        Raises:
            CheckpointError: the checkpoint before this one could not be written.
            StorageError: because its storage did not answer.
        """
        self.wait()
        entry = self._index.new_entry(checkpoint.meta.step, metric)
        before, self._index = self._index, self._index.with_entry(entry, keep=self._store.keep)
        parts = {"model": checkpoint.model, "state": checkpoint.state, "ema": checkpoint.ema}
        copied, arrived = host_copy(parts)

        def write() -> None:
            try:
                arrived()
                self._store.add(
                    entry,
                    replace(checkpoint, **copied),
                    before,
                    before_switch=before_switch,
                )
            except BaseException as error:
                self._error, self._index = error, before

        self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
        self._step = checkpoint.meta.step
        self._thread.start()
        return self._store.uri_of(entry.name)

    def wait(self) -> None:
        """Wait for the checkpoint that is under way.

        Raises:
            CheckpointError: it could not be written.
            StorageError: because its storage did not answer.
            OvertakenError: another process has taken the run over.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if isinstance(error, StorageError | OvertakenError):
            raise error
        if error is not None:
            raise CheckpointError(self._describe(error)) from error

    def close(self, *, has_failed: bool) -> None:
        """Wait for the checkpoint that is under way, at the end of a run.

        Args:
            has_failed: the run ended with an error, which that of the checkpoint shall not hide:
                it is logged.

        Raises:
            CheckpointError, StorageError, OvertakenError: as `wait`.
        """
        try:
            self.wait()
        except Exception as error:
            if not has_failed:
                raise
            logger.error("%s", error)

    def _describe(self, error: BaseException) -> str:
        """What could not be written, where, why, and what is left."""
        last = self._index.last
        kept = (
            "there is none before it"
            if last is None
            else f"the last one that is kept is {self._store.uri_of(last.name)} (step {last.step})"
        )
        return (
            f"the checkpoint of step {self._step} could not be written to {self._store.uri}: "
            f"{_reason(error)}{_room(self._store.uri)}; {kept}: mend the cause, then carry on with "
            "--resume"
        )


def host_copy(tree: Any) -> tuple[Any, Callable[[], None]]:
    """Copy nested dicts, lists and tuples with all tensors in them to host memory.

    Tensors of a GPU are copied into pinned memory behind what is queued there, and before what is
    queued later: nothing waits for the device.

    Args:
        tree: of tensors and plain values.

    Returns:
        The copy, and what to call before its tensors are read.
    """
    devices: set[torch.device] = set()
    copied = _copy(tree, devices)
    events = []
    for device in devices:
        with torch.cuda.device(device):
            event = torch.cuda.Event()
            event.record()
            events.append(event)

    def arrived() -> None:
        for event in events:
            event.synchronize()

    return copied, arrived


def _copy(tree: Any, devices: set[torch.device]) -> Any:
    if isinstance(tree, Tensor):
        tensor = tree.detach()
        if tensor.device.type != "cuda":
            return tensor.clone()
        devices.add(tensor.device)
        return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(
            tensor, non_blocking=True
        )
    if isinstance(tree, Mapping):
        filled: Any = copy.copy(tree)  # keeps the kind, and what torch hangs on a state dict
        for key, value in tree.items():
            filled[key] = _copy(value, devices)
        return filled
    if isinstance(tree, list | tuple):
        return type(tree)([_copy(value, devices) for value in tree])
    return copy.deepcopy(tree)


def _reason(error: BaseException) -> str:
    """Why writing failed: the system's own word, where torch hides it behind its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return f"{type(cause).__name__}: {cause}"
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {error}"


def _room(uri: str) -> str:
    """Room on the disk of a local folder, in words."""
    if is_uri(uri):
        return ""
    folder = Path(uri)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return f" ({usage.free / 2**20:.0f} of {usage.total / 2**20:.0f} MiB are free there)"
