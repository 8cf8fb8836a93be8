"""One training step: the gradients of this worker's micro-batches, then one update.

Nothing in it waits for the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from retina_ray.config import ExperimentConfig
from retina_ray.model import RetinaNet
from retina_ray.model.assignment import Assignment
from retina_ray.model.norms import SyncBatchNorm2d
from retina_ray.structures import Batch, HeadOutputs, ImageBatch
from retina_ray.train.engine import distributed
from retina_ray.train.engine.learner import Learner
from retina_ray.train.engine.meters import StepMetrics
from retina_ray.train.engine.optim import clip_gradients, update_if_finite

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

_EMPTY_SIDE_PX = 64


def grid_sizes(strides: Sequence[int], height: int, width: int) -> list[tuple[int, int]]:
    """The (H, W) of each pyramid level for images of a size: every halving rounds up."""
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def local_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms that gather statistics of this worker's images alone."""
    norms = (m for m in model.modules() if isinstance(m, _BatchNorm))
    return [m for m in norms if not isinstance(m, SyncBatchNorm2d)]


class TrainingStep:
    """Makes the step of one worker, out of as many micro-batches as it has to take.

    The normalizer of the loss counts the positive anchors of all micro-batches of all workers.
    What is positive depends on boxes, anchors and image sizes only, so it is known before the first
    forward pass, and every micro-batch can free its activations before the next one starts. The sum
    of their gradients is that of one large batch (but for batch norm, which sees the small ones).
    """

    def __init__(self, config: ExperimentConfig, learner: Learner, device: torch.device) -> None:
        """Make steps of a learner on its device."""
        self._optimizer_config = config.optimizer
        self._precision = config.train.precision
        self._is_compiled = config.train.compile == "all"
        self._device = device
        self._model = learner.model
        self._criterion = learner.criterion
        self._optimizer = learner.optimizer
        self._scaler = learner.scaler
        self._average = learner.average
        groups = learner.optimizer.param_groups
        self._trained = [parameter for group in groups for parameter in group["params"]]
        self._meets_in_forward = False
        self._forward: _Bare | DistributedDataParallel = _Bare(learner.model)

    def wrap(self, *, num_micro_batches: int) -> None:
        """Join the other workers, if there are any.

        With one micro-batch in every step, the graph is the same in all steps, and DDP is told so.
        Not with several, where its gradients go wrong as soon as some of them are not exchanged
        (pytorch/pytorch#187732), nor with a compiled model, which may fall back to the plain one in
        mid-run.
        """
        if not distributed.is_active():
            return
        modules = self._model.modules()
        self._meets_in_forward = any(isinstance(m, SyncBatchNorm2d) for m in modules)
        self._forward = DistributedDataParallel(
            _Bare(self._model),
            device_ids=[self._device.index] if self._device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            static_graph=num_micro_batches == 1 and not self._is_compiled,
        )
        # Frozen and synchronized statistics are the same everywhere already. (The argument of this
        # name has another one in later versions of PyTorch.)
        self._forward.broadcast_buffers = bool(local_norms(self._model))

    def __call__(self, batches: Sequence[Batch]) -> StepMetrics:
        """Train on one step's micro-batches; those without images change nothing."""
        moved = [batch.to(self._device) for batch in self._needed(batches)]
        assignments = [self._assign(batch) for batch in moved]
        counts = torch.stack([assignment.positive.sum() for assignment in assignments])
        scale = self._criterion.loss_scale(counts.sum())
        self._optimizer.zero_grad(set_to_none=True)
        total: dict[str, Tensor] = {}
        for i, batch in enumerate(moved):
            with self._exchange(i + 1 == len(moved)):
                losses = self._backward(batch, assignments[i], scale)
            for name, loss in losses.items():
                total[name] = total[name] + loss if name in total else loss
        metrics = self._update(total)
        if self._average is not None:
            self._average.update()
        return metrics

    def _needed(self, batches: Sequence[Batch]) -> list[Batch]:
        """The micro-batches that take part.

        One without images does where it must: a worker with nothing else has to meet the others
        when the gradients are exchanged, and where batch norms are synchronized, in every forward
        pass.
        """
        with_images = [batch for batch in batches if batch.image_ids]
        if len(with_images) == len(batches) or (with_images and not self._meets_in_forward):
            return with_images
        if not with_images and not self._meets_in_forward:
            batches = batches[-1:]
        return [batch if batch.image_ids else _with_area(batch) for batch in batches]

    def _assign(self, batch: Batch) -> Assignment:
        height, width = batch.images.pixels.shape[-2:]
        sizes = grid_sizes(self._model.anchors.strides, height, width)
        return self._criterion.assign_to(self._model.anchors(sizes), sizes, batch.targets)

    def _exchange(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Let the last backward pass of a step exchange the gradients, and no other."""
        if is_last or not isinstance(self._forward, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._forward.no_sync()

    def _backward(self, batch: Batch, assignment: Assignment, scale: Tensor) -> dict[str, Tensor]:
        with torch.autocast(
            self._device.type,
            dtype=AUTOCAST.get(self._precision, torch.bfloat16),
            enabled=self._precision in AUTOCAST,
        ):
            outputs = HeadOutputs(*self._forward(batch.images))
        losses = self._criterion.losses(outputs, assignment, scale)
        loss = torch.stack(list(losses.values())).sum()
        self._scaler.scale(loss).backward()
        return {name: value.detach() for name, value in losses.items()}

    def _update(self, losses: dict[str, Tensor]) -> StepMetrics:
        """Clip, and update where the gradient is finite; elsewhere the weights stay."""
        self._scaler.unscale_(self._optimizer)
        norm = clip_gradients(self._trained, self._optimizer_config)
        is_sound = norm.isfinite()
        if self._scaler.is_enabled():
            # A gradient that overflows halves the scale; one that does so without any is at fault.
            is_sound = is_sound | (self._scaler.scale(torch.ones_like(norm)) > 1)
            self._scaler.step(self._optimizer)
            self._scaler.update()
        else:
            update_if_finite(self._optimizer, is_sound)
        return StepMetrics(losses, norm, is_sound)


class _Bare(nn.Module):
    """A model that answers in lists of tensors.

    DDP looks for the tensors of an output in lists, tuples and dicts. In those of a static graph it
    hides the start of its first exchange of gradients; if it finds none, that is left out, without
    a word.
    """

    def __init__(self, model: RetinaNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: ImageBatch) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Logits, deltas and anchors of `HeadOutputs`."""
        outputs = self.model(images)
        return outputs.logits, outputs.deltas, outputs.anchors


def _with_area(batch: Batch) -> Batch:
    """A batch of no images that a model can take: its maps have cells."""
    pixels = batch.images.pixels.new_zeros(0, 3, _EMPTY_SIDE_PX, _EMPTY_SIDE_PX)
    images = ImageBatch(pixels, batch.images.sizes)
    return Batch(images, batch.targets, [], [], batch.plan_index, batch.bad_images)
