"""The states of the random generators of all workers, for a resume that repeats a run.

Augmentation draws from generators of its own, seeded by epoch and image; in a worker only PyTorch's
generators are used, so Python's and NumPy's have no part in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retina_ray.train.engine import distributed


def own_state(device: torch.device) -> dict[str, Tensor]:
    """The generators of this worker: the CPU's, and its GPU's where it has one."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def gather_states(device: torch.device) -> list[dict[str, Tensor]] | None:
    """Collect the states of all workers, in the order of ranks; every worker must call it.

    Returns:
        All of them on rank 0, None elsewhere.
    """
    return distributed.gather_objects(own_state(device))


def restore_state(states: list[dict[str, Tensor]], device: torch.device) -> None:
    """Set this worker's generators.

    Args:
        states: of `gather_states`; a worker that was not there takes rank 0's.
        device: where this worker trains.
    """
    rank = distributed.rank()
    mine = states[rank if rank < len(states) else 0]
    torch.set_rng_state(mine["cpu"])
    if device.type == "cuda" and "cuda" in mine:
        torch.cuda.set_rng_state(mine["cuda"], device)
