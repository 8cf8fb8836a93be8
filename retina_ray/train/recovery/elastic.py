"""Another number of workers in mid-run: where a node goes or comes (`train.min_workers`).

Ray Train decides how many workers there is room for. When a worker is lost, the run goes on from
its last checkpoint, as after any failure. When there is room for more, nothing is broken, and
nothing should be lost: the workers end in order, with a checkpoint, before the larger group starts.
"""

from __future__ import annotations

import logging
import os
import signal
import time

import ray

from retina_ray.config import TrainConfig
from retina_ray.ray_internals.train import (
    ControllerCallback,
    ResizeDecision,
    WorkerGroup,
    WorkerGroupCallback,
)

INTERVAL_S = 60.0
"""How long a group runs before, and between, looks for room for another number of workers: a new
group takes some ten seconds to start."""

GRACE_S = 120.0
"""How long the workers may take for their step and their checkpoint before they are ended."""

_POLL_S = 0.5

logger = logging.getLogger(__name__)


def workers(train: TrainConfig) -> int | tuple[int, int]:
    """The number of workers as Ray Train's `ScalingConfig` takes it: fixed, or least and most."""
    if train.min_workers is None or train.min_workers == train.num_workers:
        return train.num_workers
    return train.min_workers, train.num_workers


class EndBeforeResize(ControllerCallback, WorkerGroupCallback):
    """Has the workers of a healthy group end with a checkpoint before another one replaces it.

    Ray Train itself would kill them where they stand, and the steps since their last checkpoint
    would be done again. Runs in its controller.
    """

    def __init__(self) -> None:
        self._group: WorkerGroup | None = None  # while its workers train

    def after_worker_group_training_start(self, worker_group: WorkerGroup) -> None:
        """Remember the group."""
        self._group = worker_group

    def before_controller_execute_failure_decision(self, failure_decision: object) -> None:
        """Forget a group that is broken: it cannot end in order."""
        del failure_decision
        self._group = None

    def before_worker_group_shutdown(self, worker_group: WorkerGroup) -> None:
        """Forget a group that has ended."""
        del worker_group
        self._group = None

    def before_controller_execute_resize_decision(self, resize_decision: ResizeDecision) -> None:
        """Tell the workers to end, as SIGTERM to their processes would, and wait for them."""
        group, self._group = self._group, None
        if group is None:
            return
        logger.info(
            "Another number of workers, %d: the present ones end with a checkpoint.",
            resize_decision.num_workers,
        )
        try:
            asked = group.execute_async(_end_soon)
            ray.wait(asked, num_returns=len(asked), timeout=GRACE_S)
            deadline = time.monotonic() + GRACE_S
            while time.monotonic() < deadline:
                status = group.poll_status(timeout=_POLL_S)
                if status.finished or status.errors:
                    return
                time.sleep(_POLL_S)
            logger.warning("The workers did not end within %g s.", GRACE_S)
        except Exception:
            # A group that dies at this moment is replaced anyway, from the checkpoint before.
            logger.exception("The workers could not be asked to end.")


def _end_soon() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
