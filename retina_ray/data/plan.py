"""The whole run in one table: a row for every batch that a worker will see, in the order of time.

Training and validation are interleaved, so one stream of rows serves the whole run and nothing
pauses between epochs or before an evaluation. The rows of worker r are r, r + W, r + 2W, ... (W
workers), training and validation alike; every worker has the same number of rows of each kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from retina_ray.config import ExperimentConfig
from retina_ray.data.order import epoch_batches
from retina_ray.data.plan_rows import (
    PLAN_SCHEMA,
    TRAIN,
    VAL,
    check_numbers,
    join_parts,
    place_round,
    read_images,
    training_rows,
    validation_round,
)
from retina_ray.data.schema import DataError

__all__ = ["PLAN_SCHEMA", "TRAIN", "VAL", "RunPlan", "build_eval_plan", "build_run_plan"]

WINDOW_ROW_GROUPS = 16
"""Row groups that are shuffled together: some 500 images of a set with the usual 32 to a group."""


@dataclass(frozen=True)
class RunPlan:
    """A run's plan and its key figures.

    Attributes:
        table: the rows (`PLAN_SCHEMA`), `plan_index` being the row number.
        num_workers: W.
        num_epochs: 0 for a pure evaluation.
        steps_per_epoch: global batches of an epoch.
        num_val_rounds: how often the validation set is gone through.
        num_val_rows_per_worker: validation rows of a worker in ONE round.
    """

    table: pa.Table
    num_workers: int
    num_epochs: int
    steps_per_epoch: int
    num_val_rounds: int
    num_val_rows_per_worker: int

    @classmethod
    def from_config(
        cls, config: ExperimentConfig, train_index: pa.Table, val_index: pa.Table | None
    ) -> RunPlan:
        """Plan the run that a config describes; `val_index` None leaves evaluation out."""
        train, inputs = config.train, config.input
        return build_run_plan(
            train_index,
            val_index,
            epochs=train.epochs,
            batch_size=train.batch_size,
            num_workers=train.num_workers,
            seed=train.seed,
            train_sizes_px=inputs.train_sizes_px,
            train_size_sampling=inputs.train_size_sampling,
            train_max_size_px=inputs.train_max_size_px,
            eval_size_px=inputs.eval_size_px,
            eval_max_size_px=inputs.eval_max_size_px,
            eval_batch_size=train.eval_batch_size,
            eval_every_epochs=train.eval_every_epochs,
            group_by_aspect=inputs.group_by_aspect,
        )

    @property
    def num_steps(self) -> int:
        """Training steps of the run."""
        return self.num_epochs * self.steps_per_epoch

    def __len__(self) -> int:
        return self.table.num_rows

    def worker_rows(
        self, rank: int, start_step: int = 0, *, validate_first: bool = False
    ) -> pa.Table:
        """Select the rows of one worker in their order, from a training step on.

        Args:
            rank: 0 to W-1.
            start_step: see `first_row`.
            validate_first: see `first_row`.
        """
        if not 0 <= rank < self.num_workers:
            raise ValueError(f"rank {rank} is not one of the plan's {self.num_workers} workers")
        rounds = self._rounds_from(start_step, validate_first)
        return self.table.take(rounds * self.num_workers + rank)

    def block_rows(
        self, rows_per_block: int, start_step: int = 0, *, validate_first: bool = False
    ) -> Iterator[np.ndarray]:
        """Cut the run into blocks for streaming: block b goes to worker b mod W.

        A block holds `rows_per_block` consecutive rows of one worker. The last W blocks may be
        shorter, all by the same number, so each worker gets equally many rows.

        Args:
            rows_per_block: at least 1.
            start_step: training steps that are done, see `first_row`.
            validate_first: see `first_row`.

        Yields:
            Row numbers of the table.

        Raises:
            ValueError: a number is out of its range.
        """
        if rows_per_block < 1:
            raise ValueError(f"rows_per_block = {rows_per_block} must be at least 1")
        rounds = self._rounds_from(start_step, validate_first)
        for start in range(0, len(rounds), rows_per_block):
            for worker in range(self.num_workers):
                yield rounds[start : start + rows_per_block] * self.num_workers + worker

    def blocks(
        self, rows_per_block: int, start_step: int = 0, *, validate_first: bool = False
    ) -> list[pa.Table]:
        """Make the tables of `block_rows`, each with buffers of its own."""
        return [
            self.table.take(rows)
            for rows in self.block_rows(rows_per_block, start_step, validate_first=validate_first)
        ]

    def first_row(self, start_step: int = 0, *, validate_first: bool = False) -> int:
        """Find where a run goes on: all rows from this one on are still to do.

        Args:
            start_step: training steps that are done; 0 to `num_steps`. A checkpoint at the end
                of an epoch is written after the validation there, so the validation round after
                exactly `start_step` steps counts as done.
            validate_first: that round is still to do (the run ended between the last step of the
                epoch and the end of the validation).

        Raises:
            ValueError: `start_step` is out of its range.
        """
        if not 0 <= start_step <= self.num_steps:
            raise ValueError(
                f"start_step = {start_step} is not within the run's 0 to {self.num_steps} steps: "
                "was the checkpoint written by a run with other epochs, batch size or data?"
            )
        step = self.table["step"].to_numpy()
        done = step < start_step
        if start_step and not validate_first:
            done |= (self.table["kind"].to_numpy() == VAL) & (step == start_step)
        return int(done.sum())

    def _rounds_from(self, start_step: int, validate_first: bool) -> np.ndarray:
        """Number the rounds (one row for each worker) that are still to do."""
        first = self.first_row(start_step, validate_first=validate_first)
        return np.arange(first // self.num_workers, len(self) // self.num_workers)


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
) -> RunPlan:
    """Plan a training run; the rules of an epoch stand at `order.epoch_batches`.

    A global batch is cut into W equal consecutive parts, so which images form a batch, and their
    target size, do not depend on W. Epoch e of a plan does not depend on the number of epochs.
    Validation follows every `eval_every_epochs`-th epoch and the last one.

    Args:
        train_index: light columns of the training set (shard, row_group, height, width).
        val_index: of the validation set; None: no validation.
        epochs: at least 1.
        batch_size: images a step over all workers, a multiple of `num_workers`.
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

    Raises:
        DataError: an index is empty, or the training set smaller than a batch.
        ValueError: a number is out of its range.
    """
    check_numbers(
        epochs=epochs,
        eval_every_epochs=eval_every_epochs,
        window_row_groups=window_row_groups,
        num_workers=num_workers,
        batch_size=batch_size,
    )
    if batch_size % num_workers:
        raise ValueError(f"batch_size = {batch_size} is not a multiple of {num_workers} workers")
    images = read_images(train_index, "training")
    if len(images) < batch_size:
        raise DataError(
            f"the training set has {len(images)} images, fewer than one batch of {batch_size}; "
            "lower train.batch_size or give more images"
        )
    val_round = None
    if val_index is not None:
        val_round = validation_round(
            val_index, num_workers, eval_batch_size, eval_size_px, eval_max_size_px
        )

    parts: list[pa.Table] = []
    steps = -(-len(images) // batch_size)
    for epoch in range(epochs):
        batches = epoch_batches(
            images,
            epoch,
            batch_size=batch_size,
            seed=seed,
            sizes_px=train_sizes_px,
            size_sampling=train_size_sampling,
            group_by_aspect=group_by_aspect,
            window_row_groups=window_row_groups,
        )
        parts.append(training_rows(batches, epoch, num_workers, train_max_size_px))
        last = epoch + 1 == epochs
        if val_round is not None and (last or (epoch + 1) % eval_every_epochs == 0):
            parts.append(place_round(val_round, epoch=epoch, step=(epoch + 1) * steps))
    num_rounds = sum(part["kind"][0].as_py() == VAL for part in parts)
    return RunPlan(
        table=join_parts(parts),
        num_workers=num_workers,
        num_epochs=epochs,
        steps_per_epoch=steps,
        num_val_rounds=num_rounds,
        num_val_rows_per_worker=val_round.num_rows // num_workers if val_round is not None else 0,
    )


def build_eval_plan(
    index: pa.Table,
    *,
    num_workers: int,
    eval_batch_size: int,
    eval_size_px: int,
    eval_max_size_px: int,
) -> RunPlan:
    """Plan one pass over a set: each image exactly once, as in a run's validation.

    Args:
        index: light columns of the set; its images are the plan's validation images.
        num_workers: W; rows without images are added until each worker has as many.
        eval_batch_size: images of a row.
        eval_size_px: length of the shorter side.
        eval_max_size_px: limit of the longer side.

    Raises:
        DataError: the index is empty.
        ValueError: a number is out of its range.
    """
    rows = validation_round(index, num_workers, eval_batch_size, eval_size_px, eval_max_size_px)
    return RunPlan(
        table=join_parts([rows]),
        num_workers=num_workers,
        num_epochs=0,
        steps_per_epoch=0,
        num_val_rounds=1,
        num_val_rows_per_worker=rows.num_rows // num_workers,
    )
