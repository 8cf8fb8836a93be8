"""The whole run as one table: a row for every batch that a worker will see, in the order of time.

Training and validation are interleaved, so one stream of rows serves the whole run and nothing
pauses between epochs or before an evaluation. The rows of worker r are r, r + W, r + 2W, ... (W
workers), training and validation alike; every worker has the same number of rows of each kind. What
a step or a round does as a whole does not depend on W.

The table is never made as a whole in a run. Where its rows stand is arithmetic
(`retina_ray.data.plan.layout`), and an epoch's rows follow from the seed alone, so every process
makes those of the epoch that it is at: seconds and some tens of megabytes for a million images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from retina_ray.config import ExperimentConfig
from retina_ray.data.limited_cache import LimitedCache
from retina_ray.data.plan.layout import TRAIN, RunLayout, Segment, micro_batches_of
from retina_ray.data.plan.rows import (
    PLAN_SCHEMA,
    EpochRules,
    check_numbers,
    place_rows,
    read_images,
    validation_round,
)
from retina_ray.data.plan.sampling import EpochSampler, make_sampler, sampler_of
from retina_ray.data.prepared.schema import ImageClasses
from retina_ray.errors import DataError

WINDOW_ROW_GROUPS = 16
"""Row groups that are shuffled together: some 500 images of a set with the usual 32 to a group."""

_NUM_CACHED_SEGMENTS = 2


@dataclass(frozen=True)
class RunPlan:
    """A run's plan. Picklable: rows that were made stay behind.

    Attributes:
        layout: where everything stands.
        rules: of the training epochs; None in a pure evaluation.
        val_rows: of one validation round, without their place; None without validation.
    """

    layout: RunLayout
    rules: EpochRules | None
    val_rows: pa.Table | None
    _segments: LimitedCache[int, pa.Table] = field(
        default_factory=lambda: LimitedCache(_NUM_CACHED_SEGMENTS), repr=False, compare=False
    )

    def __getstate__(self) -> dict[str, Any]:
        return {"layout": self.layout, "rules": self.rules, "val_rows": self.val_rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _segments=LimitedCache(_NUM_CACHED_SEGMENTS))

    @classmethod
    def from_config(
        cls,
        config: ExperimentConfig,
        train_index: pa.Table,
        val_index: pa.Table | None,
        classes: ImageClasses | None = None,
        *,
        num_workers: int | None = None,
    ) -> RunPlan:
        """Plan the run that a config describes.

        Args:
            config: of the run.
            train_index: light columns of the training set.
            val_index: of the validation set; None leaves evaluation out.
            classes: of the training images; needed unless `input.sampling` is "all".
            num_workers: W, where it is not (or not any more) `train.num_workers`.
        """
        train, inputs = config.train, config.input
        return build_run_plan(
            train_index,
            val_index,
            epochs=train.epochs,
            batch_size=train.batch_size,
            num_workers=num_workers or train.num_workers,
            num_micro_batches=micro_batches_of(config),
            seed=train.seed,
            train_sizes_px=inputs.train_sizes_px,
            train_size_sampling=inputs.train_size_sampling,
            train_max_size_px=inputs.train_max_size_px,
            eval_size_px=inputs.eval_size_px,
            eval_max_size_px=inputs.eval_max_size_px,
            eval_batch_size=train.eval_batch_size,
            eval_every_epochs=train.eval_every_epochs,
            group_by_aspect=inputs.group_by_aspect,
            sampler=sampler_of(config, train_index, classes),
            mosaic_prob=inputs.augment.mosaic_prob,
            mixup_prob=inputs.augment.mixup_prob,
        )

    @property
    def num_workers(self) -> int:
        """W."""
        return self.layout.num_workers

    @property
    def num_epochs(self) -> int:
        """Training epochs; 0 for a pure evaluation."""
        return self.layout.num_epochs

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch."""
        return self.layout.steps_per_epoch

    @property
    def num_steps(self) -> int:
        """Training steps of the run."""
        return self.layout.num_steps

    @property
    def num_val_rounds(self) -> int:
        """How often the validation set is gone through."""
        return self.layout.num_val_rounds

    @property
    def num_val_rows_per_worker(self) -> int:
        """Validation rows of a worker in ONE round."""
        return self.layout.num_val_rows_per_worker

    def __len__(self) -> int:
        return self.layout.num_rows

    @cached_property
    def table(self) -> pa.Table:
        """All rows (`PLAN_SCHEMA`), `plan_index` being the row number; for short runs and tests."""
        parts = [self.segment(number) for number in range(len(self.layout.segments))]
        return pa.concat_tables(parts).combine_chunks()

    def segment(self, number: int) -> pa.Table:
        """The rows of a part of the run; the last few are kept.

        Args:
            number: of one of `layout.segments`.
        """
        return self._segments.get(number, lambda: self._make(self.layout.segments[number]))

    def _make(self, segment: Segment) -> pa.Table:
        if segment.kind == TRAIN:
            assert self.rules is not None
            rows = self.rules.rows(segment.epoch, self.num_workers)
        else:
            assert self.val_rows is not None
            rows = self.val_rows
        return place_rows(rows, segment, self.num_workers, self.layout.rows_per_step)

    def take(self, plan_indices: Sequence[int] | np.ndarray) -> pa.Table:
        """The rows of these plan indices, which must ascend; with buffers of their own."""
        wanted = np.asarray(plan_indices, np.int64)
        starts = [s.first_round * self.num_workers for s in self.layout.segments]
        cuts = np.searchsorted(wanted, [*starts, len(self)])
        parts = [
            self.segment(number).take(wanted[cuts[number] : cuts[number + 1]] - starts[number])
            for number in range(len(starts))
            if cuts[number] < cuts[number + 1]
        ]
        return pa.concat_tables(parts) if parts else PLAN_SCHEMA.empty_table()

    def worker_rows(
        self, rank: int, start_step: int = 0, *, validate_first: bool = False
    ) -> pa.Table:
        """Select the rows of one worker in their order, from a training step on.

        Args:
            rank: 0 to W-1.
            start_step: see `RunLayout.first_round`.
            validate_first: see `RunLayout.first_round`.
        """
        return self.take(self.layout.worker_rows(rank, start_step, validate_first=validate_first))


