"""The few collective operations that training needs; each works without a process group too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_active() -> bool:
    """Whether there is a process group of more than one worker."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This worker's rank; 0 without a process group."""
    return dist.get_rank() if is_active() else 0


def world_size() -> int:
    """Number of workers; 1 without a process group."""
    return dist.get_world_size() if is_active() else 1


def mean(values: Tensor) -> Tensor:
    """Average a tensor over the workers (a new tensor, the same on each of them)."""
    if not is_active():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def maximum(value: int, device: torch.device) -> int:
    """The largest of a number of every worker, the same on each (waits for the device)."""
    if not is_active():
        return value
    largest = torch.tensor(value, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Give every worker rank 0's values, in place."""
    if is_active():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def all_objects(value: Any) -> list[Any]:
    """Collect a picklable value of every worker on each of them, in the order of ranks."""
    if not is_active():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def gather_objects(value: Any) -> list[Any] | None:
    """Collect a value of every worker at rank 0, in the order of ranks; None elsewhere."""
    if not is_active():
        return [value]
    gathered: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, gathered)
    return gathered


def union(values: dict[str, str], device: torch.device) -> dict[str, str]:
    """Merge a dict of every worker; the same on each of them (waits for the device).

    Where all are empty, which is the rule, one number is exchanged.
    """
    if not is_active():
        return values
    if not bool(mean(torch.tensor(float(len(values)), device=device)) > 0):
        return {}
    return {key: value for one in all_objects(values) for key, value in one.items()}


def set_cuda_device(device: torch.device) -> None:
    """Make collectives of Python objects use this worker's own GPU under NCCL."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def gather_rng_states(device: torch.device) -> list[dict[str, Tensor]] | None:
    """The states of PyTorch's generators of each worker, CPU and GPU, at rank 0; None elsewhere.

    Augmentation draws from generators of its own, seeded by epoch and image, and a worker uses
    neither Python's nor NumPy's.
    """
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return gather_objects(states)


def restore_rng_state(states: list[dict[str, Tensor]], device: torch.device) -> None:
    """Set this worker's generators; one that was not there at the time takes rank 0's."""
    mine = states[rank() if rank() < len(states) else 0]
    torch.set_rng_state(mine["cpu"])
    if device.type == "cuda" and "cuda" in mine:
        torch.cuda.set_rng_state(mine["cuda"], device)
