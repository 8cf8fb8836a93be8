"""What the driver of a run does when its workers have ended: done, go on, or give up.

An error that leaves a worker makes Ray Train restart the group from the last checkpoint
(`train.max_failures` times). What it cannot judge, the workers write down in the run's folder, and
end in peace: this is read here.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from retina_ray.ray_internals.train import WorkerGroupCallback, WorkerGroupPollStatus
from retina_ray.storage.files import exists
from retina_ray.train.engine import distributed
from retina_ray.train.errors import (
    DiskFullError,
    NonFiniteLossError,
    NonRetryableError,
    RunError,
    RunStoppedError,
    RunTerminatedError,
)
from retina_ray.train.recovery.failures import (
    NON_RETRYABLE,
    FailureNote,
    Note,
    name_cause,
    naming_full_disk,
)
from retina_ray.train.recovery.preemption import PREEMPTED, TOLD, EndOnSigterm
from retina_ray.train.recovery.rollback import NonFiniteStep, Rollbacks, dump_batch
from retina_ray.train.recovery.watchdog import HUNG
from retina_ray.train.run_files import NON_FINITE_STEP, STOPPED
from retina_ray.train.spec import RunSpec

logger = logging.getLogger(__name__)


def supervise(spec: RunSpec, attempt: Callable[[], None]) -> None:
    """Bring a run to its end, starting its workers again where that is what it takes.

    - Preempted workers (SIGTERM, a node that is drained) wrote a checkpoint: the run goes on from
      it, wherever there is room. This has no limit and is no failure.
    - After a loss that is not finite the run goes back to its last checkpoint and leaves that step
      out, `train.max_rollbacks` times in its life. A trial of a sweep is not rolled back: that a
      choice of parameters diverges is a result, and a trial with a batch less is no fair match.
    - SIGTERM to this process ends the run in order.

    `attempt` runs a group of workers to its end, from the last checkpoint.

    Raises:
        NonRetryableError: the run would end in the same way again.
        DiskFullError: the driver itself could not write its notes.
        RunTerminatedError: the run was told to end, and did, with a checkpoint.
        RunError: as `attempt` raised it.
    """
    notes = _Notes(spec.run_uri)
    with naming_full_disk(spec.run_uri), EndOnSigterm(spec.run_uri) as signal:
        while True:
            notes.clear()
            try:
                attempt()
            except KeyboardInterrupt:
                if signal.asked:
                    raise RunTerminatedError(
                        "SIGTERM, before its workers came to a checkpoint"
                    ) from None
                raise
            except RunError as error:
                raise _with_stacks(error, spec) from error
            reason, stopped = notes.failure.read(), notes.stopped.read()
            if reason is not None:
                raise NonRetryableError(reason)
            non_finite = notes.non_finite.read()
            if non_finite is not None:
                _roll_back(spec, NonFiniteStep.from_json(non_finite))
            elif stopped is None:
                return
            elif signal.asked or stopped.startswith(TOLD):
                raise RunTerminatedError(stopped)
            elif not stopped.startswith(PREEMPTED):
                return  # the loop's own reasons: it is done before its plan's end
            else:
                logger.warning("%s: going on from step %d", stopped, spec.start_step())


@contextlib.contextmanager
def telling_the_driver(run_uri: str) -> Iterator[None]:
    """Around a worker's work: errors that the driver has to answer are written down for it.

    They come on every rank at the same step; each ends in peace, and rank 0 writes. An error of
    one worker alone leaves it, see `NoUselessRestart`.
    """
    notes, writes = _Notes(run_uri), distributed.rank() == 0
    with naming_full_disk(run_uri):
        if writes:
            notes.clear()  # of a group that Ray Train restarted before the driver could read them
        try:
            yield
        except RunStoppedError as error:
            if writes:
                notes.stopped.write(error.reason)
        except NonFiniteLossError as error:
            if writes:
                notes.non_finite.write(NonFiniteStep.of(error).to_json())
        except NON_RETRYABLE as error:
            if writes:
                notes.failure.write(name_cause(error))


class NoUselessRestart(WorkerGroupCallback):
    """Ends a run at once where one worker has an error that a restart does not mend.

    That worker cannot end in peace: the others wait for it in a collective operation, until they
    are ended. So it fails, and Ray Train, whose controller this runs in, ends them all. It restarts
    a group after an error of a worker, but not after one of a callback.
    """

    def after_worker_group_poll_status(self, worker_group_status: WorkerGroupPollStatus) -> None:
        """Raise such an error of a worker.

        Raises:
            DiskFullError: as the worker raised it.
        """
        for error in worker_group_status.errors.values():
            if isinstance(error, DiskFullError):
                raise error


class _Notes:
    """Those that the workers of a run leave to its driver."""

    def __init__(self, run_uri: str) -> None:
        self.failure = FailureNote(run_uri)
        self.stopped = Note(run_uri, STOPPED)
        self.non_finite = Note(run_uri, NON_FINITE_STEP)

    def clear(self) -> None:
        for note in (self.failure, self.stopped, self.non_finite):
            note.clear()


def _roll_back(spec: RunSpec, found: NonFiniteStep) -> None:
    """Leave a step out from now on.

    Raises:
        NonRetryableError: that was done as often as is allowed, or the step was left out already.
    """
    rollbacks = Rollbacks(spec.run_uri)
    before = rollbacks.all()
    folder = None if spec.group else dump_batch(spec, found)
    shown = "" if folder is None else f" (the batch: {folder})"
    allowed = 0 if spec.group else spec.config.train.max_rollbacks
    if len(before) >= allowed or found.step in {one.step for one in before}:
        tried = f", after {len(before)} roll-backs (train.max_rollbacks)" if before else ""
        FailureNote(spec.run_uri).write(f"{found.message}{tried}")
        raise NonRetryableError(f"{found.message}{tried}{shown}")
    start = spec.start_step()
    rollbacks.add(NonFiniteStep(**{**vars(found), "back_to": start}))
    logger.warning(
        "%s. Going back to step %d, and leaving out the batch of step %d%s",
        found.message,
        start,
        found.step,
        shown,
    )


def _with_stacks(error: RunError, spec: RunSpec) -> RunError:
    """Point to the stacks of workers that hung, where there were some."""
    with contextlib.suppress(Exception):
        if exists(f"{spec.run_uri}/{HUNG}"):
            return type(error)(f"{error}\nstacks of workers that hung: {spec.run_uri}/{HUNG}")
    return error
