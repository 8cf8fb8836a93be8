"""One validation round: every image of the validation set once, spread over the workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from retina_ray.config import InferenceConfig
from retina_ray.evaluation.coco import to_results
from retina_ray.model import RetinaNet
from retina_ray.ops.postprocess import Coder, select_detections
from retina_ray.structures import Batch, Detections
from retina_ray.train import distributed

__all__ = ["RoundResult", "Sample", "ValidationRound"]


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
    """What all workers found in a round: predictions, the ids of the images, and samples."""

    results: list[dict[str, Any]]
    image_ids: list[int]
    samples: list[Sample]


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
