"""Of Ray Train V2: callbacks in its workers and its controller, and notices of drained nodes.

`ray.train.RunConfig` takes callbacks, but has public base classes only for those of users' code:

- `WorkerCallback` is called in the main thread of a worker's process, where alone a handler of
  SIGTERM can be set; without it a preempted worker ends without its checkpoint.
- `WorkerGroupCallback` sees the errors of single workers; without it a run on a full disk is
  restarted in vain.
- `ControllerCallback` is called before a group is resized; without it the steps since the last
  checkpoint are done again.
"""

from __future__ import annotations

import contextlib
import time

from ray.train.v2._internal.execution.callback import ControllerCallback as ControllerCallback
from ray.train.v2._internal.execution.callback import WorkerCallback as WorkerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback as WorkerGroupCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision as ResizeDecision
from ray.train.v2._internal.execution.worker_group import WorkerGroup as WorkerGroup
from ray.train.v2._internal.execution.worker_group import (
    WorkerGroupPollStatus as WorkerGroupPollStatus,
)


def drain_notice() -> str | None:
    """What Ray says of nodes that go away; None without news, and outside of a worker group.

    `ray.train.get_preemption_info()` says the same, but has all workers wait for each other and
    for an actor's answer: too dear for every step, as the loop's own agreement is there already.
    """
    info = None
    with contextlib.suppress(AttributeError, RuntimeError, AssertionError):
        info = get_train_context().preemption_context.preemption_info
    if info is None:
        return None
    nodes = ", ".join(node[:8] for node in info.preempted_node_ids)
    if not info.deadline_ms:
        return f"Ray drains node {nodes}"
    left_s = info.deadline_ms / 1000 - time.time()
    return f"Ray drains node {nodes}, which goes in {max(0.0, left_s):.0f} s"
