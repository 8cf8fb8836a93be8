"""What a run is made of: a complete configuration, two data sets, a folder, a name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from retina_ray.config import ConfigError, ExperimentConfig, with_overrides
from retina_ray.data.batches import BatchLoader
from retina_ray.data.plan import RunPlan
from retina_ray.data.shards import PreparedDataset
from retina_ray.data.synthetic import prepare_synthetic
from retina_ray.train.checkpoints import CheckpointStore
from retina_ray.train.loop import RunShape
from retina_ray.train.storage import is_uri

__all__ = ["RunInputs", "RunSpec", "resolve"]


@dataclass(frozen=True)
class RunSpec:
    """A run, ready to start on any machine that sees its folders; small and picklable.

    Attributes:
        config: complete: `model.num_classes` is set.
        train_uri: prepared training data.
        val_uri: prepared validation data.
        run_uri: the run's folder: config, metrics, pictures, checkpoints.
        name: what people call the run.
        run_id: unique; names the W&B run, also after a resume.
        group: the sweep that the run belongs to, if any.
        init_from: checkpoint whose weights the run starts from, if any.
    """

    config: ExperimentConfig
    train_uri: str
    val_uri: str
    run_uri: str
    name: str
    run_id: str
    group: str | None = None
    init_from: str | None = None

    @property
    def checkpoints(self) -> CheckpointStore:
        """The run's checkpoints."""
        return CheckpointStore(f"{self.run_uri}/checkpoints")

    def start_step(self) -> int:
        """Training steps that the run's last checkpoint has done; 0 without one."""
        return self.checkpoints.last_step


@dataclass(frozen=True)
class RunInputs:
    """The opened data sets of a run, its plan and its loader."""

    train: PreparedDataset
    val: PreparedDataset
    plan: RunPlan
    loader: BatchLoader
    batch_bytes: int

    @classmethod
    def open(cls, spec: RunSpec) -> RunInputs:
        """Open the data sets and plan the whole run (deterministic: the same on every worker)."""
        config = spec.config
        train, val = PreparedDataset.open(spec.train_uri), PreparedDataset.open(spec.val_uri)
        train_index, val_index = train.index(), val.index()
        plan = RunPlan.from_config(config, train_index, val_index)
        loader = BatchLoader.from_config(
            config, train=train, val=val, train_index=train_index, val_index=val_index
        )
        side = max(config.input.train_sizes_px)
        images = max(1, config.train.batch_size // config.train.num_workers)
        longest = min(config.input.train_max_size_px, side * 4 // 3)
        return cls(train, val, plan, loader, batch_bytes=3 * side * longest * images)

    @cached_property
    def category_ids(self) -> list[int]:
        """The data set's own id of each label."""
        return [c.id for c in self.train.info.categories]

    def shape(self, start_step: int) -> RunShape:
        """Steps and validation rounds of the run, from `start_step` on."""
        return RunShape(
            num_steps=self.plan.num_steps,
            steps_per_epoch=self.plan.steps_per_epoch,
            val_rows_per_worker=self.plan.num_val_rows_per_worker,
            start_step=start_step,
        )


def resolve(config: ExperimentConfig, storage: str) -> tuple[ExperimentConfig, str, str]:
    """Find (or draw) the data sets and complete the configuration from them.

    Args:
        config: with `data` set; `model.num_classes` may be null.
        storage: folder for the embedded data set.

    Returns:
        The complete config, the training URI and the validation URI.

    Raises:
        ConfigError: no data, data without the boxes that the model needs, a number of classes that
            is not the data's, a schedule that does not fit the run; all faults at once.
        DataError: a data set that is missing or broken.
    """
    train_uri, val_uri = _uris(config, storage)
    train, val = PreparedDataset.open(train_uri), PreparedDataset.open(val_uri)
    faults = list(_mismatches(config, train, val))
    if faults:
        raise ConfigError(faults)
    return with_overrides(config, {"model.num_classes": train.num_classes}), train_uri, val_uri


def _uris(config: ExperimentConfig, storage: str) -> tuple[str, str]:
    data = config.data
    if data.synthetic is not None:
        return prepare_synthetic(data.synthetic, f"{storage}/datasets")
    if data.train is None or data.val is None:
        raise ConfigError(
            [
                (
                    "data",
                    "no data set: give --set data.train=DIR --set data.val=DIR (prepared by one of "
                    "the scripts in datasets/), or take a recipe that brings one (shapes)",
                )
            ]
        )
    return _absolute(data.train), _absolute(data.val)


def _absolute(path: str) -> str:
    """Workers run in other folders: a relative path would mean something else there."""
    return path if is_uri(path) else os.path.abspath(Path(path).expanduser())


def _mismatches(config: ExperimentConfig, train: PreparedDataset, val: PreparedDataset):
    """Yield the faults that show only with the data at hand."""
    if train.info.categories != val.info.categories:
        names = set(train.class_names) ^ set(val.class_names)
        yield (
            "data.val",
            f"its classes are not those of data.train (differing: {sorted(names) or 'their ids'}); "
            "import both with the same class list",
        )
    if config.model.box_type == "rotated":
        for name, dataset in (("data.train", train), ("data.val", val)):
            if dataset.box_type != "rotated":
                yield (
                    name,
                    f'{dataset.uri} has no rotated boxes: set model.box_type to "aligned", or '
                    "prepare the set with them (datasets/README.md)",
                )
    wanted = config.model.num_classes
    if wanted is not None and wanted != train.num_classes:
        yield (
            "model.num_classes",
            f"{wanted}, but the data set has {train.num_classes} "
            f"({', '.join(train.class_names[:8])}); set model.num_classes=null to take the data's",
        )
    steps = -(-train.info.num_images // config.train.batch_size) * config.train.epochs
    if config.schedule.warmup_steps >= steps:
        yield (
            "schedule.warmup_steps",
            f"{config.schedule.warmup_steps} of a run of about {steps} steps: the run would end "
            "before the warm-up; lower it or raise train.epochs",
        )
    if train.info.num_images < config.train.batch_size:
        yield (
            "train.batch_size",
            f"{config.train.batch_size} images a step, but the data set has only "
            f"{train.info.num_images}",
        )
