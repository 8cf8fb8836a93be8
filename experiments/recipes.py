"""Recipes: plain functions that return a complete `ExperimentConfig`.

A recipe is chosen with `--recipe NAME` and changed with `--set path=value`. `--recipe run.json`
takes the config that a finished run stored.
"""

from __future__ import annotations

from collections.abc import Callable

from retina_ray.config import (
    AnchorConfig,
    DataConfig,
    ExperimentConfig,
    InputConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    SyntheticConfig,
    TrainConfig,
)


def _small_model(
    *, max_level: int, sizes: tuple[float, ...], fpn_channels: int = 64
) -> ModelConfig:
    """ResNet-18 from scratch with a narrow pyramid and head: what a CPU can train."""
    return ModelConfig(
        num_classes=None,
        backbone="resnet18",
        backbone_norm="bn",
        freeze_stages=0,
        max_level=max_level,
        fpn_channels=fpn_channels,
        head_num_convs=2,
        head_norm="gn",
        anchors=AnchorConfig(sizes=sizes),
    )


def shapes() -> ExperimentConfig:
    """The embedded set of drawn shapes on two CPU cores; the default of every script."""
    return ExperimentConfig(
        model=_small_model(max_level=6, sizes=(12.0, 24.0, 48.0, 96.0), fpn_channels=128),
        loss=LossConfig(box_loss="giou", smooth_l1_beta=0.1),
        data=DataConfig(synthetic=SyntheticConfig()),
        input=InputConfig(
            train_sizes_px=(128,),
            train_max_size_px=128,
            eval_size_px=128,
            eval_max_size_px=128,
            flip="both",
        ),
        optimizer=OptimizerConfig(
            name="adamw", lr=2e-3, weight_decay=0.05, clip="norm", clip_threshold=1.0
        ),
        schedule=ScheduleConfig(name="cosine", warmup_steps=20),
        train=TrainConfig(epochs=6, batch_size=8, eval_batch_size=16, log_every_steps=10),
    )


def shapes_rotated() -> ExperimentConfig:
    """Turned ellipses, frames and bars with rotated boxes, otherwise as `shapes`.

    No square anchors, since the shapes are longer than wide: turned squares differ little from one
    another, and without them the same steps learn more. The box loss counts half, because its five
    terms would outweigh the class loss, which is what takes longest to learn here.
    """
    base = shapes()
    anchors = base.model.anchors.model_copy(update={"aspect_ratios": (0.5, 2.0)})
    return base.model_copy(
        update={
            "model": base.model.model_copy(update={"box_type": "rotated", "anchors": anchors}),
            "loss": LossConfig(box_loss="smooth_l1", smooth_l1_beta=0.1, box_loss_weight=0.5),
            "data": DataConfig(synthetic=SyntheticConfig(rotated=True)),
        }
    )


def bccd_cpu() -> ExperimentConfig:
    """BCCD (blood cells) with ResNet-18 from scratch, at a size that two cores can bear.

    Prepare the data with `python datasets/voc.py`; give `data.train` and `data.val`.
    """
    return ExperimentConfig(
        model=_small_model(max_level=6, sizes=(20.0, 40.0, 80.0, 160.0)),
        loss=LossConfig(box_loss="giou", smooth_l1_beta=0.1),
        input=InputConfig(
            train_sizes_px=(208,),
            train_max_size_px=288,
            eval_size_px=208,
            eval_max_size_px=288,
            flip="both",
        ),
        optimizer=OptimizerConfig(
            name="adamw", lr=1e-3, weight_decay=0.05, clip="norm", clip_threshold=1.0
        ),
        schedule=ScheduleConfig(name="cosine", warmup_steps=50),
        train=TrainConfig(
            epochs=24,
            batch_size=8,
            cpus_per_worker=2,
            eval_batch_size=8,
            eval_every_epochs=2,
            log_every_steps=10,
        ),
    )


def coco_r50_fpn_1x() -> ExperimentConfig:
    """RetinaNet R50-FPN as in the paper and detectron2's `retinanet_R_50_FPN_1x` (12 epochs).

    Differences: anchors centred in their cells (offset 0.5), torchvision's ImageNet weights with
    RGB statistics, the loss normalizer over all workers. Smooth-L1 beta is 0.0 (plain L1), as in
    detectron2's recipe (its code default is 0.1).
    """
    return ExperimentConfig(
        model=ModelConfig(num_classes=None, backbone_weights="IMAGENET1K_V1"),
        loss=LossConfig(smooth_l1_beta=0.0),
        optimizer=OptimizerConfig(lr=0.01, lr_batch_size=16, clip="value", clip_threshold=1.0),
        schedule=ScheduleConfig(milestones=(2 / 3, 8 / 9), warmup_steps=1000),
        train=TrainConfig(epochs=12, batch_size=16, num_workers=8, cpus_per_worker=2),
    )


def coco_tiny_cpu() -> ExperimentConfig:
    """A few steps over a tiny COCO-format set on a CPU: to see that a data set goes through."""
    base = bccd_cpu()
    return base.model_copy(
        update={
            "train": base.train.model_copy(update={"epochs": 2, "eval_every_epochs": 1}),
            "schedule": base.schedule.model_copy(update={"warmup_steps": 5}),
        }
    )


RECIPES: dict[str, Callable[[], ExperimentConfig]] = {
    recipe.__name__: recipe
    for recipe in (shapes, shapes_rotated, bccd_cpu, coco_tiny_cpu, coco_r50_fpn_1x)
}
