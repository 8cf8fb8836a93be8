"""A validation: every image of the validation set once, and the metrics that it comes to.

In a run its images are spread over the workers; `predict_dataset` does the same in one process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from retina_ray.config import ExperimentConfig, InferenceConfig
from retina_ray.data.loading.batch_loader import BatchLoader
from retina_ray.data.loading.local_stream import iterate
from retina_ray.data.plan.eval_plan import build_eval_plan
from retina_ray.data.plan.layout import RunLayout
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.evaluation.coco import evaluate_coco
from retina_ray.evaluation.results import to_results
from retina_ray.model import RetinaNet
from retina_ray.model.coders import make_coder
from retina_ray.ops.postprocess import select_detections
from retina_ray.structures import Batch, Detections
from retina_ray.train.engine import distributed
from retina_ray.train.engine.learner import Learner
from retina_ray.train.engine.step import local_norms


@dataclass(frozen=True)
class Sample:
    """A validation image kept to be looked at; its detections are on the CPU, in its pixels."""

    image_id: int
    pixels: np.ndarray  # (H, W, 3) uint8 RGB, resized as the model saw it, without padding
    detections: Detections


@dataclass(frozen=True)
class Predictions:
    """What was found in a validation set: COCO results, and what else was seen on the way."""

    results: list[dict[str, Any]] = field(default_factory=list)
    image_ids: list[int] = field(default_factory=list)  # of every image, as often as it was seen
    samples: list[Sample] = field(default_factory=list)
    # Reasons by name (`named_in_run`), only where one process predicted the whole set.
    bad_images: dict[str, str] = field(default_factory=dict)

    def gathered(self) -> Predictions:
        """Those of all workers at rank 0, with its own samples. Elsewhere there are none."""
        parts = distributed.gather_objects((self.results, self.image_ids)) or []
        return Predictions(
            results=[r for results, _ in parts for r in results],
            image_ids=[i for _, ids in parts for i in ids],
            samples=self.samples,
        )


class BatchPredictor:
    """Predicts batches, and collects what it finds in `found`."""

    def __init__(
        self, config: ExperimentConfig, category_ids: Sequence[int], *, num_samples: int
    ) -> None:
        """Start with nothing; the first `num_samples` images are kept for pictures."""
        self._config = config.inference
        self._coder = make_coder(config.model)
        self._category_ids = list(category_ids)
        self._num_samples = num_samples
        self.found = Predictions()

    @torch.inference_mode()
    def add(self, model: RetinaNet, batch: Batch) -> None:
        """Predict a batch that lies on the model's device; it may hold no images."""
        if not batch.image_ids:
            return
        detections = select_detections(
            model(batch.images),
            batch.images.sizes,
            coder=self._coder,
            score_threshold=self._config.score_threshold,
            topk_per_level=self._config.topk_per_level,
            nms_threshold=self._config.nms_threshold,
            max_detections=self._config.max_detections,
        )
        sizes = batch.images.sizes.tolist()
        for i, (found, image_id, original, resized) in enumerate(
            zip(detections, batch.image_ids, batch.original_sizes, sizes, strict=True)
        ):
            found = found.to("cpu")
            self.found.image_ids.append(image_id)
            if len(self.found.samples) < self._num_samples:
                pixels = batch.images.pixels[i, :, : resized[0], : resized[1]]
                self.found.samples.append(
                    Sample(image_id, pixels.permute(1, 2, 0).cpu().numpy().copy(), found)
                )
            self.found.results.extend(
                to_results(
                    found,
                    image_id=image_id,
                    original_size=original,
                    resized_size=(resized[0], resized[1]),
                    category_ids=self._category_ids,
                )
            )


