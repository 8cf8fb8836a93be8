"""Start or carry on a run from a script: its folder, its stored configuration, its end."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from retina_ray.config import ConfigError, ExperimentConfig, from_json
from retina_ray.train.checkpoints import load_checkpoint
from retina_ray.train.progress import ProgressDisplay
from retina_ray.train.resources import Footprint, connect
from retina_ray.train.spec import RunSpec, resolve
from retina_ray.train.storage import exists, is_uri, read_text, write_text
from retina_ray.train.trainer import fit

__all__ = ["RunResult", "prepare_run", "resume_run", "run"]

CONFIG = "config.json"
RUN = "run.json"


@dataclass(frozen=True)
class RunResult:
    """The end of a run.

    Attributes:
        best: URI of the checkpoint with the best AP.
        last: URI of the last checkpoint.
        metrics: the last evaluation's figures.
        best_metrics: the best evaluation's figures.
    """

    best: str
    last: str
    metrics: dict[str, float]
    best_metrics: dict[str, float]


def prepare_run(
    config: ExperimentConfig, *, name: str, storage: str, init_from: str | None = None
) -> RunSpec:
    """Check everything that can be checked before Ray starts, and make the run's folder.

    Raises:
        ConfigError: a folder of this name exists, the config does not fit the data, the checkpoint
            to start from cannot be read.
        DataError: a data set is missing or broken.
    """
    run_uri = f"{storage}/{name}"
    if exists(run_uri):
        raise ConfigError(f"{run_uri} exists: choose another --name, or carry it on with --resume")
    if init_from is not None:
        load_checkpoint(init_from, weights_only=True)
    complete, train_uri, val_uri = resolve(config, storage)
    spec = RunSpec(
        config=complete,
        train_uri=train_uri,
        val_uri=val_uri,
        run_uri=run_uri,
        name=name,
        run_id=f"{name}-{os.urandom(3).hex()}",
        init_from=init_from,
    )
    write_text(f"{run_uri}/{CONFIG}", complete.model_dump_json(indent=1))
    fields = {k: v for k, v in vars(spec).items() if k != "config"}
    write_text(f"{run_uri}/{RUN}", json.dumps(fields, indent=1))
    return spec


def resume_run(run_uri: str) -> RunSpec:
    """Read the run of a folder, to carry it on from its last checkpoint.

    Raises:
        ConfigError: no run there.
    """
    run_file, config = read_text(f"{run_uri}/{RUN}"), read_text(f"{run_uri}/{CONFIG}")
    if run_file is None or config is None:
        raise ConfigError(f"{run_uri}: no run to resume there; check --name and --storage")
    fields = {**json.loads(run_file), "run_uri": run_uri}
    return RunSpec(config=from_json(ExperimentConfig, config), **fields)


def run(spec: RunSpec, *, console: Console) -> RunResult:
    """Train on a Ray Train worker group, showing the progress.

    Raises:
        ConfigError: the cluster cannot hold the run.
    """
    cluster = connect(spec.config)
    footprint = Footprint.of(spec.config, cluster)
    footprint.require(cluster)
    metrics_path = Path(spec.run_uri) / "metrics.jsonl"
    if is_uri(spec.run_uri):
        fit(spec, footprint)
    else:
        with ProgressDisplay(metrics_path, num_epochs=spec.config.train.epochs, console=console):
            fit(spec, footprint)
    return result_of(spec)


def result_of(spec: RunSpec) -> RunResult:
    """Read a finished run's figures from its checkpoints."""
    best, last = spec.checkpoints.best, spec.checkpoints.last
    assert best is not None
    assert last is not None
    return RunResult(
        best=best,
        last=last,
        metrics=load_checkpoint(last, weights_only=True).meta.metrics,
        best_metrics=load_checkpoint(best, weights_only=True).meta.metrics,
    )
