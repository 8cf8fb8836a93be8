"""A training run on Ray: the stream of Ray Data into the workers of a `TorchTrainer`.

Two ways to host the same worker function:
- `fit`: Ray Train workers (one process each, DDP where there are several), restarted from the last
  checkpoint when one of them dies;
- `fit_in_process`: Ray Train's local mode, in the calling process. A trial of one worker starts in
  about two seconds this way, against half a minute for a worker group of its own.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from typing import Any

import ray.train
import torch
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from retina_ray.data.patience import StorageError
from retina_ray.data.pipeline import execution_options, expect_order, iterate_shard, stream
from retina_ray.train import distributed
from retina_ray.train.failures import (
    HOPELESS,
    FailureNote,
    HopelessRunError,
    RunError,
    cause_of,
    name_cause,
)
from retina_ray.train.resources import Footprint
from retina_ray.train.spec import RunInputs, RunSpec
from retina_ray.train.storage import filesystem
from retina_ray.train.worker import Report, run_worker

SHARD = "run"

__all__ = ["fit", "fit_in_process"]


def fit(spec: RunSpec, footprint: Footprint, *, callbacks: list[Any] | None = None) -> None:
    """Run on a Ray Train worker group, to the end of the plan.

    Args:
        spec: the run; where its folder holds a checkpoint, the run goes on from there.
        footprint: what a worker needs.
        callbacks: Ray Train callbacks, e.g. the one that relays reports to Ray Tune.

    Raises:
        RunError: a worker failed more than `train.max_failures` times, or for a reason that a
            restart does not mend; the message is the cause.
        KeyboardInterrupt: Ctrl-C; the workers have ended, and the last checkpoint stays.
    """
    train, note = spec.config.train, FailureNote(spec.run_uri)
    note.clear()
    storage, path = filesystem(f"{spec.run_uri}/ray_train")
    trainer = TorchTrainer(
        _worker_in_group,
        train_loop_config={"spec": spec},
        datasets={SHARD: _StreamOf(spec)},
        dataset_config=DataConfig(
            execution_options=execution_options(), enable_shard_locality=False
        ),
        scaling_config=ScalingConfig(
            num_workers=train.num_workers,
            use_gpu=footprint.use_gpu,
            resources_per_worker=footprint.per_worker(),
        ),
        torch_config=TorchConfig(backend="nccl" if footprint.use_gpu else "gloo"),
        run_config=RunConfig(
            name=spec.run_id,
            storage_path=path,
            storage_filesystem=storage,
            failure_config=FailureConfig(max_failures=train.max_failures),
            callbacks=callbacks or [],
        ),
    )
    try:
        _fit(trainer)
    except ray.train.TrainingFailedError as error:
        with contextlib.suppress(StorageError):  # which may be what ended the run
            note.write(cause_of(error))
        raise RunError(cause_of(error)) from error
    reason = note.read()
    if reason is not None:
        raise HopelessRunError(reason)


def fit_in_process(spec: RunSpec, *, report: Report) -> None:
    """Run one worker in this process, through Ray Train's local mode.

    Args:
        spec: a run of one worker.
        report: called after each evaluation with its metrics and the checkpoint's URI.
    """

    def worker() -> None:
        _work(spec, report)

    TorchTrainer(
        worker,
        datasets={SHARD: _StreamOf(spec)},
        scaling_config=ScalingConfig(num_workers=0),
    ).fit()


def _fit(trainer: TorchTrainer) -> None:
    """Let Ray Train run, and give Ctrl-C its usual meaning back.

    Ray Train answers the signal by ending its workers, then raises SystemExit(0), as if all had
    been done, and leaves its handler behind.
    """
    if threading.current_thread() is not threading.main_thread():
        trainer.fit()
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)


class _StreamOf:
    """Makes the stream when a worker group starts: from the last checkpoint of that moment."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec

    def __call__(self) -> ray.data.Dataset:
        inputs = RunInputs.open(self._spec)
        return stream(
            inputs.plan,
            inputs.loader,
            batch_bytes=inputs.batch_bytes,
            start_step=self._spec.start_step(),
        )


def _worker_in_group(config: dict[str, Any]) -> None:
    """Entry point of a Ray Train worker."""
    spec: RunSpec = config["spec"]
    try:
        _work(spec, _report_to_train)
    except HOPELESS as error:
        if distributed.rank() == 0:
            FailureNote(spec.run_uri).write(name_cause(error))


def _work(spec: RunSpec, report: Report) -> None:
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    inputs = RunInputs.open(spec)
    start_step = spec.start_step()
    device = get_device() if spec.config.train.use_gpu is not False else torch.device("cpu")
    shard = ray.train.get_dataset_shard(SHARD)
    batches = iterate_shard(shard, pin_memory=device.type == "cuda")
    mine = inputs.layout.worker_rows(distributed.rank(), start_step=start_step)
    run_worker(
        spec,
        inputs,
        expect_order(batches, mine),
        start_step=start_step,
        device=device,
        report=report,
    )


def _report_to_train(metrics: dict[str, Any], checkpoint_uri: str) -> None:
    """Tell Ray Train, on every rank; the checkpoint already is where it stays."""
    ray.train.report({**metrics, "checkpoint_uri": checkpoint_uri})
