"""Of Ray Tune: the queue through which a trial of several workers reports.

Tune reads it only within a step of the trial. It holds one report, so workers that are still to end
after Tune stopped the trial would wait at the next one for ever.
"""

from __future__ import annotations

import contextlib

from ray.train._internal.session import get_session
from ray.util.queue import Empty


def drop_report() -> None:
    """Take away a report of this process's trial, where there is one."""
    session = get_session()
    if session is not None:
        with contextlib.suppress(Empty):
            session._get_or_create_inter_actor_queue().get_nowait()
