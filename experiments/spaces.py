"""Search spaces: plain functions from the base config to what a sweep varies."""

from __future__ import annotations

from collections.abc import Callable

from retina_ray.config import ExperimentConfig
from retina_ray.sweep.space import Choice, LogUniform, Space, Uniform


def default(base: ExperimentConfig) -> Space:
    """Focal alpha and gamma, the box loss, the schedule, the learning rate and the anchors."""
    return {
        "loss.focal_alpha": Choice(0.25, 0.5, 0.75),
        "loss.focal_gamma": Uniform(0.5, 3.0),
        **_box_losses(base),
        "schedule.name": Choice("cosine", "multistep"),
        "optimizer.lr": LogUniform(base.optimizer.lr / 3, base.optimizer.lr * 3),
        "model.anchors.scale": Choice(0.75, 1.0, 1.5),
        "model.anchors.aspect_ratios": Choice((1.0,), (0.5, 1.0, 2.0)),
    }


def losses(base: ExperimentConfig) -> Space:
    """Focal gamma and the box loss alone."""
    return {"loss.focal_gamma": Choice(1.0, 2.0), **_box_losses(base)}


def _box_losses(base: ExperimentConfig) -> Space:
    """The box losses that there are for the boxes of the base config."""
    if base.model.box_type == "rotated":
        return {"loss.smooth_l1_beta": Choice(0.0, 0.1)}
    return {"loss.box_loss": Choice("smooth_l1", "giou")}


def class_losses(base: ExperimentConfig) -> Space:
    """The classification loss: the score of a class, or also of how well its box fits.

    `loss.focal_alpha` stays the recipe's, for varifocal loss the weight of the background.
    """
    del base
    return {"loss.cls_loss": Choice("focal", "quality_focal", "varifocal")}


def assigners(base: ExperimentConfig) -> Space:
    """Which anchors learn which box; for aligned boxes only."""
    del base
    return {"matcher.method": Choice("iou", "best", "atss")}


def seeds(base: ExperimentConfig) -> Space:
    """Nothing but the seed: how far apart runs lie that differ by chance alone."""
    first = base.train.seed
    return {"train.seed": Choice(first, first + 1, first + 2)}


SPACES: dict[str, Callable[[ExperimentConfig], Space]] = {
    space.__name__: space for space in (default, losses, class_losses, assigners, seeds)
}
