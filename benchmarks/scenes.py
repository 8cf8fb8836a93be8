"""What the benchmarks feed: random outputs of a head, and random boxes.

Shapes: N images, H and W pixels, A anchors a cell, K classes, R anchors in all, M boxes an image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from retina_ray.config import ModelConfig
from retina_ray.ops.anchors import AnchorGenerator
from retina_ray.structures import HeadOutputs, Targets

_STRIDES = (8, 16, 32, 64, 128)
_ANCHORS = 9
# Of the classes' logits at the start of a training: a score of 0.01.
PRIOR_BIAS = -math.log(0.99 / 0.01)


@dataclass(frozen=True)
class Scene:
    """A batch.

    Attributes:
        num_images: N.
        height: H.
        width: W.
        num_classes: K.
        num_boxes: M of each image.
        channels_last: memory format of the head's outputs.
    """

    num_images: int
    height: int
    width: int
    num_classes: int = 80
    num_boxes: int = 10
    channels_last: bool = False

    def __str__(self) -> str:
        text = (
            f"{self.num_images} x {self.height} x {self.width}, K = {self.num_classes}, "
            f"{self.num_boxes} boxes"
        )
        return text + (", channels last" if self.channels_last else "")

    @property
    def grid_sizes(self) -> list[tuple[int, int]]:
        """Cells (rows, columns) of P3 to P7."""
        return [(-(-self.height // s), -(-self.width // s)) for s in _STRIDES]

    @property
    def logits_mib(self) -> float:
        """Size of the logits in float32."""
        num_anchors = sum(_ANCHORS * height * width for height, width in self.grid_sizes)
        return self.num_images * num_anchors * self.num_classes * 4 / 2**20


def anchors_of(scene: Scene, device: torch.device) -> list[Tensor]:
    """Per level (H_l * W_l * A, 4), those of the paper."""
    return AnchorGenerator.from_config(ModelConfig()).to(device)(scene.grid_sizes)


def random_outputs(
    scene: Scene, device: torch.device, *, noise: float = 1.0, bias: float = PRIOR_BIAS
) -> HeadOutputs:
    """Logits around a bias and deltas around 0, leaf tensors that take a gradient.

    They are drawn in place, in their own memory format, so that making them needs no more memory
    than they have.
    """
    generator = torch.Generator(device).manual_seed(0)
    layout = torch.channels_last if scene.channels_last else torch.contiguous_format

    def draw(channels: int, mean: float, deviation: float) -> list[Tensor]:
        maps = []
        for height, width in scene.grid_sizes:
            shape = (scene.num_images, channels, height, width)
            level = torch.empty(shape, device=device, memory_format=layout)
            maps.append(level.normal_(mean, deviation, generator=generator).requires_grad_())
        return maps

    return HeadOutputs(
        draw(_ANCHORS * scene.num_classes, bias, noise),
        draw(_ANCHORS * 4, 0.0, 0.1),
        anchors_of(scene, device),
    )


def random_targets(scene: Scene, device: torch.device) -> Targets:
    """Boxes with sides of 12 to 400 px, evenly on a logarithmic scale, inside the image."""
    generator = torch.Generator().manual_seed(1)
    shape = (scene.num_images, scene.num_boxes, 2)
    size = torch.tensor([scene.width, scene.height], dtype=torch.float32)
    low, high = math.log(12.0), math.log(400.0)
    sides = torch.rand(shape, generator=generator).mul_(high - low).add_(low).exp_()
    sides = torch.minimum(sides, size * 0.9)
    corners = torch.rand(shape, generator=generator) * (size - sides)
    labels = torch.randint(scene.num_classes, shape[:2], generator=generator)
    return Targets(torch.cat((corners, corners + sides), -1), labels).to(device)