def build_run_plan(
    train_index: pa.Table,
    val_index: pa.Table | None,
    *,
    epochs: int,
    batch_size: int,
    num_workers: int,
    seed: int,
    train_sizes_px: Sequence[int],
    train_size_sampling: Literal["choice", "range"],
    train_max_size_px: int,
    eval_size_px: int,
    eval_max_size_px: int,
    eval_batch_size: int,
    eval_every_epochs: int,
    group_by_aspect: bool,
    window_row_groups: int = WINDOW_ROW_GROUPS,
    sampler: EpochSampler | None = None,
    mosaic_prob: float = 0.0,
    mixup_prob: float = 0.0,
    num_micro_batches: int | None = None,
) -> RunPlan:
    """Plan a training run; the rules of an epoch stand at `order.epoch_batches`.

    A global batch is cut into M equal consecutive micro-batches, which the W workers get in turn.
    So which images form a batch or a micro-batch, and their target size, do not depend on W. Epoch
    e of a plan does not depend on the number of epochs. Validation follows every
    `eval_every_epochs`-th epoch and the last one.

    Args:
        train_index: light columns of the training set (shard, row_group, height, width).
        val_index: of the validation set; None: no validation.
        epochs: at least 1.
        batch_size: images a step over all workers, a multiple of M.
        num_workers: W.
        seed: of the run.
        train_sizes_px: lengths of the shorter side, one is drawn for each global batch.
        train_size_sampling: draw one of the lengths, or between the two given.
        train_max_size_px: limit of the longer side.
        eval_size_px: length of the shorter side in evaluation.
        eval_max_size_px: limit of the longer side in evaluation.
        eval_batch_size: images of a validation row.
        eval_every_epochs: at least 1.
        group_by_aspect: batch landscape and portrait images apart.
        window_row_groups: row groups that are shuffled together.
        sampler: which images an epoch holds; None: each once.
        mosaic_prob: chance of an image to get three partners for a mosaic.
        mixup_prob: chance of an image to get one for mixup.
        num_micro_batches: M; None: one for each worker.

    Raises:
        DataError: an index is empty, or an epoch smaller than a batch.
        ValueError: a number is out of its range.
    """
    if num_micro_batches is None:
        num_micro_batches = num_workers
    check_numbers(
        epochs=epochs,
        eval_every_epochs=eval_every_epochs,
        window_row_groups=window_row_groups,
        num_workers=num_workers,
        num_micro_batches=num_micro_batches,
        batch_size=batch_size,
    )
    if batch_size % num_micro_batches:
        raise ValueError(
            f"batch_size = {batch_size} is not a multiple of {num_micro_batches} micro-batches"
        )
    images = read_images(train_index, "training")
    if sampler is None:
        sampler = make_sampler(len(images), None, None)
    if sampler.size < batch_size:
        raise DataError(
            f"the training set has {sampler.size} images, fewer than one batch of {batch_size}; "
            "lower train.batch_size or give more images"
        )
    val_rows = None
    if val_index is not None:
        val_rows = validation_round(
            val_index, num_workers, eval_batch_size, eval_size_px, eval_max_size_px
        )
    layout = RunLayout.of_sizes(
        sampler.size,
        0 if val_index is None else val_index.num_rows,
        num_workers=num_workers,
        epochs=epochs,
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        eval_every_epochs=eval_every_epochs,
        num_micro_batches=num_micro_batches,
    )
    rules = EpochRules(
        images=images,
        sampler=sampler,
        batch_size=batch_size,
        num_micro_batches=num_micro_batches,
        seed=seed,
        sizes_px=tuple(train_sizes_px),
        size_sampling=train_size_sampling,
        max_size_px=train_max_size_px,
        group_by_aspect=group_by_aspect,
        window_row_groups=window_row_groups,
        mosaic_prob=mosaic_prob,
        mixup_prob=mixup_prob,
    )
    return RunPlan(layout, rules, val_rows)
