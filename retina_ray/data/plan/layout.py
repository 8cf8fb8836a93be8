"""Where everything stands in a run's plan, by arithmetic alone: no image is looked at.

A run is a row of segments: the training rows of an epoch, then the validation round after it where
one is due. The rows of worker r are r, r + W, r + 2W, ... (W workers); a round is one row of each.

The global batch of a step is cut into M micro-batches, whatever W is. Dealt out to the workers they
make ceil(M / W) rounds; where M does not divide by W, the last of these is filled up with rows
without images. So a run may go on with another number of workers after any step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from retina_ray.config import ExperimentConfig

TRAIN, VAL = "train", "val"


def micro_batches_of(config: ExperimentConfig) -> int:
    """M: parts of the global batch of a step, the same for any number of workers of a run."""
    return config.train.num_workers * config.train.accumulate


def rounds_of(num_micro_batches: int, num_workers: int) -> int:
    """Rounds that the micro-batches of a step make: rows of each worker."""
    return -(-num_micro_batches // num_workers)


@dataclass(frozen=True)
class Segment:
    """The training rows of an epoch, or the rows of a validation round.

    Attributes:
        kind: `TRAIN` or `VAL`.
        epoch: that it is, or that it follows.
        step: training steps done before it.
        first_round: its first round within the run.
    """

    kind: str
    epoch: int
    step: int
    first_round: int
    num_rounds: int


@dataclass(frozen=True)
class RunLayout:
    """How long a run is, and in which order its parts come.

    Attributes:
        num_epochs: 0 for a pure evaluation, which is one validation round.
        num_val_rows_per_worker: validation rows of a worker in ONE round; 0: no validation.
        eval_every_epochs: a round follows every so many epochs, and the last one.
        rows_per_step: training rows of a worker in a step, ceil(M / W).
    """

    num_workers: int
    num_epochs: int
    steps_per_epoch: int
    num_val_rows_per_worker: int
    eval_every_epochs: int = 1
    rows_per_step: int = 1

    @classmethod
    def of_sizes(
        cls,
        num_train: int,
        num_val: int,
        *,
        num_workers: int,
        epochs: int,
        batch_size: int,
        eval_batch_size: int,
        eval_every_epochs: int,
        num_micro_batches: int | None = None,
    ) -> RunLayout:
        """Lay out a run over sets of known sizes.

        Args:
            num_train: images of an epoch.
            num_val: images of the validation set; 0: no validation.
            num_workers: W.
            epochs: of the run.
            batch_size: images a step over all workers.
            eval_batch_size: images of a validation row.
            eval_every_epochs: at least 1.
            num_micro_batches: M; None: one for each worker.
        """
        return cls(
            num_workers=num_workers,
            num_epochs=epochs,
            steps_per_epoch=-(-num_train // batch_size),
            num_val_rows_per_worker=-(-num_val // (eval_batch_size * num_workers)),
            eval_every_epochs=eval_every_epochs,
            rows_per_step=rounds_of(num_micro_batches or num_workers, num_workers),
        )

    @classmethod
    def from_config(
        cls,
        config: ExperimentConfig,
        num_train: int,
        num_val: int,
        *,
        num_workers: int | None = None,
    ) -> RunLayout:
        """Lay out the run that a config describes.

        Args:
            config: of the run.
            num_train: images of an epoch.
            num_val: images of the validation set; 0: no validation.
            num_workers: W, where it is not (or not any more) `train.num_workers`.
        """
        train = config.train
        return cls.of_sizes(
            num_train,
            num_val,
            num_workers=num_workers or train.num_workers,
            epochs=train.epochs,
            batch_size=train.batch_size,
            eval_batch_size=train.eval_batch_size,
            eval_every_epochs=train.eval_every_epochs,
            num_micro_batches=micro_batches_of(config),
        )

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The parts of the run in the order of time."""
        if self.num_epochs == 0:
            return (Segment(VAL, 0, 0, 0, self.num_val_rows_per_worker),)
        segments, at = [], 0
        for epoch in range(self.num_epochs):
            steps = self.steps_per_epoch
            rounds = steps * self.rows_per_step
            segments.append(Segment(TRAIN, epoch, epoch * steps, at, rounds))
            at += rounds
            last = epoch + 1 == self.num_epochs
            if self.num_val_rows_per_worker and (last or (epoch + 1) % self.eval_every_epochs == 0):
                rounds = self.num_val_rows_per_worker
                segments.append(Segment(VAL, epoch, (epoch + 1) * steps, at, rounds))
                at += rounds
        return tuple(segments)

    @property
    def num_steps(self) -> int:
        """Training steps of the run."""
        return self.num_epochs * self.steps_per_epoch

    @property
    def num_val_rounds(self) -> int:
        """How often the validation set is gone through."""
        return sum(segment.kind == VAL for segment in self.segments)

    @property
    def num_rounds(self) -> int:
        """Rows of a worker."""
        return self.segments[-1].first_round + self.segments[-1].num_rounds

    @property
    def num_rows(self) -> int:
        """Rows of the run, those of all workers."""
        return self.num_rounds * self.num_workers

    def first_round(self, start_step: int = 0, *, validate_first: bool = False) -> int:
        """Find where a run goes on: this round and all after it are still to do.

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
        done = 0
        for segment in self.segments:
            if segment.kind == TRAIN:
                steps = max(0, start_step - segment.step)
                done += min(segment.num_rounds, steps * self.rows_per_step)
            elif segment.step < start_step or (
                segment.step == start_step and start_step > 0 and not validate_first
            ):
                done += segment.num_rounds
        return done

    def worker_rows(self, rank: int, start_step: int = 0, *, validate_first: bool = False) -> range:
        """The plan indices of one worker in their order, from a training step on.

        Args:
            rank: 0 to W-1.
            start_step: see `first_round`.
            validate_first: see `first_round`.

        Raises:
            ValueError: there is no such worker.
        """
        if not 0 <= rank < self.num_workers:
            raise ValueError(f"rank {rank} is not one of the plan's {self.num_workers} workers")
        first = self.first_round(start_step, validate_first=validate_first)
        return range(first * self.num_workers + rank, self.num_rows, self.num_workers)

    def blocks(
        self, rows_per_block: int, start_step: int = 0, *, validate_first: bool = False
    ) -> RunBlocks:
        """Cut what is still to do into blocks for streaming: block b goes to worker b mod W.

        Args:
            rows_per_block: at least 1.
            start_step: see `first_round`.
            validate_first: see `first_round`.

        Raises:
            ValueError: a number is out of its range.
        """
        if rows_per_block < 1:
            raise ValueError(f"rows_per_block = {rows_per_block} must be at least 1")
        first = self.first_round(start_step, validate_first=validate_first)
        return RunBlocks(self, rows_per_block, first)


@dataclass(frozen=True)
class RunBlocks:
    """A run in blocks of consecutive rows of one worker, none across the end of a segment.

    The W blocks of a group hold equally many rows; only the last group of a segment may be shorter.
    So dealt out round robin, or each to whoever has fewest rows, block b goes to worker b mod W.
    """

    layout: RunLayout
    rows_per_block: int
    first_round: int

    @cached_property
    def _spans(self) -> NDArray[np.int64]:
        """(S + 1, 3): first group, first round and end round of each segment that is left."""
        spans, groups = [], 0
        for segment in self.layout.segments:
            end = segment.first_round + segment.num_rounds
            start = max(segment.first_round, self.first_round)
            if start < end:
                spans.append((groups, start, end))
                groups += -(-(end - start) // self.rows_per_block)
        return np.array([*spans, (groups, 0, 0)], np.int64)

    def __len__(self) -> int:
        return int(self._spans[-1, 0]) * self.layout.num_workers

    def __getitem__(self, block: int) -> NDArray[np.int64]:
        """The plan indices of a block's rows."""
        if not 0 <= block < len(self):
            raise IndexError(f"block {block} of {len(self)}")
        group, worker = divmod(block, self.layout.num_workers)
        span = int(np.searchsorted(self._spans[:, 0], group, side="right")) - 1
        first_group, start, end = self._spans[span].tolist()
        start += (group - first_group) * self.rows_per_block
        rounds = np.arange(start, min(start + self.rows_per_block, end))
        return rounds * self.layout.num_workers + worker

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return (self[block] for block in range(len(self)))
