"""Two RetinaNets that learn the same batches by the same optimizer: ours and torchvision's.

Ours is trained by the library's own step. torchvision's is built of its own public parts (trunk,
pyramid, head, anchors, transform) with our settings and trained by its own forward, and borrows
only what lies outside of a model: optimizer, clipping, schedule.

Shapes: N images, A anchors a cell, K classes.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.retinanet import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.resnet import ResNet
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from retina_ray.config import ExperimentConfig, ModelConfig
from retina_ray.model.coders import make_coder
from retina_ray.model.norms import NUM_GROUPS
from retina_ray.ops.anchors import AnchorGenerator as OurAnchorGenerator
from retina_ray.ops.postprocess import select_detections
from retina_ray.structures import Batch, Detections
from retina_ray.train.engine.learner import Learner
from retina_ray.train.engine.optim import build_optimizer, clip_gradients, update_if_finite
from retina_ray.train.engine.schedule import build_schedule
from retina_ray.train.engine.step import TrainingStep

Name = Literal["ours", "torchvision"]
NAMES: tuple[Name, ...] = ("ours", "torchvision")

_CPU = torch.device("cpu")


class Contestant(Protocol):
    """A detector that learns and predicts."""

    @property
    def model(self) -> nn.Module:
        """With all its weights."""
        ...

    def step(self, batch: Batch) -> bool:
        """Train on a batch; returns whether the gradient was finite."""
        ...

    def predict(self, batch: Batch) -> list[Detections]:
        """Detections in pixels of the batch's images."""
        ...


def contestant(name: Name, config: ExperimentConfig, *, num_steps: int) -> Contestant:
    """Build a contestant; its random weights are those of `config.train.seed`."""
    kind = Ours if name == "ours" else Torchvision
    return kind(config, num_steps=num_steps)


class Ours:
    """This project's RetinaNet, criterion and training step."""

    def __init__(self, config: ExperimentConfig, *, num_steps: int) -> None:
        """Build everything for a run of so many steps."""
        self._learner = Learner(config, device=_CPU, num_steps=num_steps, is_new=True)
        self._make_step = TrainingStep(config, self._learner, _CPU)
        self._coder = make_coder(config.model)
        self._inference = config.inference
        self.model = self._learner.model

    def step(self, batch: Batch) -> bool:
        """One training step."""
        self.model.train()
        figures = self._make_step([batch])
        self._learner.schedule.step()
        return bool(figures.is_sound)

    @torch.inference_mode()
    def predict(self, batch: Batch) -> list[Detections]:
        """As a validation round does."""
        inference = self._inference
        return select_detections(
            self.model.eval()(batch.images),
            batch.images.sizes,
            coder=self._coder,
            score_threshold=inference.score_threshold,
            topk_per_level=inference.topk_per_level,
            nms_threshold=inference.nms_threshold,
            max_detections=inference.max_detections,
        )


class Torchvision:
    """`torchvision.models.detection.RetinaNet`, its losses and its detections."""

    def __init__(self, config: ExperimentConfig, *, num_steps: int) -> None:
        """Build everything for a run of so many steps."""
        torch.manual_seed(config.train.seed)
        self.model = torchvision_model(config)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._config = config.optimizer
        self._optimizer = build_optimizer(
            self.model, config.optimizer, batch_size=config.train.batch_size
        )
        self._schedule = build_schedule(self._optimizer, config.schedule, num_steps)
        self._trained = [p for group in self._optimizer.param_groups for p in group["params"]]

    def step(self, batch: Batch) -> bool:
        """One training step."""
        self._optimizer.zero_grad(set_to_none=True)
        torch.stack(list(self.losses(batch).values())).sum().backward()
        is_sound = clip_gradients(self._trained, self._config).isfinite()
        update_if_finite(self._optimizer, is_sound)
        self._schedule.step()
        return bool(is_sound)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """What its forward returns in training."""
        return self.model.train()(_images(batch), _targets(batch))

    @torch.inference_mode()
    def predict(self, batch: Batch) -> list[Detections]:
        """What its forward returns in evaluation."""
        found = self.model.eval()(_images(batch))
        return [Detections(one["boxes"], one["scores"], one["labels"]) for one in found]


