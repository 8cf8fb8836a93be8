"""What a run is made of: a complete configuration, two data sets, a folder, a name."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from retina_ray.config import ConfigError, ExperimentConfig
from retina_ray.data.loading.batch_loader import BatchLoader
from retina_ray.data.plan.layout import RunLayout, micro_batches_of
from retina_ray.data.plan.run_plan import RunPlan
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.storage.uris import join_uri
from retina_ray.train.checkpoint.load import load_meta
from retina_ray.train.checkpoint.store import CheckpointStore
from retina_ray.train.run_files import CHECKPOINTS


@dataclass(frozen=True)
class RunSpec:
    """A run, ready to start on any machine that sees its folders; small and picklable.

    The config is complete: `model.num_classes` is set, the anchors are plain numbers. `run_id` is
    unique, and names the W&B run, also after a resume. `group` is the sweep that the run belongs
    to, `init_from` the checkpoint whose weights it starts from, if any.
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
            join_uri(self.run_uri, CHECKPOINTS), keep=self.config.train.keep_checkpoints
        )

    def start_step(self) -> int:
        """Training steps that the run's last checkpoint has done; 0 without one."""
        return self.checkpoints.last_step

    def validates_first(self) -> bool:
        """Whether the validation at `start_step`, where the plan has one, is still to do.

        A run that is told to end at the end of an epoch keeps its checkpoint before it.
        """
        last = self.checkpoints.last
        with contextlib.suppress(ConfigError):  # whoever loads the checkpoint says it
            meta = None if last is None else load_meta(last)
            return meta is not None and meta.metrics_step != meta.step
        return False


@dataclass(frozen=True)
class RunInputs:
    """The opened data sets of a run, and what follows from them.

    Plan and loader read the light columns of the sets when they are first asked for: a worker that
    is served by the stream needs neither.

    """

    config: ExperimentConfig
    train: PreparedDataset
    val: PreparedDataset
    num_workers: int | None = None  # that there are at present; None: `train.num_workers`

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


def _image_bytes(shorter: int, most: int) -> int:
    """Pixels of an image of the usual shape whose shorter side has so many pixels, in bytes."""
    return 3 * shorter * min(most, shorter * 4 // 3)
