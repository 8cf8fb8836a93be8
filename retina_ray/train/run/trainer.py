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
from collections.abc import Sequence
from typing import Any

import ray
import ray.train
import torch
from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from retina_ray.data.loading.ray_stream import execution_options, stream
from retina_ray.data.loading.stream_reader import expect_order, iterate_shard
from retina_ray.errors import StorageError
from retina_ray.storage.uris import open_filesystem
from retina_ray.train.engine import distributed
from retina_ray.train.errors import RunError
from retina_ray.train.recovery import elastic
from retina_ray.train.recovery.failures import FailureNote, cause_of
from retina_ray.train.recovery.preemption import SigtermCallback, StopSigns
from retina_ray.train.recovery.supervision import NoUselessRestart, supervise, telling_the_driver
from retina_ray.train.recovery.watchdog import Watchdog
from retina_ray.train.run.async_validation import AsyncValidation, Outcome, validate
from retina_ray.train.run.resources import ResourceRequest, leave_a_cpu
from retina_ray.train.run.run_callbacks import Report, StopReason
from retina_ray.train.run.worker import run_worker
from retina_ray.train.spec import RunInputs, RunSpec

SHARD = "run"


def fit(spec: RunSpec, request: ResourceRequest, *, callbacks: list[Any] | None = None) -> None:
    """Run on Ray Train worker groups, to the end of the plan.

    Where the run's folder holds a checkpoint, the run goes on from there. `callbacks` are Ray
    Train's, e.g. the one that relays reports to Ray Tune.

    Raises:
        RunError: a worker failed more than `train.max_failures` times, or for a reason that a
            restart does not mend; the message is the cause. See `supervise`.
        KeyboardInterrupt: Ctrl-C; the workers have ended, and the last checkpoint stays.
    """
    supervise(spec, lambda: _fit_group(spec, request, callbacks or []))


def _fit_group(spec: RunSpec, request: ResourceRequest, callbacks: list[Any]) -> None:
    """Run one group, with as many restarts as Ray Train is allowed to make."""
    train, note = spec.config.train, FailureNote(spec.run_uri)
    # Ray Train takes callbacks of workers and of its controller as well.
    both: list[Any] = [*callbacks, SigtermCallback(), elastic.EndBeforeResize(), NoUselessRestart()]
    storage, path = open_filesystem(f"{spec.run_uri}/ray_train")
    trainer = TorchTrainer(
        _worker_in_group,
        train_loop_config={"spec": spec},
        datasets={SHARD: _nothing_yet},
        dataset_config=StreamConfig(spec),
        scaling_config=ScalingConfig(
            num_workers=elastic.workers(train),
            elastic_resize_monitor_interval_s=elastic.INTERVAL_S,
            use_gpu=request.use_gpu,
            resources_per_worker=request.per_worker(),
        ),
        torch_config=TorchConfig(backend="nccl" if request.use_gpu else "gloo"),
        run_config=RunConfig(
            name=spec.run_id,
            storage_path=path,
            storage_filesystem=storage,
            # Nodes that are taken away count apart, and Ray Train sets no limit to them.
            failure_config=FailureConfig(max_failures=train.max_failures),
            callbacks=both,
        ),
    )
    try:
        _fit(trainer)
    except ray.train.TrainingFailedError as error:
        with contextlib.suppress(StorageError, OSError):  # which may be what ended the run
            note.write(cause_of(error))
        raise RunError(cause_of(error)) from error