def torchvision_model(config: ExperimentConfig) -> TorchvisionRetinaNet:
    """Torchvision's RetinaNet with the settings of a config, as far as it has them.

    Args:
        config: with batch norm in the trunk, group norm in the head of 4 convolutions, the levels
            P3 to P6 with P6 from C5, focal loss with alpha 0.25 and gamma 2 (torchvision's are not
            settable), and images that need no resizing.
    """
    model, inference = config.model, config.inference
    assert (model.backbone_norm, model.head_norm, model.head_num_convs) == ("bn", "gn", 4)
    assert (model.levels, model.top_input, model.fpn_norm) == ((3, 4, 5, 6), "c5", "none")
    assert (config.loss.focal_alpha, config.loss.focal_gamma) == (0.25, 2.0)
    assert model.num_classes is not None
    trunk = get_model(model.backbone, weights=None, norm_layer=nn.BatchNorm2d)
    assert isinstance(trunk, ResNet)
    widest, width = trunk.inplanes, model.fpn_channels
    backbone = BackboneWithFPN(
        trunk,
        {f"layer{level - 1}": f"p{level}" for level in (3, 4, 5)},
        [widest // 4, widest // 2, widest],
        width,
        extra_blocks=_LastLevelP6(widest, width),
    )
    head = RetinaNetHead(
        width,
        model.num_anchors,
        model.num_classes,
        norm_layer=partial(nn.GroupNorm, NUM_GROUPS),
    )
    head.regression_head._loss_type = config.loss.box_loss
    return TorchvisionRetinaNet(
        backbone,
        model.num_classes,
        min_size=config.input.eval_size_px,
        max_size=config.input.eval_max_size_px,
        image_mean=[value / 255 for value in model.pixel_mean],
        image_std=[value / 255 for value in model.pixel_std],
        anchor_generator=_anchors(model),
        head=head,
        score_thresh=inference.score_threshold,
        nms_thresh=inference.nms_threshold,
        detections_per_img=inference.max_detections,
        fg_iou_thresh=config.matcher.high,
        bg_iou_thresh=config.matcher.low,
        topk_candidates=inference.topk_per_level,
        size_divisible=config.input.size_divisibility_px,
        _skip_resize=True,
    )


class _LastLevelP6(ExtraFPNBlock):
    """torchvision's `LastLevelP6P7` without P7, which is coarser than these images need."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, 2, 1)
        nn.init.kaiming_uniform_(self.p6.weight, a=1)
        assert self.p6.bias is not None
        nn.init.zeros_(self.p6.bias)

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """P6 from C5."""
        return [*results, self.p6(x[-1])], [*names, "p6"]


def _anchors(model: ModelConfig) -> AnchorGenerator:
    """Torchvision's generator with our anchors in its order: ratio by ratio, then size.

    Its own are rounded to whole pixels and centred on the corners of the cells.
    """
    ours = OurAnchorGenerator.from_config(model)
    ratios = model.anchors.aspect_ratios
    sizes = tuple(
        tuple(size * scale for scale in model.anchors.octave_scales) for size in model.anchors.sizes
    )
    theirs = AnchorGenerator(sizes, (ratios,) * len(sizes))
    theirs.cell_anchors = [
        cells.unflatten(0, (-1, len(ratios))).transpose(0, 1).flatten(0, 1) + stride * ours.offset
        for cells, stride in zip(ours.cell_anchors, ours.strides, strict=True)
    ]
    return theirs


def _images(batch: Batch) -> list[Tensor]:
    """Each image without its padding, from 0 to 1, as torchvision wants them."""
    sizes = batch.images.sizes.tolist()
    pixels = batch.images.pixels
    return [pixels[i, :, :h, :w].float() / 255 for i, (h, w) in enumerate(sizes)]


def _targets(batch: Batch) -> list[dict[str, Tensor]]:
    """Boxes and labels of each image without the padding; labels from 0, as its losses index."""
    pairs = zip(batch.targets.boxes, batch.targets.labels, strict=True)
    return [{"boxes": boxes[of >= 0], "labels": of[of >= 0]} for boxes, of in pairs]
