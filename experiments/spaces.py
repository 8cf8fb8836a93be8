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
        "loss.box_loss": Choice("smooth_l1", "giou"),
        "schedule.name": Choice("cosine", "multistep"),
        "optimizer.lr": LogUniform(base.optimizer.lr / 3, base.optimizer.lr * 3),
        "model.anchors.scale": Choice(0.75, 1.0, 1.5),
        "model.anchors.aspect_ratios": Choice((1.0,), (0.5, 1.0, 2.0)),
    }


def losses(base: ExperimentConfig) -> Space:
    """Focal gamma and the box loss alone."""
    del base
    return {
        "loss.focal_gamma": Choice(1.0, 2.0),
        "loss.box_loss": Choice("smooth_l1", "giou"),
    }


def seeds(base: ExperimentConfig) -> Space:
    """Nothing but the seed: how far apart runs lie that differ by chance alone."""
    first = base.train.seed
    return {"train.seed": Choice(first, first + 1, first + 2)}


SPACES: dict[str, Callable[[ExperimentConfig], Space]] = {
    space.__name__: space for space in (default, losses, seeds)
}