def fit_in_process(spec: RunSpec, *, report: Report) -> None:
    """Run one worker in this process, through Ray Train's local mode.

    `report` is called after each validation with its metrics and the checkpoint's URI.
    """
    TorchTrainer(
        lambda: _work(spec, report),
        datasets={SHARD: lambda: _stream_of(spec, num_workers=1)},
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


class StreamConfig(DataConfig):
    """Makes the stream when a worker group starts: for its workers, from the last checkpoint.

    The data sets that a trainer is given do not learn how many workers there are. So it is given
    one that holds nothing, and the stream takes its place here.
    """

    def __init__(self, spec: RunSpec) -> None:
        """For a run."""
        super().__init__(execution_options=execution_options(), enable_shard_locality=False)
        self._spec = spec

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        worker_handles: Any,
        worker_node_ids: list[str] | None,
        **kwargs: Any,
    ) -> list[dict[str, ray.data.DataIterator]]:
        """Split the stream for the workers of a group."""
        nodes = worker_node_ids or []
        streams = {name: _stream_of(self._spec, world_size, nodes) for name in datasets}
        return super().configure(streams, world_size, worker_handles, worker_node_ids, **kwargs)


def _nothing_yet() -> ray.data.Dataset:
    return ray.data.range(0)


def _stream_of(spec: RunSpec, num_workers: int, node_ids: Sequence[str] = ()) -> ray.data.Dataset:
    """The stream of a run from its last checkpoint on, for workers on nodes if they reserve any."""
    inputs = RunInputs.open(spec, num_workers)
    has_room = leave_a_cpu(node_ids, spec.config.train.cpus_per_worker)
    return stream(
        inputs.plan,
        inputs.loader,
        batch_bytes=inputs.batch_bytes,
        start_step=spec.start_step(),
        validate_first=spec.validates_first(),
        cpus_per_task=None if has_room else 0,
    )


def _worker_in_group(config: dict[str, Any]) -> None:
    """Entry point of a Ray Train worker."""
    spec: RunSpec = config["spec"]
    with telling_the_driver(spec.run_uri), StopSigns(spec.run_uri) as signs:
        _work(spec, _report_to_train, stop_reason=signs.reason)


def _work(spec: RunSpec, report: Report, stop_reason: StopReason = lambda: None) -> None:
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    inputs = RunInputs.open(spec, distributed.world_size())
    start_step = spec.start_step()
    device = get_device() if spec.config.train.use_gpu is not False else torch.device("cpu")
    shard = ray.train.get_dataset_shard(SHARD)
    batches = iterate_shard(shard, pin_memory=device.type == "cuda")
    rank = distributed.rank()
    mine = inputs.layout.worker_rows(rank, start_step, validate_first=spec.validates_first())
    timeout_s = spec.config.train.stall_timeout_s
    with Watchdog(spec.run_uri, rank=rank, timeout_s=timeout_s) as watchdog:
        run_worker(
            spec,
            inputs,
            watchdog.watch(expect_order(batches, mine)),
            start_step=start_step,
            device=device,
            report=report,
            stop_reason=stop_reason,
            validation=_validation_of(spec) if spec.config.train.async_validation else None,
        )


def _validation_of(spec: RunSpec) -> AsyncValidation:
    """Validations in Ray tasks of their own, which need not be on this node."""
    train = spec.config.train
    # Given here, a GPU makes Ray end the process afterwards, and the GPU's memory is free.
    remote = ray.remote(num_cpus=train.validation_cpus, num_gpus=train.validation_gpus)
    task = remote(_validate).options(
        name=f"validation of {spec.name}",
        scheduling_strategy="DEFAULT",  # not within what is reserved for the workers
    )
    # Before the watchdog takes the worker that waits for hung.
    timeout_s = 0.9 * train.stall_timeout_s
    return AsyncValidation(lambda uri: task.remote(spec, uri).future(), timeout_s=timeout_s)


def _validate(spec: RunSpec, checkpoint_uri: str) -> Outcome:
    torch.set_num_threads(max(1, int(spec.config.train.validation_cpus)))
    return validate(spec, checkpoint_uri)


def _report_to_train(metrics: dict[str, Any], checkpoint_uri: str) -> None:
    """Tell Ray Train, on every rank; the checkpoint already is where it stays."""
    ray.train.report({**metrics, "checkpoint_uri": checkpoint_uri})
