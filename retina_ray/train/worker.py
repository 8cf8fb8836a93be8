"""What each worker of a run does: open the data, build the loop, restore it, and run.

The same function runs in a Ray Train worker, in Ray Train's local mode (the trial's or the
driver's own process), and without Ray at all (`batches` given by the caller).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retina_ray.config import ConfigError
from retina_ray.data.unpack import PlannedBatch
from retina_ray.evaluation.coco import evaluate_coco
from retina_ray.train import distributed
from retina_ray.train.checkpoints import Checkpoint, CheckpointMeta, load_checkpoint
from retina_ray.train.errors import TooManyBadImagesError
from retina_ray.train.loop import TrainingLoop
from retina_ray.train.samples import to_pictures
from retina_ray.train.spec import RunInputs, RunSpec
from retina_ray.train.storage import copy_down, copy_up, is_uri
from retina_ray.train.tracking import Status, Tracker, open_tracker
from retina_ray.train.validation import RoundResult

logger = logging.getLogger(__name__)

BAD_IMAGES = "data/bad_images"
"""Metric: images that could not be decoded so far. Their names are in `bad_images.json`."""

Report = Callable[[dict[str, Any], str], None]

__all__ = ["Report", "run_worker"]


def run_worker(
    spec: RunSpec,
    inputs: RunInputs,
    batches: Iterable[PlannedBatch],
    *,
    start_step: int,
    device: torch.device,
    report: Report,
) -> None:
    """Run one worker's part of a training run, from its last checkpoint to the end.

    Args:
        spec: the run.
        inputs: its opened data.
        batches: this worker's rows of the plan from `start_step` on.
        start_step: training steps that the last checkpoint has done.
        device: where to train.
        report: called on every rank after each evaluation with the metrics (empty but on rank 0)
            and the URI of the checkpoint ("" elsewhere).

    Raises:
        ConfigError: the checkpoint was trained on other data.
        NonFiniteLossError: the loss was NaN or infinite.
        TooManyBadImagesError: more images than `input.max_bad_fraction` could not be decoded.
    """
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(spec.config.train.cpus_per_worker)))
    distributed.set_cuda_device(device)
    host = _Host(spec, inputs, start_step=start_step, report=report)
    loop = TrainingLoop(spec.config, inputs.shape(start_step), device, inputs.category_ids, host)
    if start_step > 0:
        loop.restore(_own_checkpoint(spec, inputs))
    elif spec.init_from is not None:
        loop.init_from(load_checkpoint(spec.init_from, weights_only=True))
    status: Status = "failed"
    try:
        loop.run(batches)
        status = "finished"
    except SystemExit:  # how Ray Tune ends the thread of a trial that its scheduler stopped
        status = "finished" if loop.step >= inputs.layout.num_steps else "stopped"
        raise
    finally:
        host.close(status)


def _own_checkpoint(spec: RunSpec, inputs: RunInputs) -> Checkpoint:
    last = spec.checkpoints.last
    assert last is not None
    checkpoint = load_checkpoint(last)
    if checkpoint.meta.dataset_fingerprint != inputs.train.info.fingerprint:
        raise ConfigError(
            f"{last} was trained on other data than {spec.train_uri} holds now (fingerprint "
            f"{checkpoint.meta.dataset_fingerprint[:12]} against "
            f"{inputs.train.info.fingerprint[:12]}): start a new run, with --init-from to take "
            "over the weights"
        )
    return checkpoint


@dataclass
class _Host:
    """Rank 0 tracks, scores and keeps checkpoints; every rank reports."""

    spec: RunSpec
    inputs: RunInputs
    start_step: int
    report: Report

    def __post_init__(self) -> None:
        self._started = time.time()
        self._tracker: Tracker | None = None
        self._bad_images: dict[str, str] = {}
        if distributed.rank() != 0:
            return
        self._folder = _tracking_folder(self.spec.run_uri)
        box_type = self.spec.config.model.box_type
        self._truth = self.inputs.val.ground_truth(box_type=box_type)
        self._tracker = open_tracker(
            self.spec.config.tracking,
            run_dir=self._folder,
            run_id=self.spec.run_id,
            name=self.spec.name,
            group=self.spec.group,
            experiment=self.spec.config.model_dump(mode="json"),
            resume=self.start_step > 0,
            resume_step=self.start_step if self.start_step > 0 else None,
        )

    def saw_bad_images(self, bad: dict[str, str]) -> None:
        new = {name: reason for name, reason in bad.items() if name not in self._bad_images}
        self._bad_images.update(new)
        if self._tracker is not None and new:
            for file_name, reason in new.items():
                logger.warning("%s could not be decoded and was replaced: %s", file_name, reason)
            note_bad_images(self._folder, new)
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
        """Keep the checkpoint on rank 0, then report on every rank."""
        uri = ""
        if self._tracker is not None:
            checkpoint = Checkpoint(
                model=loop.model.state_dict(),
                state=loop.state(),
                config=self.spec.config,
                meta=CheckpointMeta(
                    step=step,
                    epoch=epoch,
                    categories=[(c.id, c.name) for c in self.inputs.train.info.categories],
                    dataset_fingerprint=self.inputs.train.info.fingerprint,
                    metrics=metrics,
                    wandb_run_id=self.spec.run_id,
                ),
            )
            # The record first: a run that goes on from the checkpoint cuts what is beyond it.
            self._upload()
            uri = self.spec.checkpoints.save(checkpoint, metric=metrics.get("val/AP"))
            metrics = {
                **metrics,
                "epoch": epoch,
                "step": step,
                "elapsed_s": time.time() - self._started,
            }
        self.report(metrics, uri)

    def close(self, status: Status) -> None:
        if self._tracker is not None:
            self._tracker.finish(status)
            self._upload()

    def _upload(self) -> None:
        """Bring the local tracking files to a remote run folder."""
        if is_uri(self.spec.run_uri):
            copy_up(self._folder, self.spec.run_uri)


def note_bad_images(folder: Path, new: dict[str, str]) -> None:
    """Add images and the reasons why they could not be decoded to a run's `bad_images.json`."""
    path = folder / "bad_images.json"
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**known, **new}, indent=1))


def _tracking_folder(run_uri: str) -> Path:
    """W&B and the JSONL need a local folder; a remote run's is copied there and up again."""
    if not is_uri(run_uri):
        return Path(run_uri)
    folder = Path(tempfile.gettempdir()) / f"retina_ray_{os.getpid()}_{abs(hash(run_uri)):x}"
    folder.mkdir(parents=True, exist_ok=True)
    copy_down(f"{run_uri}/metrics.jsonl", folder / "metrics.jsonl")
    return folder
