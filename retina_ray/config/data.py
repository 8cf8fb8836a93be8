"""What is trained on: the data sets, and what happens to an image on its way to the model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from retina_ray.config.base import (
    Bool,
    Count,
    Float,
    Fraction,
    Int,
    NonNegative,
    NotEmpty,
    Pixels,
    Positive,
    ReadWhen,
    Section,
    Seed,
    Text,
)

WITH_CROPS = ReadWhen("input.augment.crop_prob")
WITH_MOSAIC = ReadWhen("input.augment.mosaic_prob")


class SyntheticConfig(Section):
    """The embedded set of drawn shapes (`datasets/shapes.py`), made on the spot."""

    num_train: Count = 320
    num_val: Count = 80
    size_px: Annotated[Int, Field(ge=32)] = 128
    seed: Seed = 0
    rotated: Bool = False
    """Shapes rotated by any angle, with rotated boxes (for `model.box_type` "rotated")."""


class DataConfig(Section):
    """Two prepared data sets (folders or URIs that hold a `dataset.json`), or the synthetic one."""

    train: Text | None = None
    val: Text | None = None
    synthetic: SyntheticConfig | None = None
    """Set: `train` and `val` must be null, and the shapes are drawn into the storage folder."""


class AugmentConfig(Section):
    """Random changes of training images beyond resizing and flips.

    All off, as in detectron2's RetinaNet recipes. Each image draws from a generator of its own,
    seeded by run, epoch and image.
    """

    rotate_90: Bool = False
    """Turn by 0, 90, 180 or 270 degrees, each with probability 1/4."""
    crop_prob: Fraction = 0.0
    """Chance of a random crop that keeps a smallest IoU with some box (SSD, arXiv:1512.02325,
    section 2.2)."""
    crop_min_ious: Annotated[tuple[Fraction, ...], NotEmpty, WITH_CROPS] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """One of these is drawn for each crop."""
    crop_min_scale: Annotated[Float, Field(gt=0, le=1), WITH_CROPS] = 0.3
    """Shortest side of a crop, as a share of the image's side."""
    scale_jitter: tuple[Positive, Positive] | None = None
    """Large-scale jitter (arXiv:2012.07177): the image is resized by a factor drawn between these
    two (log-uniform) beyond the target size, then cropped or padded to it."""
    min_visible: Annotated[
        Fraction, WITH_CROPS, WITH_MOSAIC, ReadWhen("input.augment.scale_jitter")
    ] = 0.1
    """A box of which crop, jitter or mosaic leave a smaller share of the area than this is dropped.
    """
    brightness: Fraction = 0.0
    """Factor drawn from [1 - x, 1 + x], as torchvision's ColorJitter; likewise the next two."""
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Annotated[Float, Field(ge=0, le=0.5)] = 0.0
    """Shift drawn from [-x, x] turns of the color wheel."""
    mosaic_prob: Fraction = 0.0
    """Chance that three more images share the canvas (YOLOv4, arXiv:2004.10934)."""
    mixup_prob: Fraction = 0.0
    """Chance that another image is blended in, boxes of both kept (arXiv:1902.04103)."""
    mosaic_scale: Annotated[tuple[Positive, Positive], WITH_MOSAIC] = (0.5, 1.0)
    """Each image of a mosaic is resized by a factor drawn between these two (log-uniform)."""
    mixup_alpha: Annotated[Positive, ReadWhen("input.augment.mixup_prob")] = 8.0
    """The image's share in the blend is drawn from Beta(alpha, alpha). The paper takes 1.5; from 8
    on both images can nearly always be seen, which matters as the boxes of both are kept."""


class InputConfig(Section):
    """What happens to an image on its way to the model."""

    train_sizes_px: Annotated[tuple[Pixels, ...], NotEmpty] = (640, 672, 704, 736, 768, 800)
    """Lengths of the shorter side in training."""
    train_size_sampling: Literal["choice", "range"] = "choice"
    """Draw one of the lengths, or a length between the two given."""
    train_max_size_px: Pixels = 1333
    """The longer side is never longer."""
    eval_size_px: Pixels = 800
    eval_max_size_px: Pixels = 1333
    flip: Literal["none", "horizontal", "vertical", "both"] = "horizontal"
    """Each named flip with probability 0.5, independently."""
    size_divisibility_px: Count = 32
    """Batches are padded at the right and the bottom to a multiple of this."""
    group_by_aspect: Bool = True
    """Batch landscape with landscape and portrait with portrait, to pad less."""
    min_box_size_px: NonNegative = 1.0
    """Boxes with a side below this after resizing do not reach the loss."""
    max_bad_fraction: Fraction = 0.01
    """A run stops when more than this share of the images cannot be decoded."""
    sampling: Literal["all", "repeat_factor", "class_balanced"] = "all"
    """all: each image once an epoch. repeat_factor: images of rare classes more often (LVIS,
    arXiv:1908.03195, appendix B.2). class_balanced: an epoch of as many images, in which each class
    is drawn equally often."""
    repeat_threshold: Annotated[
        Float, Field(gt=0, le=1), ReadWhen("input.sampling", "repeat_factor")
    ] = 0.001
    """Share of images below which a class is rare."""
    skip_empty: Bool = False
    """Leave images without boxes out of training (detectron2 does)."""
    augment: AugmentConfig = AugmentConfig()
