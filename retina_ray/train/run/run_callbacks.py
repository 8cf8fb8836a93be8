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
from retina_ray.train.engine.callbacks import Snapshot
from retina_ray.train.engine.validation import Predictions, Sample, score_predictions
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
class RunCallbacks:
    """Rank 0 tracks, scores and keeps checkpoints; every rank reports.

    The run goes on from `start_step`; `report` and `stop_reason` are as in `run_worker`. Without
    `validation`, which evaluates checkpoints elsewhere, the workers validate.
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
        self._metrics: dict[str, float] = {}  # of the last validation, rank 0 only
        self._metrics_step: int | None = None
        self._predictions: Callable[[], bytes] | None = None  # likewise, until they are kept
        self._settlement: Settlement | None = None  # of the validation that was taken in last
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
        self._bad_images = dict(checkpoint.state[BAD_IMAGES_STATE])
        self._metrics = dict(checkpoint.meta.metrics)
        self._metrics_step = checkpoint.meta.metrics_step

    def on_bad_images(self, bad: dict[str, str]) -> None:
        """Count and name images that the stream had to replace; too many end the run."""
        new = {name: why for name, why in bad.items() if name not in self._bad_images}
        self._bad_images |= new
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

    def on_log(self, metrics: dict[str, float], *, step: int) -> None:
        """Record the training metrics of a logging interval."""
        assert self._tracker is not None
        if self._bad_images:
            metrics = {**metrics, BAD_IMAGES: float(len(self._bad_images))}
        self._tracker.log(metrics, step=step)

    def score(self, found: Predictions, *, step: int) -> dict[str, float]:
        """Score a validation, and record it."""
        metrics = score_predictions(found, self._truth, self.spec.config.inference)
        origin = PredictionsOrigin(step, self.inputs.val.info.fingerprint)
        # Made into a file behind the training, and only where they are the best ones.
        self._predictions = functools.partial(predictions_to_parquet, found.results, origin=origin)
        self._record(metrics, found.samples, step=step)
        self._metrics, self._metrics_step = metrics, step
        return metrics

    def _record(
        self, metrics: dict[str, float], samples: list[Sample], *, step: int, at: int | None = None
    ) -> None:
        assert self._tracker is not None
        if self._bad_images:
            metrics[BAD_IMAGES] = float(len(self._bad_images))
        epoch = step / self.inputs.layout.steps_per_epoch
        self._tracker.log({**metrics, "train/epoch": epoch}, step=step, at=at)
        pictures = to_pictures(samples, self._truth, self.inputs.val.class_names)
        self._tracker.log_pictures(pictures, step=step)

    def validation_is_done(self) -> bool:
        """Whether no asynchronous validation is under way."""
        if self.validation is None:
            return True
        self._saver.wait()  # the validation starts when its checkpoint is written
        return self.validation.is_done()

    def take_validation(self, *, step: int) -> tuple[dict[str, float], dict[str, str]]:
        """Record the outcome of the asynchronous validation."""
        taken = None if self.validation is None else self.validation.take()
        if taken is None:
            return {}, {}
        outcome, waited_s = taken
        metrics = {**outcome.metrics, WAIT: waited_s}
        self._record(metrics, outcome.samples, step=outcome.step, at=step)
        self._metrics, self._metrics_step = metrics, outcome.step
        self._predictions = lambda: outcome.predictions
        self._settlement = Settlement(metrics, metrics.get("val/AP"))
        return metrics, outcome.bad_images

    def on_validation_end(self, metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        """Keep a checkpoint on rank 0, in the background, and report on every rank."""
        uri = ""
        if snapshot is not None:
            metric = metrics.get("val/AP") if self.validation is None else None
            uri = self._keep(snapshot, metric=metric, ends_validation=True)
            metrics = self._reported(metrics, step=snapshot.step, epoch=snapshot.epoch)
        self.report(metrics, uri)

    def on_last_validation(self, metrics: dict[str, float], *, step: int, epoch: int) -> None:
        """Record the last asynchronous validation; no checkpoint follows."""
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

    def on_checkpoint(self, snapshot: Snapshot | None) -> None:
        """Keep a checkpoint on rank 0, in the background; called between validations."""
        if snapshot is not None:
            self._keep(snapshot, metric=None)

    def _keep(
        self, snapshot: Snapshot, *, metric: float | None, ends_validation: bool = False
    ) -> str:
        """Copy the loop's state, and let it be written behind the steps that follow.

        Raises:
            CheckpointError: the checkpoint before this one could not be written.
        """
        info = self.inputs.train.info
        checkpoint = Checkpoint(
            model=snapshot.model,
            state={**snapshot.state, BAD_IMAGES_STATE: self._bad_images},
            config=self.spec.config,
            meta=CheckpointMeta(
                step=snapshot.step,
                epoch=snapshot.epoch,
                categories=[(c.id, c.name) for c in info.categories],
                dataset_fingerprint=info.fingerprint,
                metrics=dict(self._metrics),
                wandb_run_id=self.spec.run_id,
                metrics_step=self._metrics_step,
            ),
            ema=snapshot.ema,
        )
        settlement = None
        if ends_validation:
            settlement, self._settlement = self._settlement, None
        judged = metric if settlement is None else settlement.metric
        predictions, self._predictions = self._predictions, None
        if not self._saver.is_better(judged):
            predictions = None
        start = self.validation.start if self.validation is not None and ends_validation else None

        def before_it_counts() -> None:
            # The record first: a run that goes on from the checkpoint cuts what is beyond it.
            if predictions is not None:
                self._folder.write(PREDICTIONS_FILE, predictions())
            self._folder.upload(all_files=ends_validation)

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
