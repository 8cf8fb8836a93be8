"""One validation round: every image of the validation set once, and what it comes to.

In a run its images are spread over the workers; `predict_dataset` is the same round in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from retina_ray.config import ExperimentConfig, InferenceConfig
from retina_ray.data.loading.batch_loader import BatchLoader
from retina_ray.data.loading.local_stream import iterate
from retina_ray.data.plan.eval_plan import build_eval_plan
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.evaluation.coco import evaluate_coco
from retina_ray.evaluation.results import to_results
from retina_ray.model import RetinaNet
from retina_ray.model.coders import make_coder
from retina_ray.ops.postprocess import Coder, select_detections
from retina_ray.structures import Batch, Detections
from retina_ray.train.engine import distributed
from retina_ray.train.engine.bad_images import named_in_run


@dataclass(frozen=True)
class Sample:
    """A validation image kept to be looked at.

    Attributes:
        image_id: the data set's id.
        pixels: (H, W, 3) uint8 RGB, resized as the model saw it, without padding.
        detections: in pixels of `pixels`, on the CPU.
    """

    image_id: int
    pixels: np.ndarray
    detections: Detections


@dataclass(frozen=True)
class RoundResult:
    """What all workers found in a round.

    Attributes:
        results: COCO results.
        image_ids: of every image that was seen, as often as it was.
        samples: images to look at.
        bad_images: names and reasons of images that could not be decoded; only where one
            process made the whole round.
    """

    results: list[dict[str, Any]]
    image_ids: list[int]
    samples: list[Sample]
    bad_images: dict[str, str] = field(default_factory=dict)


class ValidationRound:
    """Collects this worker's predictions, then gathers those of all workers."""

    def __init__(
        self,
        config: InferenceConfig,
        coder: Coder,
        category_ids: list[int],
        *,
        num_samples: int = 0,
    ) -> None:
        """Start a round.

        Args:
            config: thresholds.
            coder: decodes the model's deltas.
            category_ids: the data set's own id of each label.
            num_samples: how many images to keep for pictures, the first that this worker sees.
        """
        self._config = config
        self._coder = coder
        self._num_samples = num_samples
        self._samples: list[Sample] = []
        self._category_ids = category_ids
        self._results: list[dict[str, Any]] = []
        self._image_ids: list[int] = []
        self.num_batches = 0

    @torch.inference_mode()
    def add(self, model: RetinaNet, batch: Batch) -> None:
        """Predict a batch that lies on the model's device (a batch of no images only counts)."""
        self.num_batches += 1
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
            self._image_ids.append(image_id)
            if len(self._samples) < self._num_samples:
                pixels = batch.images.pixels[i, :, : resized[0], : resized[1]]
                self._samples.append(
                    Sample(image_id, pixels.permute(1, 2, 0).cpu().numpy().copy(), found)
                )
            self._results += to_results(
                found,
                image_id=image_id,
                original_size=original,
                resized_size=(resized[0], resized[1]),
                category_ids=self._category_ids,
            )

    def result(self, bad_images: dict[str, str]) -> RoundResult:
        """What this process alone found."""
        return RoundResult(self._results, self._image_ids, self._samples, bad_images)

    def gather(self) -> RoundResult:
        """Collect everything at rank 0; the samples are rank 0's own. Elsewhere it is empty."""
        parts = distributed.gather_objects((self._results, self._image_ids))
        if parts is None:
            return RoundResult([], [], [])
        return RoundResult(
            results=[r for results, _ in parts for r in results],
            image_ids=[i for _, ids in parts for i in ids],
            samples=self._samples,
        )


def predict_dataset(
    model: RetinaNet,
    config: ExperimentConfig,
    dataset: PreparedDataset,
    *,
    device: torch.device,
    num_samples: int = 0,
    num_threads: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> RoundResult:
    """Predict every image of a prepared data set once, in this process and without Ray.

    Args:
        model: in evaluation mode, on `device`.
        config: of the run that trained it.
        dataset: with the classes that the model was trained on.
        device: where the model is.
        num_samples: images to keep for pictures.
        num_threads: that decode.
        on_progress: called with the number of images done so far.

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
    round_ = ValidationRound(
        config.inference,
        make_coder(config.model),
        list(dataset.category_ids),
        num_samples=num_samples,
    )
    bad_images: dict[str, str] = {}
    done = 0
    for planned in iterate(plan.worker_rows(0), loader, num_threads=num_threads):
        round_.add(model, planned.batch.to(device))
        bad_images.update(named_in_run(planned.kind, planned.batch.bad_images))
        done += len(planned.batch.image_ids)
        if on_progress is not None:
            on_progress(done)
    return round_.result(bad_images)


def score_round(
    result: RoundResult, truth: dict[str, Any], config: InferenceConfig
) -> dict[str, float]:
    """COCO's figures of a round, as metrics.

    Args:
        result: of all workers.
        truth: COCO ground truth of the validation set.
        config: limit of detections, and what computes the figures.

    Raises:
        RuntimeError: the images that were seen are not those of the set, each once.
    """
    expected = {image["id"] for image in truth["images"]}
    if sorted(result.image_ids) != sorted(expected):
        raise RuntimeError(
            f"the validation round saw {len(result.image_ids)} images "
            f"({len(set(result.image_ids))} different), but the set has {len(expected)}"
        )
    return evaluate_coco(
        truth,
        result.results,
        max_detections=config.max_detections,
        backend=config.evaluation_backend,
    ).as_metrics()
