"""What a run is made of: a complete configuration, two data sets, a folder, a name."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from retina_ray.anchors.search import fit_anchors
from retina_ray.config import ConfigError, ExperimentConfig, with_overrides
from retina_ray.data.loading.batch_loader import BatchLoader
from retina_ray.data.plan.layout import RunLayout, micro_batches_of
from retina_ray.data.plan.run_plan import RunPlan, sampler_of
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.synthetic.prepare import prepare_synthetic
from retina_ray.evaluation.backends import require_backend
from retina_ray.storage.files import is_uri, read_text
from retina_ray.train.checkpoint.format import META
from retina_ray.train.checkpoint.load import CheckpointStore
from retina_ray.train.engine.loop import RunShape

__all__ = ["RunInputs", "RunSpec", "resolve"]


@dataclass(frozen=True)
class RunSpec:
    """A run, ready to start on any machine that sees its folders; small and picklable.

    Attributes:
        config: complete: `model.num_classes` is set, the anchors are plain numbers.
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
        return CheckpointStore(
            f"{self.run_uri}/checkpoints", keep=self.config.train.keep_checkpoints
        )

    def start_step(self) -> int:
        """Training steps that the run's last checkpoint has done; 0 without one."""
        return self.checkpoints.last_step

    def validates_first(self) -> bool:
        """Whether the validation round at `start_step`, where the plan has one, is still to do.

        A run that is told to end at the end of an epoch keeps its checkpoint before that round.
        """
        last = self.checkpoints.last
        text = None if last is None else read_text(f"{last}/{META}")
        with contextlib.suppress(ValueError, KeyError):  # whoever loads the checkpoint says it
            meta = json.loads(text or "{}")
            return meta["version"] > 1 and meta["metrics_step"] != meta["step"]
        return False


@dataclass(frozen=True)
class RunInputs:
    """The opened data sets of a run, and what follows from them.

    Plan and loader read the light columns of the sets when they are first asked for: a worker that
    is served by the stream needs neither.

    Attributes:
        config: of the run.
        train: training set.
        val: validation set.
        num_workers: that there are at present; None: `train.num_workers`.
    """

    config: ExperimentConfig
    train: PreparedDataset
    val: PreparedDataset
    num_workers: int | None = None

    @classmethod
    def open(cls, spec: RunSpec, num_workers: int | None = None) -> RunInputs:
        """Open the data sets of a run, for the workers that there are at present."""
        train, val = PreparedDataset.open(spec.train_uri), PreparedDataset.open(spec.val_uri)
        return cls(spec.config, train, val, num_workers)

    @cached_property
    def plan(self) -> RunPlan:
        """The whole run; the same in every process."""
        classes = None if self.config.input.sampling == "all" else self.train.image_classes()
        train_index, val_index = self._indices
        if self.config.train.async_validation:  # no part of what the workers do
            val_index = None
        return RunPlan.from_config(
            self.config, train_index, val_index, classes, num_workers=self.num_workers
        )

    @cached_property
    def layout(self) -> RunLayout:
        """Where everything stands in the plan, without making it where that is possible."""
        if self.config.input.sampling == "all" and not self.config.input.skip_empty:
            return RunLayout.from_config(
                self.config,
                self.train.num_images,
                0 if self.config.train.async_validation else self.val.num_images,
                num_workers=self.num_workers,
            )
        return self.plan.layout

    @cached_property
    def loader(self) -> BatchLoader:
        """What makes batches of the plan's rows."""
        train_index, val_index = self._indices
        return BatchLoader.from_config(
            self.config,
            train=self.train,
            val=self.val,
            train_index=train_index,
            val_index=val_index,
        )

    @cached_property
    def _indices(self) -> tuple[pa.Table, pa.Table]:
        return self.train.index(), self.val.index()

    @property
    def batch_bytes(self) -> int:
        """Pixels of a typical row of a worker, in bytes: the larger of training and validation."""
        config, inputs = self.config, self.config.input
        in_training = _image_bytes(max(inputs.train_sizes_px), inputs.train_max_size_px)
        in_validation = _image_bytes(inputs.eval_size_px, inputs.eval_max_size_px)
        return max(
            in_training * (config.train.batch_size // micro_batches_of(config)),
            in_validation * config.train.eval_batch_size,
        )

    @cached_property
    def category_ids(self) -> list[int]:
        """The data set's own id of each label."""
        return [c.id for c in self.train.info.categories]

    def shape(self, start_step: int) -> RunShape:
        """Steps and validation rounds of the run, from `start_step` on."""
        return RunShape(
            num_steps=self.layout.num_steps,
            steps_per_epoch=self.layout.steps_per_epoch,
            val_rows_per_worker=self.layout.num_val_rows_per_worker,
            start_step=start_step,
            rows_per_step=self.layout.rows_per_step,
        )


def _image_bytes(shorter: int, most: int) -> int:
    """Pixels of an image of the usual shape whose shorter side has so many pixels, in bytes."""
    return 3 * shorter * min(most, shorter * 4 // 3)


def resolve(
    config: ExperimentConfig, storage: str, *, with_anchors: bool = True
) -> tuple[ExperimentConfig, str, str]:
    """Find (or draw) the data sets and complete the configuration from them.

    Args:
        config: with `data` set; `model.num_classes` may be null, `model.anchors.fit` on.
        storage: folder for the embedded data set.
        with_anchors: carry out `model.anchors.fit`; else it stays, for a sweep whose trials do it.

    Returns:
        The complete config, the training URI and the validation URI.

    Raises:
        ConfigError: no data, data without the boxes that the model needs, a number of classes that
            is not the data's, a schedule that does not fit the run; all faults at once. An
            evaluation backend that is not installed.
        DataError: a data set that is missing or broken.
    """
    require_backend(config.inference.evaluation_backend)
    train_uri, val_uri = _uris(config, storage)
    train, val = PreparedDataset.open(train_uri), PreparedDataset.open(val_uri)
    faults = list(_mismatches(config, train, val))
    if faults:
        raise ConfigError(faults)
    complete = with_overrides(config, {"model.num_classes": train.num_classes})
    if with_anchors:
        complete = fit_anchors(complete, train)
    return complete, train_uri, val_uri


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
    num_images = _images_of_an_epoch(config, train)
    steps = -(-num_images // config.train.batch_size) * config.train.epochs
    if config.schedule.warmup_steps >= steps:
        yield (
            "schedule.warmup_steps",
            f"{config.schedule.warmup_steps} of a run of about {steps} steps: the run would end "
            "before the warm-up; lower it or raise train.epochs",
        )
    if num_images < config.train.batch_size:
        yield (
            "train.batch_size",
            f"{config.train.batch_size} images a step, but an epoch has only {num_images}",
        )


def _images_of_an_epoch(config: ExperimentConfig, train: PreparedDataset) -> int:
    """How many images an epoch holds; the light columns are read only where it depends on them."""
    sampling = config.input.sampling
    if sampling == "all" and not config.input.skip_empty:
        return train.num_images
    classes = None if sampling == "all" else train.image_classes()
    return sampler_of(config, train.index(), classes).size
