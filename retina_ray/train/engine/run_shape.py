"""What the plan says of a run as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class RunShape:
    """What the plan says of the run as a whole.

    Attributes:
        num_steps: training steps of the whole run.
        steps_per_epoch: training steps of an epoch.
        val_rows_per_worker: validation batches that each worker sees in a round.
        start_step: training steps that are already done.
        rows_per_step: training rows of this worker in a step, its micro-batches. Where the workers
            have no equal share of the images, some rows hold none.
        skip_steps: training steps, from 0, whose rows are passed over: no update, but the schedule
            moves on.
    """

    num_steps: int
    steps_per_epoch: int
    val_rows_per_worker: int
    start_step: int = 0
    rows_per_step: int = 1
    skip_steps: frozenset[int] = frozenset()
