"""One trial of a sweep, in the process that Ray Tune starts for it.

A trial is an ordinary run in `<sweep>/trials/<trial>`, with its own checkpoints. A trial of one
worker trains in its own process (Ray Train's local mode); one of several workers drives a
`TorchTrainer` of its own.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.trainable.function_trainable import wrap_function

from retina_ray.anchors.search import fit_anchors
from retina_ray.config import ExperimentConfig, from_json, with_overrides
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.errors import StorageError
from retina_ray.ray_internals.tune import drop_report
from retina_ray.storage.files import read_text, write_text
from retina_ray.storage.uris import join_uri
from retina_ray.sweep.plan import SweepPlan
from retina_ray.sweep.space import decode_params
from retina_ray.train.checkpoint.load import load_meta
from retina_ray.train.errors import RunTerminatedError
from retina_ray.train.recovery.failures import FailureNote, Note, name_cause
from retina_ray.train.recovery.preemption import STOP
from retina_ray.train.run.resources import ResourceRequest
from retina_ray.train.run.trainer import fit, fit_in_process
from retina_ray.train.run_files import CONFIG
from retina_ray.train.spec import RunSpec

CLOSE_S = 120.0
"""How long a stopped trial may take to close its records (the last checkpoint, W&B's upload)."""

_reporting, _closed = threading.Event(), threading.Event()
_told = threading.Event()  # the workers of this trial were asked to end


def trial_class(plan: SweepPlan, request: ResourceRequest) -> type:
    """The trials of a sweep, as Ray Tune takes them.

    Tune stops a trial where it reports, its last evaluation too, and ends the process at once: the
    checkpoint of that evaluation may not be written yet, and the trial's W&B run would count as
    crashed. This class waits; workers of processes of their own are asked to end first.
    """

    class Trial(wrap_function(tune.with_parameters(_trial, plan=plan, request=request))):
        def cleanup(self) -> None:
            if request.num_workers > 1:
                _end_workers(plan.trial_uri(self.trial_name))
            try:
                super().cleanup()
            finally:
                _wait_until_closed()

    return Trial


def _end_workers(run_uri: str) -> None:
    """Ask the workers of a trial to end in order, and wait for them."""
    if _closed.is_set():
        return
    _told.set()
    note = Note(run_uri, STOP)
    with contextlib.suppress(StorageError, OSError):
        note.write("Ray Tune stopped the trial")
    deadline = time.monotonic() + CLOSE_S
    while not _closed.wait(0.2) and time.monotonic() < deadline:
        drop_report()
    with contextlib.suppress(StorageError, OSError):
        note.clear()


def _wait_until_closed() -> None:
    """Wait for a trial that was stopped where it reported; one in mid-step (Ctrl-C) is left."""
    if _reporting.is_set():
        _closed.wait(CLOSE_S)


def _trial(params: dict[str, Any], *, plan: SweepPlan, request: ResourceRequest) -> None:
    """One trial, in the process that Tune started for it."""
    context = tune.get_context()
    trial_id = context.get_trial_name()
    try:
        # Tune's own id is unique in the world, as W&B needs it; the name only in the sweep.
        spec = prepare_trial(
            plan, params, trial_id=trial_id, run_id=f"{plan.name}-{context.get_trial_id()}"
        )
        unheard = last_evaluation(spec)
        if request.num_workers == 1:
            fit_in_process(spec, report=_report_to_tune)
        else:
            try:
                fit(spec, request, callbacks=[TuneReportCallback()])
            except RunTerminatedError:
                if not _told.is_set():
                    raise
        if unheard is not None:
            _report_to_tune(unheard, spec.checkpoints.last or "")
    except Exception as error:
        with contextlib.suppress(StorageError, OSError):  # which may be what ended the trial
            FailureNote(plan.trial_uri(trial_id)).write(name_cause(error))
        raise
    finally:
        _closed.set()


def prepare_trial(
    plan: SweepPlan, params: dict[str, Any], *, trial_id: str, run_id: str
) -> RunSpec:
    """Make a trial's run, or get one that was interrupted ready to go on.

    Where the last checkpoint cannot be read, the run goes back to the newest one that can.

    Args:
        plan: the sweep.
        params: what Tune drew.
        trial_id: names the trial's folder.
        run_id: of W&B.

    Raises:
        ConfigError: no such configuration can be built; none of its checkpoints can be read.
    """
    config = _config(plan, trial_id, params)
    spec = RunSpec(
        config=config,
        train_uri=plan.train_uri,
        val_uri=plan.val_uri,
        run_uri=plan.trial_uri(trial_id),
        name=f"{plan.name}-{trial_id}",
        run_id=run_id,
        group=plan.name,
    )
    write_text(join_uri(spec.run_uri, CONFIG), config.model_dump_json(indent=1))
    spec.checkpoints.go_back_to_whole()
    FailureNote(spec.run_uri).clear()  # of an earlier part
    return spec


def last_evaluation(spec: RunSpec) -> dict[str, Any] | None:
    """What a trial found at its very end, where it was interrupted after that.

    Tune may not have heard of it, and a trial that is done has nothing more to report.

    Returns:
        The metrics as `Report` has them; None for a trial that has steps or its last evaluation
        still to do.
    """
    last = spec.checkpoints.last
    meta = None if last is None else load_meta(last)
    if meta is None or meta.epoch < spec.config.train.epochs or meta.metrics_step != meta.step:
        return None
    return {**meta.metrics, "epoch": meta.epoch, "step": meta.step}


def _config(plan: SweepPlan, trial_id: str, params: dict[str, Any]) -> ExperimentConfig:
    """The config of a trial; one whose anchors are fitted to the data is fitted only once."""
    config = with_overrides(plan.config, decode_params(plan.space, params))
    if config.model.anchors.fit == "none":
        return config
    stored = read_text(join_uri(plan.trial_uri(trial_id), CONFIG))
    if stored is not None:
        return from_json(ExperimentConfig, stored)
    return fit_anchors(config, PreparedDataset.open(plan.train_uri))


def _report_to_tune(metrics: dict[str, Any], checkpoint_uri: str) -> None:
    _reporting.set()
    tune.report({**metrics, "checkpoint_uri": checkpoint_uri})
    _reporting.clear()
