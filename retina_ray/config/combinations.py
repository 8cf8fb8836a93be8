"""Combinations of settings that no run could carry out."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import TYPE_CHECKING

from retina_ray.config.data import DataConfig, InputConfig
from retina_ray.config.loss import LossConfig, MatcherConfig
from retina_ray.config.model import ModelConfig

if TYPE_CHECKING:
    from retina_ray.config.experiment import ExperimentConfig

Faults = Iterator[tuple[str, str]]

FOR_ROTATED = {
    "model.anchors.fit": ("none",),
    "matcher.method": ("iou",),
    "loss.box_loss": ("smooth_l1",),
    "inference.evaluation_backend": ("auto", "pycocotools"),
}
"""All that there is for rotated boxes, where aligned ones have more."""


def impossible_combinations(config: ExperimentConfig) -> Faults:
    """Yield a (path, message) for each combination of values that cannot work."""
    yield from _impossible_model(config.model)
    yield from _impossible_losses(config.matcher, config.loss)
    yield from _impossible_rotation(config)
    yield from _impossible_input(config.input, config.data)
    yield from _impossible_run(config)


def _impossible_model(model: ModelConfig) -> Faults:
    levels, sizes = model.levels, model.anchors.sizes
    if len(sizes) != len(levels):
        yield (
            "model.anchors.sizes",
            f"{len(sizes)} sizes for {len(levels)} pyramid levels "
            f"(P{levels[0]} to P{levels[-1]}): give one size per level",
        )
    if model.backbone_stride_in_1x1 and model.backbone in ("resnet18", "resnet34"):
        yield (
            "model.backbone_stride_in_1x1",
            f"{model.backbone} has no bottlenecks whose stride could be moved: set it to false",
        )
    for part, channels in (
        ("fpn", model.fpn_channels),
        ("head", model.head_channels or model.fpn_channels),
    ):
        if getattr(model, f"{part}_norm") == "gn" and channels % 32:
            yield f"model.{part}_channels", f"{channels} do not divide into group norm's 32 groups"


def _impossible_rotation(config: ExperimentConfig) -> Faults:
    if config.model.box_type != "rotated":
        return
    if config.data.synthetic is not None and not config.data.synthetic.rotated:
        yield (
            "data.synthetic.rotated",
            'false: model.box_type = "rotated" needs rotated boxes, set it to true',
        )
    for path, choices in FOR_ROTATED.items():
        if (value := attrgetter(path)(config)) not in choices:
            yield path, f'"{value}" is for aligned boxes: rotated ones take "{choices[0]}"'


def _impossible_losses(matcher: MatcherConfig, loss: LossConfig) -> Faults:
    if matcher.low > matcher.high:
        yield "matcher.low", f"{matcher.low} is above matcher.high = {matcher.high}"
    if loss.cls_loss == "varifocal" and loss.focal_alpha == 0:
        yield "loss.focal_alpha", "0: varifocal loss would give background no weight"
    if -1 < loss.focal_alpha < 0:
        yield (
            "loss.focal_alpha",
            f"{loss.focal_alpha} is no weight: give 0 to 1, or -1 for no weighting",
        )


def _impossible_input(inputs: InputConfig, data: DataConfig) -> Faults:
    sizes = inputs.train_sizes_px
    if inputs.train_size_sampling == "range" and (len(sizes) != 2 or sizes[0] > sizes[1]):
        yield "input.train_sizes_px", f"sampling 'range' needs (shortest, longest), got {sizes}"
    if max(sizes) > inputs.train_max_size_px:
        yield (
            "input.train_max_size_px",
            f"{inputs.train_max_size_px} is below the shorter side {max(sizes)}",
        )
    if inputs.eval_size_px > inputs.eval_max_size_px:
        yield (
            "input.eval_max_size_px",
            f"{inputs.eval_max_size_px} is below input.eval_size_px = {inputs.eval_size_px}",
        )
    for name in ("scale_jitter", "mosaic_scale"):
        factors = getattr(inputs.augment, name)
        if factors is not None and factors[0] > factors[1]:
            yield f"input.augment.{name}", f"needs (smallest, largest), got {factors}"
    if data.synthetic is not None and (data.train or data.val):
        yield "data.synthetic", "set together with data.train or data.val: choose one"
    if (data.train is None) != (data.val is None):
        yield "data", "data.train and data.val are needed together"


def _impossible_run(config: ExperimentConfig) -> Faults:
    train, optimizer, milestones = config.train, config.optimizer, config.schedule.milestones
    if train.batch_size % train.num_workers:
        yield (
            "train.batch_size",
            f"{train.batch_size} images do not divide over train.num_workers = "
            f"{train.num_workers}: every worker must get the same number",
        )
    elif train.batch_size % (train.num_workers * train.accumulate):
        yield (
            "train.accumulate",
            f"{train.batch_size // train.num_workers} images of a worker do not divide into "
            f"{train.accumulate} micro-batches",
        )
    if (train.min_workers or 1) > train.num_workers:
        yield (
            "train.min_workers",
            f"{train.min_workers} is more than train.num_workers = {train.num_workers}",
        )
    if train.eval_every_epochs > train.epochs:
        yield (
            "train.eval_every_epochs",
            f"{train.eval_every_epochs} is more than train.epochs = {train.epochs}: "
            "the run would end without an evaluation",
        )
    if list(milestones) != sorted(set(milestones)):
        yield "schedule.milestones", f"{milestones} must increase"
    if optimizer.name == "sgd" and optimizer.nesterov and optimizer.momentum == 0:
        yield "optimizer.nesterov", "needs optimizer.momentum > 0"
