"""What each worker of a run does: open the data, build the loop, restore it, and run.

The same function runs in a Ray Train worker, in Ray Train's local mode (the trial's or the
driver's own process), and without Ray at all (`batches` given by the caller).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from retina_ray.data.unpack import PlannedBatch
from retina_ray.evaluation.coco import evaluate_coco
from retina_ray.evaluation.predictions_file import (
    PREDICTIONS_FILE,
    PredictionsOrigin,
    predictions_to_parquet,
)
from retina_ray.train import distributed
from retina_ray.train.checkpoint_checks import require_own
from retina_ray.train.checkpoint_saver import CheckpointSaver
from retina_ray.train.checkpoints import (
    Checkpoint,
    CheckpointMeta,
    OvertakenError,
    load_checkpoint,
)
from retina_ray.train.errors import RunStoppedError, TooManyBadImagesError
from retina_ray.train.loop import TrainingLoop
from retina_ray.train.rollback import skipped_steps
from retina_ray.train.run_folder import RunFolder
from retina_ray.train.samples import to_pictures
from retina_ray.train.spec import RunInputs, RunSpec
from retina_ray.train.tracking import Status, Tracker, open_tracker
from retina_ray.train.validation import RoundResult

logger = logging.getLogger(__name__)

BAD_IMAGES = "data/bad_images"
"""Metric: images that could not be decoded so far. Their names are in `bad_images.json`."""

BAD_IMAGES_STATE = "bad_images"
"""The same images and the reasons, in a checkpoint's state: every rank counts on from there."""

Report = Callable[[dict[str, Any], str], None]
StopReason = Callable[[], str | None]

__all__ = ["Report", "run_worker"]


def run_worker(
    spec: RunSpec,
    inputs: RunInputs,
    batches: Iterable[PlannedBatch],
    *,
    start_step: int,
    device: torch.device,
    report: Report,
    stop_reason: StopReason = lambda: None,
) -> None:
    """Run one worker's part of a training run, from its last checkpoint to the end.

    Args:
        spec: the run.
        inputs: its opened data.
        batches: this worker's rows of the plan from `start_step` on.
        start_step: training steps that the last checkpoint has done.
        device: where to train.
        report: called on every rank after each evaluation with the metrics (empty but on rank 0)
            and the URI that the checkpoint has as soon as it is written ("" elsewhere).
        stop_reason: asked after each step, on every rank, why the run should stop; None: go on.

    Raises:
        ConfigError: the checkpoint cannot be read, or is of another model, classes or data.
        CheckpointError: a checkpoint could not be written (rank 0; one evaluation late).
        NonFiniteLossError: the loss was NaN or infinite.
        RunStoppedError: there was a reason to stop; the checkpoint is written.
        TooManyBadImagesError: more images than `input.max_bad_fraction` could not be decoded.
    """
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(spec.config.train.cpus_per_worker)))
    distributed.set_cuda_device(device)
    host = _Host(spec, inputs, start_step=start_step, report=report, stop_reason=stop_reason)
    skip_steps = frozenset(skipped_steps(spec.run_uri))
    shape = replace(inputs.shape(start_step), skip_steps=skip_steps)
    loop = TrainingLoop(spec.config, shape, device, inputs.category_ids, host)
    if start_step > 0:
        checkpoint = _own_checkpoint(spec, inputs, start_step)
        loop.restore(checkpoint)
        host.restore(checkpoint)
    elif spec.init_from is not None:
        loop.init_from(load_checkpoint(spec.init_from, weights_only=True))
    status: Status = "failed"
    try:
        loop.run(batches)
        status = "finished"
    except RunStoppedError:
        status = "stopped"
        raise
    except SystemExit:  # how Ray Tune ends the thread of a trial that its scheduler stopped
        status = "finished" if loop.step >= inputs.layout.num_steps else "stopped"
        raise
    finally:
        host.close(status)


def _own_checkpoint(spec: RunSpec, inputs: RunInputs, start_step: int) -> Checkpoint:
    last = spec.checkpoints.last
    assert last is not None
    checkpoint = load_checkpoint(last)
    require_own(
        checkpoint,
        uri=last,
        config=spec.config,
        train_uri=spec.train_uri,
        info=inputs.train.info,
    )
    if checkpoint.meta.step != start_step:
        raise OvertakenError(
            f"{last} came to be while this worker started at step {start_step}: another process "
            "carries on this run, or one that was given up for lost does"
        )
    return checkpoint


