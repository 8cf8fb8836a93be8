"""What each worker of a run does: open the data, build the loop, restore it, and run.

The same function runs in a Ray Train worker, in Ray Train's local mode (the trial's or the
driver's own process), and without Ray at all (`batches` given by the caller).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from retina_ray.data.loading.unpack import PlannedBatch
from retina_ray.train.checkpoint.compatibility import require_own
from retina_ray.train.checkpoint.format import Checkpoint
from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.checkpoint.store import FencedError
from retina_ray.train.engine import distributed
from retina_ray.train.engine.loop import TrainingLoop
from retina_ray.train.errors import RunStoppedError
from retina_ray.train.recovery.rollback import skipped_steps
from retina_ray.train.run.async_validation import AsyncValidation
from retina_ray.train.run.run_callbacks import Report, RunCallbacks, StopReason
from retina_ray.train.spec import RunInputs, RunSpec
from retina_ray.train.tracking import Status


def run_worker(
    spec: RunSpec,
    inputs: RunInputs,
    batches: Iterable[PlannedBatch],
    *,
    start_step: int,
    device: torch.device,
    report: Report,
    stop_reason: StopReason = lambda: None,
    validation: AsyncValidation | None = None,
) -> None:
    """Run one worker's part of a training run, from its last checkpoint to the end.

    Args:
        spec: the run.
        inputs: its opened data.
        batches: this worker's rows of the plan from `start_step` on.
        start_step: training steps that the last checkpoint has done.
        device: where to train.
        report: called on every rank after each validation with the metrics (empty but on rank 0)
            and the URI that the checkpoint has as soon as it is written ("" elsewhere).
        stop_reason: asked after each step, on every rank, why the run should stop; None: go on.
        validation: evaluates checkpoints elsewhere, for `train.async_validation`.

    Raises:
        ConfigError: the checkpoint cannot be read, or is of another model, classes or data.
        CheckpointError: a checkpoint could not be written (rank 0; one validation late).
        ValueError: `train.async_validation` is set and there is no `validation`, or the reverse.
        ValidationError: an asynchronous validation failed (rank 0; when the next one is due).
        NonFiniteLossError, RunStoppedError, TooManyBadImagesError: as `TrainingLoop.run`.
    """
    if spec.config.train.async_validation != (validation is not None):
        raise ValueError("train.async_validation and `validation` belong together")
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(spec.config.train.cpus_per_worker)))
    distributed.set_cuda_device(device)
    callbacks = RunCallbacks(
        spec,
        inputs,
        start_step=start_step,
        report=report,
        stop_reason=stop_reason,
        validation=validation,
    )
    loop = TrainingLoop(
        spec.config,
        inputs.layout,
        device,
        inputs.category_ids,
        callbacks,
        is_new=start_step == 0,
        skip_steps=frozenset(skipped_steps(spec.run_uri)),
    )
    if start_step > 0:
        checkpoint = _own_checkpoint(spec, inputs, start_step)
        loop.restore(checkpoint)
        callbacks.restore(checkpoint)
    elif spec.init_from is not None:
        loop.learner.init_from(load_checkpoint(spec.init_from, weights_only=True))
    status: Status = "failed"
    try:
        loop.run(batches)
        status = "finished"
    except RunStoppedError:
        status = "stopped"
        raise
    except SystemExit:  # how Ray Tune ends the thread of a trial that its scheduler stopped
        status = "finished" if loop.step >= inputs.layout.num_steps else "stopped"
        raise
    finally:
        callbacks.close(status)


def _own_checkpoint(spec: RunSpec, inputs: RunInputs, start_step: int) -> Checkpoint:
    last = spec.checkpoints.last
    assert last is not None
    checkpoint = load_checkpoint(last)
    require_own(
        checkpoint,
        uri=last,
        config=spec.config,
        train_uri=spec.train_uri,
        info=inputs.train.info,
    )
    if checkpoint.meta.step != start_step:
        raise FencedError(
            f"{last} came to be while this worker started at step {start_step}: another process "
            "resumed this run, or one that was given up for lost goes on"
        )
    return checkpoint
