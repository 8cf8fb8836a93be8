"""Start or resume a run from a script: its folder, its stored configuration, its end."""

from __future__ import annotations

import json
import logging
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
from rich.console import Console

import retina_ray
from retina_ray.config import ConfigError, ExperimentConfig, from_json
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.model import RetinaNet
from retina_ray.storage.files import exists, read_text, write_text
from retina_ray.storage.uris import is_uri, join_uri
from retina_ray.train.checkpoint.compatibility import (
    class_differences,
    fitting_weights,
    require_own,
)
from retina_ray.train.checkpoint.format import Checkpoint
from retina_ray.train.checkpoint.load import load_checkpoint, load_meta
from retina_ray.train.run.resolve import resolve
from retina_ray.train.run.resources import ResourceRequest, connect
from retina_ray.train.run.trainer import fit
from retina_ray.train.run_files import CONFIG, METRICS, RUN
from retina_ray.train.spec import RunSpec
from retina_ray.train.tracking.progress import ProgressDisplay

VERSIONS = "versions"
"""Of what a run was started with, in `RUN`."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """The end of a run: URIs of checkpoints, and metrics of validations.

    The metrics are empty where the run ended before its first validation.
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
            to start from cannot be read, or has no weight that fits.
        DataError: a data set is missing or broken.
    """
    run_uri = f"{storage}/{name}"
    if exists(run_uri):
        raise ConfigError(f"{run_uri} exists: choose another --name, or use --resume")
    start = None if init_from is None else load_checkpoint(init_from, weights_only=True)
    complete, train_uri, val_uri = resolve(config, storage)
    if start is not None:
        _compare_with_start(complete, train_uri, start)
    spec = RunSpec(
        config=complete,
        train_uri=train_uri,
        val_uri=val_uri,
        run_uri=run_uri,
        name=name,
        run_id=f"{name}-{os.urandom(3).hex()}",
        init_from=init_from,
    )
    write_text(join_uri(run_uri, CONFIG), complete.model_dump_json(indent=1))
    fields = {k: v for k, v in vars(spec).items() if k != "config"} | {VERSIONS: _versions()}
    write_text(join_uri(run_uri, RUN), json.dumps(fields, indent=1))
    return spec


def resume_run(run_uri: str) -> RunSpec:
    """Read the run of a folder, to resume it from its last checkpoint.

    Where that one cannot be read, the run goes back to the newest one that can, and says so.

    Raises:
        ConfigError: no run there, none of its checkpoints can be read, or the last one is of
            another model, other classes or other data.
        DataError: the training data is missing or broken.
    """
    run_file, config = read_text(join_uri(run_uri, RUN)), read_text(join_uri(run_uri, CONFIG))
    if run_file is None or config is None:
        raise ConfigError(f"{run_uri}: no run to resume there; check --name and --storage")
    fields = {**json.loads(run_file), "run_uri": run_uri}
    fields.pop(VERSIONS, None)
    spec = RunSpec(config=from_json(ExperimentConfig, config), **fields)
    checkpoint = spec.checkpoints.go_back_to_whole()
    if checkpoint is not None:
        require_own(
            checkpoint,
            uri=spec.checkpoints.last or spec.run_uri,
            config=spec.config,
            train_uri=spec.train_uri,
            info=PreparedDataset.open(spec.train_uri).info,
        )
    return spec


def run(spec: RunSpec, *, console: Console) -> RunResult:
    """Train on a Ray Train worker group, showing the progress.

    Raises:
        ConfigError: the cluster cannot hold the run.
    """
    cluster = connect(spec.config)
    request = ResourceRequest.of(spec.config, cluster)
    request.require(cluster)
    metrics_path = Path(spec.run_uri) / METRICS
    if is_uri(spec.run_uri):
        fit(spec, request)
    else:
        with ProgressDisplay(metrics_path, num_epochs=spec.config.train.epochs, console=console):
            fit(spec, request)
    return result_of(spec)


def result_of(spec: RunSpec) -> RunResult:
    """Read a finished run's metrics from its checkpoints."""
    best, last = spec.checkpoints.best, spec.checkpoints.last
    assert best is not None
    assert last is not None
    return RunResult(
        best=best,
        last=last,
        metrics=load_meta(last).metrics,
        best_metrics=load_meta(best).metrics,
    )


def _compare_with_start(config: ExperimentConfig, train_uri: str, start: Checkpoint) -> None:
    """Say what a run does not take over from the checkpoint that it starts from.

    Raises:
        ConfigError: it could take over nothing.
    """
    with torch.device("meta"):
        own = RetinaNet.from_config(config.model).state_dict()
    match = fitting_weights(own, start.weights)
    if not match.is_complete:
        logger.warning("--init-from: %s", match.describe())
    names = PreparedDataset.open(train_uri).class_names
    differing = class_differences(names, [name for _, name in start.meta.categories])
    if differing is not None:
        logger.warning(
            "--init-from: %s, and the weights of the classifier are taken over as they are: what "
            "it learnt of a label is lost where the label means something else now",
            differing,
        )


def _versions() -> dict[str, str]:
    return {
        "retina_ray": retina_ray.__version__,
        "torch": torch.__version__,
        "ray": ray.__version__,
        "Python": platform.python_version(),
    }
