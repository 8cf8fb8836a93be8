"""Checkpoints off the training path: copied in the step, written behind it.

The copy to host memory is all that a step waits for; serialising, writing, sending and switching
the index happen in a thread. At most one checkpoint is under way.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from retina_ray.errors import StorageError
from retina_ray.storage.disk_space import DiskSpace, is_disk_full, reason_of
from retina_ray.storage.uris import is_uri
from retina_ray.train.checkpoint.format import Checkpoint
from retina_ray.train.checkpoint.index import Entry
from retina_ray.train.checkpoint.store import CheckpointStore, FencedError
from retina_ray.train.errors import DiskFullError

logger = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the previous one stays."""


@dataclass(frozen=True)
class Settlement:
    """What the validation of the pending checkpoint came to; `metric` is as `save` takes it."""

    metrics: Mapping[str, float]
    metric: float | None


class CheckpointSaver:
    """Keeps the checkpoints of a run, from the one process that does so."""

    def __init__(self, store: CheckpointStore) -> None:
        """Take the lease of the run; who held it before is fenced off."""
        self._store = store
        self._index = store.acquire_lease()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def pending(self) -> Entry | None:
        """The checkpoint whose asynchronous validation has not been settled."""
        return self._index.pending

    def uri_of(self, entry: Entry) -> str:
        """Where a checkpoint lies."""
        return self._store.uri_of(entry.name)

    def is_better(self, metric: float | None) -> bool:
        """Whether a checkpoint of this metric would be the best one."""
        return self._index.is_better(metric)

    def save(
        self,
        checkpoint: Checkpoint,
        *,
        metric: float | None,
        settles: Settlement | None = None,
        is_pending: bool = False,
        before_switch: Callable[[], None] | None = None,
        after_switch: Callable[[str], None] | None = None,
    ) -> str:
        """Copy a checkpoint, which a step may change from then on, and let it be written.

        Args:
            checkpoint: what to write.
            metric: what "best" means, higher is better; None or NaN is never the best.
            settles: the validation of the pending checkpoint; it counts as soon as this one does.
            is_pending: this one is evaluated elsewhere from now on, and stays until it is settled.
            before_switch: done in the background when the checkpoint is written, before it counts.
            after_switch: likewise, with its URI, when it counts; must not raise.

        Returns the URI that it will have; until then a run goes on from the one before. Raises what
        `wait` raises of that one.
        """
        self.wait()
        entry = self._index.new_entry(checkpoint.meta.step, metric)
        before = self._index
        base = before if settles is None else before.settled(settles.metric)
        self._index = base.with_entry(entry, keep=self._store.keep, is_pending=is_pending)
        parts = {"model": checkpoint.model, "state": checkpoint.state, "ema": checkpoint.ema}
        copied, arrived = host_copy(parts)
        uri = self._store.uri_of(entry.name)

        def write() -> None:
            try:
                arrived()
                if settles is not None and before.pending is not None:
                    name, step = before.pending.name, before.pending.step
                    self._store.write_metrics(name, settles.metrics, step=step)
                self._store.add(
                    entry,
                    replace(checkpoint, **copied),
                    base,
                    is_pending=is_pending,
                    before_switch=before_switch,
                )
                if after_switch is not None:
                    after_switch(uri)
            except BaseException as error:
                self._error, self._index = error, before

        self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
        self._step, self._num_bytes = checkpoint.meta.step, _num_bytes(copied)
        self._thread.start()
        return uri

    def settle(self, settlement: Settlement) -> None:
        """Record the validation of the pending checkpoint, where no other checkpoint follows.

        Raises as `wait`.
        """
        self.wait()
        self._index = self._store.settle(self._index, settlement.metrics, metric=settlement.metric)

    def wait(self) -> None:
        """Wait for the checkpoint that is under way.

        Raises:
            CheckpointError: it could not be written.
            DiskFullError: the disk is full.
            StorageError: because its storage did not answer.
            FencedError: another process has taken the run over.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if isinstance(error, StorageError | FencedError):
            raise error
        if error is not None:
            kind = DiskFullError if is_disk_full(error) else CheckpointError
            raise kind(self._describe(error)) from error

    def close(self, *, has_failed: bool) -> None:
        """As `wait`; where the run has failed, an error is logged, so as not to hide the first."""
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
        free, remedy = "", "mend the cause"
        if is_disk_full(error) or not is_uri(self._store.uri):
            there = DiskSpace.at(self._store.uri)
            free = f" ({there})"
            if is_disk_full(error):
                remedy = _how_to_free_space(there, self._num_bytes)
        return (
            f"the checkpoint of step {self._step} could not be written to {self._store.uri}: "
            f"{reason_of(error)}{free}; {kept}: {remedy}, then --resume"
        )


def host_copy(tree: Any) -> tuple[Any, Callable[[], None]]:
    """Copy nested dicts, lists and tuples with all tensors in them to host memory.

    Tensors of a GPU are copied into pinned memory behind what is queued there, and before what is
    queued later: nothing waits for the device. The second value is what to call before the copy's
    tensors are read.
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


def _num_bytes(tree: Any) -> int:
    """Size of all tensors of a tree; what else is in it hardly counts."""
    if isinstance(tree, Tensor):
        return tree.numel() * tree.element_size()
    if isinstance(tree, Mapping):
        return sum(_num_bytes(value) for value in tree.values())
    return sum(map(_num_bytes, tree)) if isinstance(tree, list | tuple) else 0


def _how_to_free_space(disk: DiskSpace, num_bytes: int) -> str:
    """What to do where a file of about `num_bytes` could not be written."""
    takes = f"a checkpoint takes {num_bytes / 2**20:.0f} MiB"
    if disk.free_bytes > 1.1 * num_bytes:
        return f"{takes}, so a quota or a limit to the size of files is in the way: raise it"
    return f"{takes}, beside those that are kept: free some space"