class Validator:
    """The validations within a run: this worker's batches, and then what all workers found."""

    def __init__(
        self,
        config: ExperimentConfig,
        layout: RunLayout,
        learner: Learner,
        device: torch.device,
        category_ids: list[int],
    ) -> None:
        """Validate what a learner has learnt, as often as the layout of the run has it."""
        self._config, self._layout, self._learner = config, layout, learner
        self._device, self._category_ids = device, category_ids
        self._predictor: BatchPredictor | None = None
        self._num_batches = 0
        self.evaluated_step = 0  # training steps done at the last validation

    def is_due(self, step: int) -> bool:
        """Whether a validation follows a step, and is not over yet."""
        if self.evaluated_step == step:
            return False
        epochs, rest = divmod(step, self._layout.steps_per_epoch)
        every = self._config.train.eval_every_epochs
        return rest == 0 and (epochs % every == 0 or step == self._layout.num_steps)

    @property
    def is_under_way(self) -> bool:
        """Whether some batches of a validation are done, and some are to come."""
        return self._predictor is not None

    def add(self, batch: Batch) -> Predictions | None:
        """Predict a batch, with the averaged weights where there are some.

        After the last batch it returns the predictions of all workers (on rank 0).
        """
        model, average = self._learner.model, self._learner.average
        if self._predictor is None:
            for norm in local_norms(model):  # rank 0's statistics are those that are kept
                distributed.copy_from_first(norm.buffers())
            model.eval()
            num_samples = self._config.tracking.num_pictures
            self._num_batches = 0
            self._predictor = BatchPredictor(
                self._config, self._category_ids, num_samples=num_samples
            )
        with contextlib.nullcontext() if average is None else average.applied():
            self._predictor.add(model, batch.to(self._device))
        self._num_batches += 1
        if self._num_batches < self._layout.num_val_rows_per_worker:
            return None
        found, self._predictor = self._predictor.found, None
        model.train()
        return found.gathered()


def predict_dataset(
    model: RetinaNet,
    config: ExperimentConfig,
    dataset: PreparedDataset,
    *,
    device: torch.device,
    num_samples: int = 0,
    num_threads: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> Predictions:
    """Predict every image of a prepared data set once, in this process and without Ray.

    The model is in evaluation mode on `device`; `num_samples` images are kept for pictures,
    `num_threads` decode, and `on_progress` gets the number of images done so far.

    Raises:
        DataError: the model finds rotated boxes, and the data set has none.
    """
    index = dataset.index()
    plan = build_eval_plan(
        index,
        num_workers=1,
        eval_batch_size=config.train.eval_batch_size,
        eval_size_px=config.input.eval_size_px,
        eval_max_size_px=config.input.eval_max_size_px,
    )
    loader = BatchLoader.from_config(
        config, train=None, val=dataset, train_index=None, val_index=index
    )
    predictor = BatchPredictor(config, dataset.category_ids, num_samples=num_samples)
    found = predictor.found
    for planned in iterate(plan.worker_rows(0), loader, num_threads=num_threads):
        predictor.add(model, planned.batch.to(device))
        found.bad_images.update(named_in_run(planned.kind, planned.batch.bad_images))
        if on_progress is not None:
            on_progress(len(found.image_ids))
    return found


def score_predictions(
    found: Predictions, truth: dict[str, Any], config: InferenceConfig
) -> dict[str, float]:
    """COCO's metrics of all workers' predictions of a validation set, given its ground truth.

    Raises:
        RuntimeError: the images that were seen are not those of the set, each once.
    """
    expected = {image["id"] for image in truth["images"]}
    if sorted(found.image_ids) != sorted(expected):
        raise RuntimeError(
            f"the validation saw {len(found.image_ids)} images "
            f"({len(set(found.image_ids))} different), but the set has {len(expected)}"
        )
    return evaluate_coco(
        truth,
        found.results,
        max_detections=config.max_detections,
        backend=config.evaluation_backend,
    ).as_metrics()


def named_in_run(kind: str, bad: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Reasons by name ("000000.jpg (val)"): training and validation set may share file names."""
    return {f"{file_name} ({kind})": reason for file_name, reason in bad}