@dataclass
class _Host:
    """Rank 0 tracks, scores and keeps checkpoints; every rank reports."""

    spec: RunSpec
    inputs: RunInputs
    start_step: int
    report: Report
    stop_reason: StopReason

    def __post_init__(self) -> None:
        self._started = time.time()
        self._tracker: Tracker | None = None
        self._bad_images: dict[str, str] = {}
        self._figures: dict[str, float] = {}  # of the last evaluation, rank 0 only
        self._figures_step: int | None = None
        self._results: list[dict[str, Any]] | None = None  # likewise, until they are kept
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

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this run; the same on every rank."""
        assert checkpoint.state is not None
        self._bad_images = dict(checkpoint.state.get(BAD_IMAGES_STATE, {}))
        self._figures = dict(checkpoint.meta.metrics)
        if self._figures:
            self._figures_step = checkpoint.meta.metrics_step or checkpoint.meta.step

    def saw_bad_images(self, bad: dict[str, str]) -> None:
        new = {name: reason for name, reason in bad.items() if name not in self._bad_images}
        self._bad_images.update(new)
        if self._tracker is not None and new:
            for file_name, reason in new.items():
                logger.warning("%s could not be decoded and was replaced: %s", file_name, reason)
            self._folder.note_bad_images(new)
        limit = self.spec.config.input.max_bad_fraction * self.inputs.train.info.num_images
        if len(self._bad_images) > max(limit, 0):
            some = "; ".join(f"{f}: {r}" for f, r in list(self._bad_images.items())[:5])
            raise TooManyBadImagesError(
                f"{len(self._bad_images)} images could not be decoded, more than "
                f"input.max_bad_fraction = {self.spec.config.input.max_bad_fraction} of "
                f"{self.inputs.train.info.num_images} allows; the first: {some}. Repair the data "
                "set (retina-ray data check names all of them), or raise the limit"
            )

    def log_step(self, metrics: dict[str, float], *, step: int) -> None:
        assert self._tracker is not None
        if self._bad_images:
            metrics = {**metrics, BAD_IMAGES: float(len(self._bad_images))}
        self._tracker.log(metrics, step=step)

    def evaluated(self, result: RoundResult, *, step: int) -> dict[str, float]:
        assert self._tracker is not None
        self._results = result.results
        expected = {image["id"] for image in self._truth["images"]}
        if sorted(result.image_ids) != sorted(expected):
            raise RuntimeError(
                f"the validation round saw {len(result.image_ids)} images "
                f"({len(set(result.image_ids))} different), but the set has {len(expected)}"
            )
        metrics = evaluate_coco(
            self._truth,
            result.results,
            max_detections=self.spec.config.inference.max_detections,
            backend=self.spec.config.inference.evaluation_backend,
        ).as_metrics()
        if self._bad_images:
            metrics[BAD_IMAGES] = float(len(self._bad_images))
        epoch = step / self.inputs.layout.steps_per_epoch
        self._tracker.log({**metrics, "train/epoch": epoch}, step=step)
        names = self.inputs.val.class_names
        pictures = to_pictures(result.samples, self._truth, names)
        self._tracker.log_pictures(pictures, step=step)
        return metrics

    def round_ended(
        self, metrics: dict[str, float], *, step: int, epoch: int, loop: TrainingLoop
    ) -> None:
        """Keep a checkpoint on rank 0, in the background, and report on every rank."""
        uri = ""
        if self._tracker is not None:
            self._figures, self._figures_step = metrics, step
            uri = self._keep(step=step, epoch=epoch, loop=loop, metric=metrics.get("val/AP"))
            metrics = {
                **metrics,
                "epoch": epoch,
                "step": step,
                "elapsed_s": time.time() - self._started,
            }
        self.report(metrics, uri)

    def checkpoint(self, *, step: int, epoch: int, loop: TrainingLoop) -> None:
        """Keep a checkpoint on rank 0, in the background; called between evaluations."""
        if self._tracker is not None:
            self._keep(step=step, epoch=epoch, loop=loop, metric=None)

    def _keep(self, *, step: int, epoch: int, loop: TrainingLoop, metric: float | None) -> str:
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
        results = self._results if self._saver.is_better(metric) else None
        self._results = None
        is_evaluation = self._figures_step == step

        def before_it_counts() -> None:
            # The record first: a run that goes on from the checkpoint cuts what is beyond it.
            if results is not None:
                self._write_predictions(results, step=step)
            self._folder.upload(all_files=is_evaluation)

        return self._saver.save(checkpoint, metric=metric, before_switch=before_it_counts)

    def _write_predictions(self, results: list[dict[str, Any]], *, step: int) -> None:
        """Write the predictions of the best evaluation so far."""
        origin = PredictionsOrigin(step, self.inputs.val.info.fingerprint)
        content = predictions_to_parquet(results, origin=origin)
        self._folder.write(PREDICTIONS_FILE, content)

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
