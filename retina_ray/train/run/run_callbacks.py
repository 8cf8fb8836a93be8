"""What a worker of a run tells the world: records, scores, checkpoints, reports."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from retina_ray.evaluation.predictions_file import (
    PREDICTIONS_FILE,
    PredictionsOrigin,
    predictions_to_parquet,
)
from retina_ray.train.checkpoint.async_saver import CheckpointSaver, Settlement
from retina_ray.train.checkpoint.format import Checkpoint, CheckpointMeta
from retina_ray.train.engine import distributed
from retina_ray.train.engine.bad_images import add_new
from retina_ray.train.engine.loop import TrainingLoop
from retina_ray.train.engine.validation import RoundResult, Sample, score_round
from retina_ray.train.errors import TooManyBadImagesError
from retina_ray.train.run.async_validation import WAIT, AsyncValidation
from retina_ray.train.spec import RunInputs, RunSpec
from retina_ray.train.tracking import Status, Tracker, open_tracker
from retina_ray.train.tracking.run_folder import RunFolder
from retina_ray.train.tracking.samples import to_pictures

logger = logging.getLogger(__name__)

BAD_IMAGES = "data/bad_images"
"""Metric: images of both sets that could not be decoded so far; `bad_images.json` names them."""

BAD_IMAGES_STATE = "bad_images"
"""The same images and the reasons, in a checkpoint's state: every rank counts on from there."""

Report = Callable[[dict[str, Any], str], None]
StopReason = Callable[[], str | None]


