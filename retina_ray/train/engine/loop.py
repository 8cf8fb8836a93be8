"""The training loop of one worker: batches in, steps, evaluations and checkpoints out.

It knows nothing of Ray: the batches come from an iterator, and what it has to say goes to a
`Host`. So the same loop runs inside a Ray Train worker, inside a Tune trial and in a bare process.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retina_ray.config import ExperimentConfig
from retina_ray.data.loading.unpack import PlannedBatch
from retina_ray.model import RetinaNet
from retina_ray.model.coders import make_coder
from retina_ray.train.checkpoint.format import Checkpoint
from retina_ray.train.engine import distributed, rng
from retina_ray.train.engine.bad_images import named_in_run
from retina_ray.train.engine.callbacks import Host
from retina_ray.train.engine.learner import Learner
from retina_ray.train.engine.meters import StepMeter
from retina_ray.train.engine.run_shape import RunShape
from retina_ray.train.engine.step import TrainingStep, local_norms
from retina_ray.train.engine.stopping import Ended, Ending
from retina_ray.train.engine.validation import ValidationRound
from retina_ray.train.errors import RunStoppedError

logger = logging.getLogger(__name__)


SKIPPED_STEPS = "train/skipped_steps"
"""Metric, logged after each of them: steps left out so far."""

PATIENCE_S = 5.0
"""Between two looks at a validation that is waited for: how soon a reason to stop is heard."""


@dataclass
class TrainingLoop:
    """One worker's training run.

    Attributes:
        config: the experiment, with `model.num_classes` set.
        shape: steps and validation rounds of the run.
        device: where the model lives.
        category_ids: original category id of each label, for the predictions.
        host: who is told.
        step: training steps done, those left out included.
        ended: how `run` came to its end; empty before.
    """

    config: ExperimentConfig
    shape: RunShape
    device: torch.device
    category_ids: list[int]
    host: Host
    step: int = field(init=False, default=0)
    ended: Ended = field(init=False, default="")

    def __post_init__(self) -> None:
        """Build the model and all that trains it; the same weights on every worker."""
        train, shape = self.config.train, self.shape
        self.learner = Learner(
            self.config,
            device=self.device,
            num_steps=shape.num_steps,
            is_new=shape.start_step == 0,
        )
        self._make_step = TrainingStep(self.config, self.learner, self.device)
        self._meter = StepMeter(self.device, batch_size=train.batch_size)
        self._ending = Ending(train, num_steps=shape.num_steps, device=self.device)
        self._rng: list[dict[str, Tensor]] | None = None  # of all workers, while one keeps them
        self._rows: list[PlannedBatch] = []  # of a step that is not complete yet
        self._round: ValidationRound | None = None
        self._bad_images: dict[str, str] = {}  # of this worker, since it last shared them
        self._num_skipped = 0  # steps left out since the last look
        self._is_async = train.async_validation
        self._kept_step = 0  # of the last checkpoint; at the start there is nothing to keep
        self._evaluated_step = 0  # of the last validation round

    @property
    def model(self) -> RetinaNet:
        """What is trained."""
        return self.learner.model

    @property
    def elapsed_s(self) -> float:
        """Seconds of training, evaluations included, over all parts of the run."""
        return self._ending.elapsed_s

    @property
    def round_is_due(self) -> bool:
        """Whether a validation round follows the last step, and is not over yet.

        A checkpoint of such a moment must be carried on with that round (`validate_first`).
        """
        if self._evaluated_step == self.step:
            return False
        epochs, rest = divmod(self.step, self.shape.steps_per_epoch)
        every = self.config.train.eval_every_epochs
        return rest == 0 and (epochs % every == 0 or self.step == self.shape.num_steps)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this run; one of an earlier version may know less."""
        state = checkpoint.state
        assert state is not None
        self.learner.restore(checkpoint)
        rng.restore_state(state["rng"], self.device)
        self.step = self._kept_step = checkpoint.meta.step
        self._evaluated_step = state.get("evaluated_step", self.step)
        self._ending.load_state_dict(state)
        if "meter" in state:
            self._meter.load_state_dict(state["meter"])

    def init_from(self, checkpoint: Checkpoint) -> None:
        """Start from the weights of another run's checkpoint, see `Learner.init_from`."""
        self.learner.init_from(checkpoint)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the weights and their average.

        Plain numbers and tensors; the tensors are those in use, so the next step changes them.
        """
        return {
            **self.learner.state(),
            "rng": self._rng or [rng.own_state(self.device)],
            "meter": self._meter.state_dict(),
            **self._ending.state_dict(),
            "evaluated_step": self._evaluated_step,
        }

    def ema_state(self) -> dict[str, Tensor] | None:
        """The average of the weights under the names of the model's state dict; None without."""
        return self.learner.average_state()

    def run(self, batches: Iterable[PlannedBatch]) -> None:
        """Train over the planned batches to their end, or to that of the time or of all gain.

        Then `ended` says which it was.

        Raises:
            NonFiniteLossError: a loss term or the gradient became NaN or infinite (on every worker
                at once).
            TooManyBadImagesError: too many images could not be decoded (likewise).
            RunStoppedError: the host wants the run to stop; a checkpoint is kept (likewise).
        """
        self._make_step.wrap(num_micro_batches=self.shape.rows_per_step)
        self.model.train()
        self._meter.start()
        self._ending.start()
        self.ended = self._ending.on_plateau(self.step)  # where it came to its end, it stays
        self._end_if_asked()
        if self._is_async and self.round_is_due:
            self._hand_over_round()
        if not self.ended:
            self._run_over(batches)
        if self._is_async:
            self._end_last_round()

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
        if len(self._rows) < self.shape.rows_per_step:
            return
        rows, self._rows = self._rows, []
        assert all(row.step == self.step for row in rows), "rows of another step"
        if self.step in self.shape.skip_steps:
            logger.warning("training step %d is left out", self.step)
            self._num_skipped += 1
        else:
            self._train_step(rows)
        self.learner.schedule.step()
        self.step += 1
        if self._is_logging_step():
            self._log()
        if self._is_async and self.round_is_due:
            self._hand_over_round()
        every = self.config.train.checkpoint_every_steps
        is_kept = self._kept_step == self.step or self.round_is_due
        if every is not None and self.step % every == 0 and not is_kept:
            self._checkpoint()
        # Several GPUs would have to wait for each other.
        if self.device.type == "cpu" or not distributed.is_active() or self._is_logging_step():
            self._end_if_asked()

    def _train_step(self, rows: list[PlannedBatch]) -> None:
        figures = self._make_step([row.batch for row in rows])
        if self.learner.average is not None:
            self.learner.average.update()
        image_ids = [image_id for row in rows for image_id in row.batch.image_ids]
        self._meter.update(figures, step=self.step, image_ids=image_ids, lr=self.learner.lr)

    def _take_val_row(self, planned: PlannedBatch) -> None:
        if self._round is None:
            self._check()
            self._round = self._start_round()
        average = self.learner.average
        with contextlib.nullcontext() if average is None else average.applied():
            self._round.add(self.model, planned.batch.to(self.device))
        if self._round.num_batches == self.shape.val_rows_per_worker:
            self._end_round(self._round, planned.epoch)
            self._round = None
            self.model.train()
            self._meter.resume()
        self._end_if_asked()

    def _start_round(self) -> ValidationRound:
        self._meter.pause()
        for norm in local_norms(self.model):  # rank 0's statistics are those that are kept
            distributed.copy_from_first(norm.buffers())
        self.model.eval()
        return ValidationRound(
            self.config.inference,
            make_coder(self.config.model),
            self.category_ids,
            num_samples=self.config.tracking.num_pictures,
        )

    def _end_round(self, round_: ValidationRound, epoch: int) -> None:
        """Gather, score, keep a checkpoint, report, and see whether there was a gain."""
        self._share_bad_images()
        gathered = round_.gather()
        metrics = {}
        if distributed.rank() == 0:
            metrics = self.host.evaluated(gathered, step=self.step)
            self._ending.add_round(metrics)
        self._evaluated_step = self._kept_step = self.step
        with self._keeping():
            self.host.round_ended(metrics, step=self.step, epoch=epoch + 1, loop=self)
        self.ended = self._ending.on_plateau(self.step)

    def _hand_over_round(self) -> None:
        """Take in the round before, and let this step's weights be evaluated elsewhere."""
        self._check()
        metrics = self._take_round()
        self._evaluated_step = self._kept_step = self.step
        epoch = self.step // self.shape.steps_per_epoch
        with self._keeping():
            self.host.round_ended(metrics, step=self.step, epoch=epoch, loop=self)
        self.ended = self.ended or self._ending.on_plateau(self.step)

    def _end_last_round(self) -> None:
        """Wait for the round that is still under way at the end of the run."""
        metrics = self._take_round()
        self._share_bad_images()
        if distributed.maximum(int(bool(metrics)), self.device):
            epoch = self.step // self.shape.steps_per_epoch
            self.host.last_round_ended(metrics, step=self.step, epoch=epoch)

    def _take_round(self) -> dict[str, float]:
        """Wait for the round beside the training, if any; its figures on rank 0.

        Raises:
            RunStoppedError: the host wants the run to stop meanwhile.
        """
        self._meter.pause()
        is_first = distributed.rank() == 0
        while not distributed.maximum(
            int(is_first and self.host.round_is_over(PATIENCE_S)), self.device
        ):
            self._end_if_asked()
        metrics: dict[str, float] = {}
        if is_first:
            metrics, bad_images = self.host.take_round(step=self.step)
            self._bad_images.update(bad_images)
            if metrics:
                self._ending.add_round(metrics)
        self._meter.resume()
        return metrics

    def _end_if_asked(self) -> None:
        """End the run here, after a checkpoint, if its time is spent.

        Raises:
            RunStoppedError: the host of some worker wants it to stop.
        """
        reason, ended = self._ending.now(
            self.host.stop_reason(), step=self.step, round_is_due=self.round_is_due
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
        epoch = self.step // self.shape.steps_per_epoch
        with self._keeping():
            self.host.checkpoint(step=self.step, epoch=epoch, loop=self)

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[None]:
        """Let `state` have the generators of all workers."""
        self._rng = rng.gather_states(self.device)
        yield
        self._rng = None

    def _is_logging_step(self) -> bool:
        return self.step % self.config.train.log_every_steps == 0

    def _log(self) -> None:
        self._check()
        metrics = self._meter.metrics()
        metrics["train/lr"] = self.learner.lr
        metrics["train/epoch"] = self.step / self.shape.steps_per_epoch
        if self._num_skipped:
            metrics[SKIPPED_STEPS] = float(sum(s < self.step for s in self.shape.skip_steps))
            self._num_skipped = 0
        self._meter.restart()
        if distributed.rank() == 0:
            self.host.log_step(metrics, step=self.step)

    def _check(self) -> None:
        """Stop on every worker alike if something since the last look was not finite.

        Or if too many images could not be decoded.
        """
        self._share_bad_images()
        self._meter.check()

    def _share_bad_images(self) -> None:
        new = distributed.union(self._bad_images, self.device)
        self._bad_images = {}
        if new:
            self.host.saw_bad_images(new)
