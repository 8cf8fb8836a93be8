"""The training loop of one worker: batches in, steps, validations and checkpoints out.

It knows nothing of Ray: the batches come from an iterator, and what it has to say goes to its
`Callbacks`. So the same loop runs in a Ray Train worker, in a Tune trial and in a bare process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from retina_ray.config import ExperimentConfig
from retina_ray.data.loading.unpack import PlannedBatch
from retina_ray.data.plan.layout import RunLayout
from retina_ray.model import RetinaNet
from retina_ray.train.checkpoint.format import Checkpoint
from retina_ray.train.engine import distributed
from retina_ray.train.engine.callbacks import Callbacks, Snapshot
from retina_ray.train.engine.learner import Learner
from retina_ray.train.engine.meters import StepMeter
from retina_ray.train.engine.step import TrainingStep
from retina_ray.train.engine.stopping import Ended, StoppingCriteria
from retina_ray.train.engine.validation import Validator, named_in_run
from retina_ray.train.errors import RunStoppedError

logger = logging.getLogger(__name__)

SKIPPED_STEPS = "train/skipped_steps"
"""Metric, logged after each of them: steps left out so far."""


@dataclass
class TrainingLoop:
    """One worker's training run.

    Attributes:
        category_ids: original category id of each label, for the predictions.
        is_new: the run starts; else a checkpoint follows (`restore`).
        skip_steps: training steps, from 0, whose rows are passed over: no update, but the schedule
            moves on.
        step: training steps done, those left out included.
        ended: how `run` came to its end; empty before.
    """

    config: ExperimentConfig
    layout: RunLayout
    device: torch.device
    category_ids: list[int]
    callbacks: Callbacks
    is_new: bool = True
    skip_steps: frozenset[int] = frozenset()
    step: int = field(init=False, default=0)
    ended: Ended = field(init=False, default="")

    def __post_init__(self) -> None:
        """Build the model and all that trains it; the same weights on every worker."""
        train, num_steps = self.config.train, self.layout.num_steps
        self.learner = Learner(
            self.config, device=self.device, num_steps=num_steps, is_new=self.is_new
        )
        self._make_step = TrainingStep(self.config, self.learner, self.device)
        self._validator = Validator(
            self.config, self.layout, self.learner, self.device, self.category_ids
        )
        self._meter = StepMeter(self.device, batch_size=train.batch_size)
        self._stopping = StoppingCriteria(train, num_steps=num_steps, device=self.device)
        self._rows: list[PlannedBatch] = []  # of a step that is not complete yet
        self._bad_images: dict[str, str] = {}  # of this worker, since it last shared them
        self._num_skipped = 0  # steps left out since the last look
        self._is_async = train.async_validation
        self._kept_step = 0  # of the last checkpoint; at the start there is nothing to keep

    @property
    def model(self) -> RetinaNet:
        """What is trained."""
        return self.learner.model

    @property
    def validation_is_due(self) -> bool:
        """Whether a validation follows the last step, and is not over yet.

        A checkpoint of such a moment must be resumed with that validation (`validate_first`).
        """
        return self._validator.is_due(self.step)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this run."""
        state = checkpoint.state
        assert state is not None
        self.learner.restore(checkpoint)
        distributed.restore_rng_state(state["rng"], self.device)
        self.step = self._kept_step = checkpoint.meta.step
        self._validator.evaluated_step = state["evaluated_step"]
        self._stopping.load_state_dict(state)
        self._meter.load_state_dict(state["meter"])

    def snapshot(self) -> Snapshot | None:
        """What a checkpoint needs, on rank 0; None elsewhere. Every worker must call it."""
        generators = distributed.gather_rng_states(self.device)
        if generators is None:
            return None
        state = {
            **self.learner.state(),
            "rng": generators,
            "meter": self._meter.state_dict(),
            **self._stopping.state_dict(),
            "evaluated_step": self._validator.evaluated_step,
        }
        average = self.learner.average
        ema = None if average is None else average.weights()
        return Snapshot(self.step, self._epoch, self.model.state_dict(), ema, state)

    def run(self, batches: Iterable[PlannedBatch]) -> None:
        """Train over the planned batches to their end, or to that of the time or of all gain.

        Then `ended` says which it was.

        Raises:
            NonFiniteLossError: a loss term or the gradient became NaN or infinite (on every worker
                at once).
            TooManyBadImagesError: too many images could not be decoded (likewise).
            RunStoppedError: the run shall stop; a checkpoint is kept (likewise).
        """
        self._make_step.wrap(num_micro_batches=self.layout.rows_per_step)
        self.model.train()
        self._meter.start()
        self._stopping.start()
        self.ended = self._stopping.after_validation(self.step)  # where it ended, it stays
        self._end_if_asked()
        if self._is_async and self.validation_is_due:
            self._start_async_validation()
        if not self.ended:
            self._run_over(batches)
        if self._is_async:
            self._end_last_validation()

    def _run_over(self, batches: Iterable[PlannedBatch]) -> None:
        waiting = time.perf_counter()
        for planned in batches:
            self._meter.waited(time.perf_counter() - waiting)
            self._bad_images.update(named_in_run(planned.kind, planned.batch.bad_images))
            if planned.kind == "train":
                self._take_train_row(planned)
            else:
                self._take_val_row(planned)
            if self.ended:
                return
            waiting = time.perf_counter()
        self._check()
        self.ended = "finished"

    def _take_train_row(self, planned: PlannedBatch) -> None:
        """Make the step when its last row is there, and what is due after it."""
        self._rows.append(planned)
        if len(self._rows) < self.layout.rows_per_step:
            return
        rows, self._rows = self._rows, []
        assert all(row.step == self.step for row in rows), "rows of another step"
        if self.step in self.skip_steps:
            logger.warning("training step %d is left out", self.step)
            self._num_skipped += 1
        else:
            self._train_step(rows)
        self.learner.schedule.step()
        self.step += 1
        if self._is_logging_step():
            self._log()
        if self._is_async and self.validation_is_due:
            self._start_async_validation()
        every = self.config.train.checkpoint_every_steps
        is_kept = self._kept_step == self.step or self.validation_is_due
        if every is not None and self.step % every == 0 and not is_kept:
            self._checkpoint()
        # Several GPUs would have to wait for each other.
        if self.device.type == "cpu" or not distributed.is_active() or self._is_logging_step():
            self._end_if_asked()

    def _train_step(self, rows: list[PlannedBatch]) -> None:
        metrics = self._make_step([row.batch for row in rows])
        image_ids = [image_id for row in rows for image_id in row.batch.image_ids]
        self._meter.update(metrics, step=self.step, image_ids=image_ids, lr=self.learner.lr)

    def _take_val_row(self, planned: PlannedBatch) -> None:
        """Predict a row; after the last one score, keep a checkpoint, and see whether to go on."""
        if not self._validator.is_under_way:
            self._check()
            self._meter.pause()
        found = self._validator.add(planned.batch)
        if found is not None:
            self._share_bad_images()
            metrics = {}
            if distributed.rank() == 0:
                metrics = self.callbacks.score(found, step=self.step)
                self._stopping.add_validation(metrics)
            self._end_validation(metrics)
            self._meter.resume()
        self._end_if_asked()

    def _end_validation(self, metrics: dict[str, float]) -> None:
        self._validator.evaluated_step = self._kept_step = self.step
        self.callbacks.on_validation_end(metrics, self.snapshot())
        self.ended = self.ended or self._stopping.after_validation(self.step)

    def _start_async_validation(self) -> None:
        """Take in the validation before, and let this step's weights be evaluated elsewhere."""
        self._check()
        self._end_validation(self._take_validation())

    def _end_last_validation(self) -> None:
        """Wait for the asynchronous validation that is still under way at the end of the run."""
        metrics = self._take_validation()
        self._share_bad_images()
        if distributed.maximum(int(bool(metrics)), self.device):
            self.callbacks.on_last_validation(metrics, step=self.step, epoch=self._epoch)

    def _take_validation(self) -> dict[str, float]:
        """Wait for the asynchronous validation, if any; its metrics on rank 0.

        Raises as `_end_if_asked`.
        """
        self._meter.pause()
        is_first = distributed.rank() == 0
        while not distributed.maximum(
            int(is_first and self.callbacks.validation_is_done()), self.device
        ):
            self._end_if_asked()
        metrics: dict[str, float] = {}
        if is_first:
            metrics, bad_images = self.callbacks.take_validation(step=self.step)
            self._bad_images.update(bad_images)
            if metrics:
                self._stopping.add_validation(metrics)
        self._meter.resume()
        return metrics

    def _end_if_asked(self) -> None:
        """End the run here, after a checkpoint, if its time is spent.

        Raises:
            RunStoppedError: some worker has a reason to stop.
        """
        reason, ended = self._stopping.now(
            self.callbacks.stop_reason(),
            step=self.step,
            validation_is_due=self.validation_is_due,
        )
        if reason is None and not ended:
            return
        if self._kept_step != self.step:
            self._checkpoint()
        if reason is not None:
            raise RunStoppedError(reason)
        self.ended = self.ended or ended

    def _checkpoint(self) -> None:
        self._check()
        self._kept_step = self.step
        self.callbacks.on_checkpoint(self.snapshot())

    @property
    def _epoch(self) -> int:
        return self.step // self.layout.steps_per_epoch

    def _is_logging_step(self) -> bool:
        return self.step % self.config.train.log_every_steps == 0

    def _log(self) -> None:
        self._check()
        metrics = self._meter.metrics()
        metrics["train/lr"] = self.learner.lr
        metrics["train/epoch"] = self.step / self.layout.steps_per_epoch
        if self._num_skipped:
            metrics[SKIPPED_STEPS] = float(sum(s < self.step for s in self.skip_steps))
            self._num_skipped = 0
        self._meter.restart()
        if distributed.rank() == 0:
            self.callbacks.on_log(metrics, step=self.step)

    def _check(self) -> None:
        """Stop on all workers alike if a loss was not finite, or too many images were broken."""
        self._share_bad_images()
        self._meter.check()

    def _share_bad_images(self) -> None:
        new = distributed.union(self._bad_images, self.device)
        self._bad_images = {}
        if new:
            self.callbacks.on_bad_images(new)
