"""The two ends of a sweep: what is checked before Ray starts, and what the user sees afterwards."""

from __future__ import annotations

import logging
from typing import Literal

from rich.console import Console

from retina_ray.config import ConfigError, ExperimentConfig
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.storage.files import exists
from retina_ray.storage.uris import is_uri, join_uri
from retina_ray.sweep.anchor_pruning import anchors_depend_on_trial, prune_anchors
from retina_ray.sweep.plan import SweepPlan
from retina_ray.sweep.report import rank, report_table, write_report
from retina_ray.sweep.runner import SweepOutcome
from retina_ray.sweep.space import Space, check_space, num_points, paths_outside
from retina_ray.train.run.resolve import resolve
from retina_ray.train.run_files import CONFIG

ASYNC = "train.async_validation"
SCRIPTS = "experiments"

logger = logging.getLogger(__name__)


def prepare_sweep(
    config: ExperimentConfig,
    space: Space,
    *,
    name: str,
    storage: str,
    num_samples: int,
    scheduler: Literal["asha", "fifo"] = "asha",
    search: Literal["random", "optuna"] = "random",
    max_concurrent: int | None = None,
    grace_epochs: int = 2,
    seed: int = 0,
    keep_low_recall_anchors: bool = False,
) -> SweepPlan:
    """Check the space, the data and the folder, and write the sweep's plan.

    Anchors of low recall are left out of the space beforehand, see
    `retina_ray.sweep.anchor_pruning.prune_anchors`.

    Raises:
        ConfigError: whatever no trial could be built from; all faults of the space at once.
        DataError: a data set is missing or broken.
    """
    uri = f"{storage}/{name}"
    if is_uri(storage):
        raise ConfigError(
            f"--storage {storage}: a sweep needs a folder that all nodes see (a disk or a mount)"
        )
    if exists(uri):
        raise ConfigError(f"{uri} exists: choose another --name, or resume it with --resume")
    if config.train.async_validation or ASYNC in space:
        raise ConfigError(
            [
                (
                    ASYNC,
                    "the metrics of a trial steer the sweep, so they must be there when the trial "
                    f"reports: leave it false here, and use it with train.py (--set {ASYNC}=true)",
                )
            ]
        )
    check_space(space, config)
    complete, train_uri, val_uri = resolve(
        config, storage, with_anchors=not anchors_depend_on_trial(space)
    )
    space, complete = prune_anchors(
        space, complete, PreparedDataset.open(train_uri), keep=keep_low_recall_anchors
    )
    points = num_points(space)
    if points is not None and points < num_samples:
        logger.warning(
            "--num-samples %d: the space has %d points, so there are %d trials (other seeds of the "
            "same settings: put train.seed into the space)",
            num_samples,
            points,
            points,
        )
        num_samples = points
    if outside := paths_outside(space, complete):
        logger.warning(
            "no trial is the base config's own: %s lies outside the space", ", ".join(outside)
        )
    plan = SweepPlan(
        name=name,
        uri=uri,
        config=complete,
        space=space,
        train_uri=train_uri,
        val_uri=val_uri,
        num_samples=num_samples,
        scheduler=scheduler,
        search=search,
        grace_epochs=grace_epochs,
        max_concurrent=max_concurrent,
        seed=seed,
    )
    plan.save()
    return plan


def finish_sweep(plan: SweepPlan, outcome: SweepOutcome, *, console: Console) -> None:
    """Write the report into the sweep's folder and show the table and what to do next."""
    storage, name = plan.uri.rsplit("/", 1)
    resume = f"python {SCRIPTS}/sweep.py --name {name} --storage {storage} --resume"
    rows = rank(outcome.rows)
    best = next((row for row in rows if row.checkpoint), None)
    train_on = None
    if best is not None:
        train_on = (
            f"python {SCRIPTS}/train.py --recipe {join_uri(plan.trial_uri(best.trial_id), CONFIG)} "
            f"--init-from {best.checkpoint} --storage {storage}"
        )
    val = PreparedDataset.open(plan.val_uri)
    paths = write_report(
        rows,
        plan.uri,
        sweep_name=name,
        train_on_command=train_on,
        resume_command=resume if outcome.interrupted else None,
        num_val_images=val.info.num_images,
        num_val_boxes=val.info.num_boxes,
    )
    console.print(report_table(rows, width=console.width))
    console.print(f"report: {paths.report}", soft_wrap=True)
    if best is not None:
        console.print(f"best checkpoint: {best.checkpoint}", soft_wrap=True)
        console.print(f"train on with it: {train_on}", soft_wrap=True)
    if outcome.num_failed:
        console.print(f"{outcome.num_failed} of {len(rows)} trials failed", soft_wrap=True)
    if outcome.interrupted:
        console.print(f"interrupted; resume with: {resume}", soft_wrap=True)
