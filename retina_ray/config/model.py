"""What is predicted, and by what network: anchors and the model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from retina_ray.config.base import (
    BelowOne,
    Bool,
    Count,
    Float,
    Int,
    NotEmpty,
    Positive,
    ReadWhen,
    Section,
    Text,
)

Norm = Literal["none", "bn", "sync_bn", "gn"]
ROTATED = ReadWhen("model.box_type", "rotated")


class AnchorConfig(Section):
    """Anchor boxes (Focal Loss paper, section 4): per cell, sizes x octave scales x ratios."""

    sizes: tuple[Positive, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Base size of each pyramid level in pixels (square root of the anchor's area)."""
    octave_scales: Annotated[tuple[Positive, ...], NotEmpty] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    """Factors on each level's base size."""
    aspect_ratios: Annotated[tuple[Positive, ...], NotEmpty] = (0.5, 1.0, 2.0)
    """Height / width."""
    scale: Annotated[Positive, ReadWhen("model.anchors.fit", "none")] = 1.0
    """One factor on all sizes: the knob that a sweep turns."""
    fit: Literal["none", "scale", "all"] = "none"
    """Take the scale, or the scale and the aspect ratios (as many as are given), from the boxes of
    the training set at the start of a run, whose stored config has the numbers and "none"."""
    offset: BelowOne = 0.5
    """Centre of the first anchor in strides: 0.5 is symmetric under flips; 0.0 is what detectron2's
    and torchvision's weights were trained with."""
    angles_deg: Annotated[tuple[Float, ...], NotEmpty, ROTATED] = (-30.0, 0.0, 30.0)
    """Turns of the anchors, counter-clockwise. With the ratios 1/2 and 2, these three put a long
    side in every direction in steps of 30 degrees."""


class ModelConfig(Section):
    """ResNet -> FPN -> P6, P7 -> RetinaNet head, and the pixel statistics that it normalizes by."""

    num_classes: Count | None = 80
    """K; null takes the number from the data set at the start of a run."""
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d"] = (
        "resnet50"
    )
    backbone_norm: Literal["frozen_bn", "bn", "sync_bn", "gn"] = "frozen_bn"
    backbone_weights: Text | None = None
    """null: from scratch. A path to a state dict, or a torchvision name such as
    `IMAGENET1K_V2` (downloaded by torchvision)."""
    backbone_stride_in_1x1: Bool = False
    """Bottlenecks stride in their first 1x1 convolution, as in MSRA's weights and detectron2's
    model zoo; torchvision's stride in the 3x3. Not for resnet18 and resnet34."""
    freeze_stages: Annotated[Int, Field(ge=0, le=5)] = 2
    """Stages without gradient, counted from the stem: 1 stem, 2 stem and res2 (detectron2)."""
    min_level: Annotated[Int, Field(ge=2, le=4)] = 3
    """Finest pyramid level; level l has a stride of 2**l pixels."""
    max_level: Annotated[Int, Field(ge=5, le=7)] = 7
    """Coarsest pyramid level; those above 5 are made by convolutions of stride 2."""
    fpn_channels: Annotated[Int, Field(ge=8)] = 256
    fpn_norm: Norm = "none"
    fpn_fuse: Literal["sum", "avg"] = "sum"
    top_input: Annotated[Literal["c5", "p5"], ReadWhen("model.max_level", 6, 7)] = "c5"
    """What P6 is computed from: the paper, detectron2 and torchvision's v2 take C5, its v1 P5."""
    head_num_convs: Annotated[Int, Field(ge=0)] = 4
    head_channels: Annotated[Int, Field(ge=8)] | None = None
    """null: as the FPN."""
    head_norm: Norm = "none"
    prior_prob: Annotated[Float, Field(gt=0, lt=1)] = 0.01
    """Score of every class at the start; sets the bias -log((1 - p) / p)."""
    box_type: Literal["aligned", "rotated"] = "aligned"
    """What is predicted: boxes along the image's axes, or (x, y, width, height, angle)."""
    anchors: AnchorConfig = AnchorConfig()
    box_weights: tuple[Positive, Positive, Positive, Positive] = (1.0, 1.0, 1.0, 1.0)
    """Weights of (dx, dy, dw, dh) in the box coder."""
    angle_weight: Annotated[Positive, ROTATED] = 1.0
    """Weight of the turn (in radians) in the box coder."""
    pixel_mean: tuple[Float, Float, Float] = (123.675, 116.28, 103.53)
    """RGB, 0 to 255."""
    pixel_std: tuple[Positive, Positive, Positive] = (58.395, 57.12, 57.375)

    @property
    def levels(self) -> tuple[int, ...]:
        """Pyramid levels from fine to coarse, e.g. (3, 4, 5, 6, 7)."""
        return tuple(range(self.min_level, self.max_level + 1))

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each level in pixels."""
        return tuple(2**level for level in self.levels)

    @property
    def num_anchors(self) -> int:
        """A, the anchors of a cell."""
        num_angles = len(self.anchors.angles_deg) if self.box_type == "rotated" else 1
        return len(self.anchors.octave_scales) * len(self.anchors.aspect_ratios) * num_angles

    @property
    def box_dim(self) -> int:
        """Numbers that make a box: 4, or 5 with an angle."""
        return 5 if self.box_type == "rotated" else 4
