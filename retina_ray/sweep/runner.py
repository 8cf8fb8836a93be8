"""A sweep: Ray Tune draws configurations, each becomes a training run, the report compares them."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from retina_ray.config import ConfigError, ExperimentConfig
from retina_ray.sweep.collect import collect_rows
from retina_ray.sweep.plan import METRIC, SweepPlan
from retina_ray.sweep.report import TrialRow
from retina_ray.sweep.report.rows import best_trial
from retina_ray.sweep.sigterm import SigtermAsCtrlC
from retina_ray.sweep.space import baseline_point, first_points, to_tune
from retina_ray.sweep.trial import trial_class
from retina_ray.sweep.watch import Watcher, quiet_tune
from retina_ray.train.run.resources import ResourceRequest, connect

logger = logging.getLogger(__name__)

DRIVER = "trial_driver"
"""Custom resource of the nodes that may host the drivers of trials of several workers."""


@dataclass(frozen=True)
class SweepOutcome:
    """How a sweep ended; interrupted: trials are left to do; terminated: SIGTERM did that."""

    rows: list[TrialRow]
    interrupted: bool
    terminated: bool = False

    @property
    def num_failed(self) -> int:
        """Trials that failed."""
        return sum(row.status == "failed" for row in self.rows)

    @property
    def has_result(self) -> bool:
        """Whether a trial has an AP."""
        return best_trial(self.rows) is not None


def run_sweep(plan: SweepPlan, *, resume: bool) -> SweepOutcome:
    """Run the trials of a checked plan, whose folder exists, or what is left of them.

    Raises:
        ConfigError: the cluster cannot hold a single trial; the folder holds no sweep to resume.
        KeyboardInterrupt: Ctrl-C a second time, or before there were trials.
        RunTerminatedError: SIGTERM likewise.
    """
    quiet_tune()
    concurrent = plan.max_concurrent or _trials_for_this_machine(plan.config)
    cluster = connect(plan.config, concurrent=min(concurrent, plan.num_samples))
    request = ResourceRequest.of(plan.config, cluster)
    request.require(cluster)
    fitting = request.fits(cluster)
    concurrent = max(1, min(plan.max_concurrent or fitting, fitting, plan.num_samples))
    logger.info("%d of %d trials at once", concurrent, plan.num_samples)

    trainable = tune.with_resources(trial_class(plan, request), _request(request))
    tune_folder = f"{plan.uri}/tune"
    if resume:
        if not tune.Tuner.can_restore(tune_folder):
            raise ConfigError(f"{plan.uri} holds no sweep that can be resumed")
        tuner = tune.Tuner.restore(
            tune_folder, trainable, resume_unfinished=True, param_space=to_tune(plan.space)
        )
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=to_tune(plan.space),
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="max",
                num_samples=plan.num_samples,
                search_alg=_search(plan, concurrent),
                scheduler=_scheduler(plan),
                trial_name_creator=_TrialNames(f"{plan.uri}/trials"),
                trial_dirname_creator=str,
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=plan.uri, verbose=0, callbacks=[Watcher(plan)]
            ),
        )
    with SigtermAsCtrlC() as sigterm:
        tuner.fit()
    # As the disk has them, which is what a resume starts from: in memory, a trial that Ctrl-C cut
    # short looks like one that the scheduler stopped.
    rows = collect_rows(plan, tune.ExperimentAnalysis(tune_folder).trials or [])
    left = len(rows) < plan.num_samples or any(row.status == "pending" for row in rows)
    return SweepOutcome(rows=rows, interrupted=left, terminated=left and sigterm.came)


class _TrialNames:
    """Names trials `trial_00`, `trial_01`, ... as they are drawn, also after a resume.

    The name's folder is made at once: it is the memory of which names are taken.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __call__(self, trial: Any) -> str:
        number = 0
        while True:
            name = f"trial_{number:02d}"
            try:
                Path(self._folder, name).mkdir(parents=True)
            except FileExistsError:
                number += 1
            else:
                return name


def _request(request: ResourceRequest) -> dict[str, float]:
    """What Tune reserves for a trial: its worker, or next to nothing for a mere driver."""
    if request.num_workers == 1:
        return request.per_worker()
    if ray.cluster_resources().get(DRIVER, 0) > 0:
        return {DRIVER: 1}
    return {"CPU": 0.01}


def _scheduler(plan: SweepPlan) -> Any:
    if plan.scheduler == "fifo":
        return FIFOScheduler()
    epochs = plan.config.train.epochs
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        max_t=epochs,
        grace_period=max(1, min(plan.grace_epochs, epochs)),
        reduction_factor=plan.reduction_factor,
    )


def _search(plan: SweepPlan, concurrent: int) -> Any:
    if plan.search == "random":
        points = first_points(plan.space, plan.config, num_samples=plan.num_samples, seed=plan.seed)
        return BasicVariantGenerator(
            points_to_evaluate=points or None, random_state=plan.seed, max_concurrent=concurrent
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    baseline = baseline_point(plan.space, plan.config)
    searcher = OptunaSearch(
        points_to_evaluate=None if baseline is None else [baseline], seed=plan.seed
    )
    return ConcurrencyLimiter(searcher, max_concurrent=concurrent)


def _trials_for_this_machine(config: ExperimentConfig) -> int:
    """How many trials the cores of one machine bear at once."""
    cores = os.cpu_count() or 1
    return max(1, int(cores // (config.train.num_workers * config.train.cpus_per_worker)))
