"""The states of the random generators of all workers, for a resume that repeats a run.

Augmentation draws from generators of its own, seeded by epoch and image; in a worker only PyTorch's
generators are used, so Python's and NumPy's have no part in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retina_ray.train.engine import distributed


def gather_states(device: torch.device) -> list[dict[str, Tensor]] | None:
    """The CPU's state and that of the GPU, if any, of each worker in the order of ranks.

    Every worker must call it; only rank 0 gets them.
    """
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return distributed.gather_objects(states)


def restore_state(states: list[dict[str, Tensor]], device: torch.device) -> None:
    """Set this worker's generators to `gather_states`; one that was not there takes rank 0's."""
    rank = distributed.rank()
    mine = states[rank if rank < len(states) else 0]
    torch.set_rng_state(mine["cpu"])
    if device.type == "cuda" and "cuda" in mine:
        torch.cuda.set_rng_state(mine["cuda"], device)