@dataclass
class RunHost:
    """Rank 0 tracks, scores and keeps checkpoints; every rank reports.

    Attributes:
        spec: the run.
        inputs: its opened data.
        start_step: where it goes on.
        report: see `run_worker`.
        stop_reason: see `run_worker`.
        validation: the rounds beside the training; None where it is the workers that validate.
    """

    spec: RunSpec
    inputs: RunInputs
    start_step: int
    report: Report
    stop_reason: StopReason
    validation: AsyncValidation | None = None

    def __post_init__(self) -> None:
        self._started = time.time()
        self._tracker: Tracker | None = None
        self._bad_images: dict[str, str] = {}
        self._figures: dict[str, float] = {}  # of the last evaluation, rank 0 only
        self._figures_step: int | None = None
        self._predictions: Callable[[], bytes] | None = None  # likewise, until they are kept
        self._settlement: Settlement | None = None  # of the round that was taken in last
        if distributed.rank() != 0:
            return
        self._saver = CheckpointSaver(self.spec.checkpoints)
        self._folder = RunFolder(self.spec.run_uri)
        box_type = self.spec.config.model.box_type
        self._truth = self.inputs.val.ground_truth(box_type=box_type)
        self._tracker = open_tracker(
            self.spec.config.tracking,
            run_dir=self._folder.path,
            run_id=self.spec.run_id,
            name=self.spec.name,
            group=self.spec.group,
            experiment=self.spec.config.model_dump(mode="json"),
            resume=self.start_step > 0,
            resume_step=self.start_step if self.start_step > 0 else None,
        )
        if self.validation is not None and self._saver.pending is not None:
            self.validation.start(self._saver.uri_of(self._saver.pending))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this run; the same on every rank."""
        assert checkpoint.state is not None
        self._bad_images = dict(checkpoint.state.get(BAD_IMAGES_STATE, {}))
        self._figures = dict(checkpoint.meta.metrics)
        if self._figures:
            self._figures_step = checkpoint.meta.metrics_step or checkpoint.meta.step

    def saw_bad_images(self, bad: dict[str, str]) -> None:
        """Count and name images that the stream had to replace; too many end the run."""
        new = add_new(self._bad_images, bad)
        if self._tracker is not None and new:
            for name, reason in new.items():
                logger.warning("%s could not be decoded and was replaced: %s", name, reason)
            self._folder.note_bad_images(new)
        limit = self.spec.config.input.max_bad_fraction * self.inputs.train.info.num_images
        if len(self._bad_images) > max(limit, 0):
            some = "; ".join(f"{name}: {why}" for name, why in list(self._bad_images.items())[:5])
            raise TooManyBadImagesError(
                f"{len(self._bad_images)} images could not be decoded, more than "
                f"input.max_bad_fraction = {self.spec.config.input.max_bad_fraction} of "
                f"{self.inputs.train.info.num_images} allows; the first: {some}. Repair the data "
                "set (retina-ray data check names all of them), or raise the limit"
            )

    def log_step(self, metrics: dict[str, float], *, step: int) -> None:
        """Record the training figures of a logging interval."""
        assert self._tracker is not None
        if self._bad_images:
            metrics = {**metrics, BAD_IMAGES: float(len(self._bad_images))}
        self._tracker.log(metrics, step=step)

    def evaluated(self, result: RoundResult, *, step: int) -> dict[str, float]:
        """Score a validation round, and record it."""
        assert self._tracker is not None
        metrics = score_round(result, self._truth, self.spec.config.inference)
        origin = PredictionsOrigin(step, self.inputs.val.info.fingerprint)
        # Made into a file behind the training, and only where they are the best ones.
        self._predictions = functools.partial(predictions_to_parquet, result.results, origin=origin)
        self._record_round(metrics, result.samples, step=step)
        return metrics

    def _record_round(
        self, metrics: dict[str, float], samples: list[Sample], *, step: int, at: int | None = None
    ) -> None:
        assert self._tracker is not None
        if self._bad_images:
            metrics[BAD_IMAGES] = float(len(self._bad_images))
        epoch = step / self.inputs.layout.steps_per_epoch
        self._tracker.log({**metrics, "train/epoch": epoch}, step=step, at=at)
        names = self.inputs.val.class_names
        pictures = to_pictures(samples, self._truth, names)
        self._tracker.log_pictures(pictures, step=step)

    def round_is_over(self, timeout_s: float) -> bool:
        """Whether no round beside the training is under way."""
        if self.validation is None:
            return True
        self._saver.wait()  # the round starts when its checkpoint is written
        return self.validation.is_over(timeout_s)

    def take_round(self, *, step: int) -> tuple[dict[str, float], dict[str, str]]:
        """Record what the round beside the training came to."""
        taken = None if self.validation is None else self.validation.take()
        if taken is None:
            return {}, {}
        outcome, waited_s = taken
        metrics = {**outcome.metrics, WAIT: waited_s}
        self._record_round(metrics, outcome.samples, step=outcome.step, at=step)
        self._figures, self._figures_step = metrics, outcome.step
        self._predictions = lambda: outcome.predictions
        self._settlement = Settlement(metrics, metrics.get("val/AP"))
        return metrics, outcome.bad_images

    def round_ended(
        self, metrics: dict[str, float], *, step: int, epoch: int, loop: TrainingLoop
    ) -> None:
        """Keep a checkpoint on rank 0, in the background, and report on every rank.

        The figures are those of the step; with rounds beside the training, of the round before,
        and the checkpoint goes into the next one.
        """
        uri = ""
        if self._tracker is not None:
            if self.validation is None:
                self._figures, self._figures_step = metrics, step
                metric = metrics.get("val/AP")
            else:
                metric = None
            uri = self._keep(step=step, epoch=epoch, loop=loop, metric=metric, ends_round=True)
            metrics = self._reported(metrics, step=step, epoch=epoch)
        self.report(metrics, uri)

    def last_round_ended(self, metrics: dict[str, float], *, step: int, epoch: int) -> None:
        """Record the figures of the last round beside the training; no checkpoint follows."""
        if self._tracker is not None:
            settlement, self._settlement = self._settlement, None
            if settlement is not None:
                if self._saver.is_better(settlement.metric) and self._predictions is not None:
                    self._folder.write(PREDICTIONS_FILE, self._predictions())
                self._saver.settle(settlement)
            metrics = self._reported(metrics, step=step, epoch=epoch)
        self.report(metrics, "")

    def _reported(self, metrics: dict[str, float], *, step: int, epoch: int) -> dict[str, Any]:
        elapsed_s = time.time() - self._started
        return {**metrics, "epoch": epoch, "step": step, "elapsed_s": elapsed_s}

    def checkpoint(self, *, step: int, epoch: int, loop: TrainingLoop) -> None:
        """Keep a checkpoint on rank 0, in the background; called between evaluations."""
        if self._tracker is not None:
            self._keep(step=step, epoch=epoch, loop=loop, metric=None)

    def _keep(
        self,
        *,
        step: int,
        epoch: int,
        loop: TrainingLoop,
        metric: float | None,
        ends_round: bool = False,
    ) -> str:
        """Copy the loop's state, and let it be written behind the steps that follow.

        Raises:
            CheckpointError: the checkpoint before this one could not be written.
        """
        checkpoint = Checkpoint(
            model=loop.model.state_dict(),
            state={**loop.state(), BAD_IMAGES_STATE: self._bad_images},
            config=self.spec.config,
            meta=CheckpointMeta(
                step=step,
                epoch=epoch,
                categories=[(c.id, c.name) for c in self.inputs.train.info.categories],
                dataset_fingerprint=self.inputs.train.info.fingerprint,
                metrics=dict(self._figures),
                wandb_run_id=self.spec.run_id,
                metrics_step=self._figures_step,
            ),
            ema=loop.ema_state(),
        )
        settlement = None
        if ends_round:
            settlement, self._settlement = self._settlement, None
        judged = metric if settlement is None else settlement.metric
        predictions, self._predictions = self._predictions, None
        if not self._saver.is_better(judged):
            predictions = None
        start = self.validation.start if self.validation is not None and ends_round else None

        def before_it_counts() -> None:
            # The record first: a run that goes on from the checkpoint cuts what is beyond it.
            if predictions is not None:
                self._folder.write(PREDICTIONS_FILE, predictions())
            self._folder.upload(all_files=ends_round)

        return self._saver.save(
            checkpoint,
            metric=metric,
            settles=settlement,
            is_pending=start is not None,
            before_switch=before_it_counts,
            after_switch=start,
        )

    def close(self, status: Status) -> None:
        """Wait for the last checkpoint, and end the records.

        Raises:
            CheckpointError: the last checkpoint could not be written.
        """
        if self._tracker is None:
            return
        try:
            self._saver.close(has_failed=status == "failed")
        except BaseException:
            status = "failed"
            raise
        finally:
            self._tracker.finish(status)
            self._folder.close()
