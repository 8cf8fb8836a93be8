"""A trained model on this machine: over a prepared data set, or over images. No Ray needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from retina_ray.config import ConfigError, ExperimentConfig
from retina_ray.data.augment.transforms import resize_image, shortest_edge_size
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.model import RetinaNet
from retina_ray.model.coders import make_coder
from retina_ray.ops.postprocess import select_detections
from retina_ray.ops.rotated.boxes import scale_rotated
from retina_ray.structures import Detections, ImageBatch
from retina_ray.train.checkpoint.format import CheckpointMeta
from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.engine.validation import Predictions, predict_dataset


@dataclass(frozen=True)
class Predictor:
    """A model, in eval mode, with the configuration and the classes that it was trained with."""

    model: RetinaNet
    config: ExperimentConfig
    meta: CheckpointMeta
    device: torch.device

    @classmethod
    def from_checkpoint(cls, uri: str, *, device: str | None = None) -> Predictor:
        """Load a checkpoint that `load_checkpoint` finds, by default onto a GPU if there is one.

        Where the run kept a moving average of its weights, that is what predicts.

        Raises:
            ConfigError: no checkpoint there, or it cannot be read.
        """
        checkpoint = load_checkpoint(uri, weights_only=True)
        model = RetinaNet.from_config(checkpoint.config.model)
        model.load_state_dict(checkpoint.weights)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(model.eval(), checkpoint.config, checkpoint.meta, where)

    def over_dataset(
        self,
        dataset: PreparedDataset,
        *,
        num_samples: int = 0,
        on_progress: Callable[[int], None] | None = None,
    ) -> Predictions:
        """Predict every image of a prepared data set once.

        `num_samples` images are kept for pictures; `on_progress` gets the number done so far.

        Raises:
            ConfigError: the data set's classes are not the model's.
            DataError: the model finds rotated boxes, and the data set has none.
        """
        self._require_classes(dataset)
        return predict_dataset(
            self.model,
            self.config,
            dataset,
            device=self.device,
            num_samples=num_samples,
            num_threads=max(1, (os.cpu_count() or 2) - 1),
            on_progress=on_progress,
        )

    @torch.inference_mode()
    def predict_image(self, image: np.ndarray) -> Detections:
        """Find the objects of one image (H, W, 3), uint8 RGB.

        Returns:
            Detections in pixels of `image`, on the CPU: boxes XYXY, or rotated ones of 5 numbers.

        Raises:
            ValueError: the array is not such an image.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"expected an (H, W, 3) uint8 RGB image, got {image.dtype} of shape {image.shape}"
            )
        height, width = image.shape[:2]
        inputs, inference = self.config.input, self.config.inference
        resized = resize_image(
            image,
            *shortest_edge_size(height, width, inputs.eval_size_px, inputs.eval_max_size_px),
        )
        images = self._to_batch(resized)
        found = select_detections(
            self.model(images),
            images.sizes,
            coder=make_coder(self.config.model),
            score_threshold=inference.score_threshold,
            topk_per_level=inference.topk_per_level,
            nms_threshold=inference.nms_threshold,
            max_detections=inference.max_detections,
        )[0].to("cpu")
        scale = (width / resized.shape[1], height / resized.shape[0])
        if found.boxes.shape[-1] == 5:
            boxes = scale_rotated(found.boxes, *scale)
        else:
            boxes = found.boxes * found.boxes.new_tensor(scale * 2)
        return Detections(boxes, found.scores, found.labels)

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes in the order of the labels."""
        return [name for _, name in self.meta.categories]

    def _to_batch(self, image: np.ndarray) -> ImageBatch:
        """Pad one image as a batch of one would be."""
        height, width = image.shape[:2]
        divisor = self.config.input.size_divisibility_px
        padded = np.pad(image, ((0, -height % divisor), (0, -width % divisor), (0, 0)))
        pixels = torch.from_numpy(padded)[None].permute(0, 3, 1, 2)
        return ImageBatch(pixels, torch.tensor([[height, width]])).to(self.device)

    def _require_classes(self, dataset: PreparedDataset) -> None:
        theirs = [(c.id, c.name) for c in dataset.info.categories]
        if theirs != self.meta.categories:
            raise ConfigError(
                f"{dataset.uri}: its classes ({', '.join(n for _, n in theirs[:8])}) are not "
                f"those that the model was trained on ({', '.join(self.class_names[:8])})"
            )
