"""Of Ray Data: a call after each step of its scheduler, which is how `Rest` slows it down.

There is no public way to either. Without the call the scheduler looks hundreds of times a second
at tasks that wait, where training is slower than decoding.
"""

from __future__ import annotations

from typing import Any

from ray.data._internal.execution.execution_callback import ExecutionCallback as ExecutionCallback


def progress_counts(executor: Any) -> list[tuple[int, ...]]:
    """What the stages of a stream have done so far, in the order of the stages.

    Args:
        executor: as `ExecutionCallback.on_execution_step` gets it.

    Returns:
        Of each stage: tasks submitted, tasks finished, blocks generated, blocks taken.
    """
    return [
        (
            m.num_tasks_submitted,
            m.num_tasks_finished,
            m.num_task_outputs_generated,
            m.num_outputs_taken,
        )
        for m in (operator.metrics for operator in executor._topology)
    ]
