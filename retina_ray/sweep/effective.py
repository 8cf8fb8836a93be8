"""Which settings of a configuration reach what is built.

A setting that another one switches off (beta under GIoU, milestones under a cosine) is left out, so
two configs with equal effective settings train the same model. The sweep refuses parameters that
are always idle, and its report marks those that were idle in a trial.
"""

from __future__ import annotations

from typing import Any

from retina_ray.config import ExperimentConfig

ALWAYS_IDLE = frozenset(
    {
        "tracking",
        "inference.evaluation_backend",  # all give the same figures
        "train.log_every_steps",
        "train.compile",
        "train.max_failures",
        "train.min_workers",
        "train.checkpoint_every_steps",
        "train.keep_checkpoints",
        "train.stall_timeout_s",
    }
)
"""Settings of how a run is watched, computed or kept alive: they change no result, up to rounding
and the moment of death."""


def idle_paths(config: ExperimentConfig) -> set[str]:
    """Dotted paths of the settings that nothing reads in this configuration."""
    loss, optimizer, schedule = config.loss, config.optimizer, config.schedule
    inputs, augment = config.input, config.input.augment
    rules = {
        "matcher.low": config.matcher.method != "iou",
        "matcher.high": config.matcher.method == "atss",
        "matcher.allow_low_quality": config.matcher.method != "iou",
        "matcher.atss_topk": config.matcher.method != "atss",
        "model.anchors.angles_deg": config.model.box_type != "rotated",
        "model.anchors.scale": config.model.anchors.fit != "none",
        "model.angle_weight": config.model.box_type != "rotated",
        "loss.focal_alpha": loss.cls_loss == "quality_focal",
        "loss.smooth_l1_beta": loss.box_loss != "smooth_l1",
        "loss.normalizer_momentum": loss.normalizer != "ema",
        "loss.normalizer_initial": loss.normalizer != "ema",
        "optimizer.momentum": optimizer.name != "sgd",
        "optimizer.nesterov": optimizer.name != "sgd",
        "optimizer.betas": optimizer.name != "adamw",
        "optimizer.clip_threshold": optimizer.clip == "none",
        "optimizer.clip_norm_type": optimizer.clip != "norm",
        "schedule.milestones": schedule.name != "multistep",
        "schedule.gamma": schedule.name != "multistep",
        "schedule.warmup": schedule.warmup_steps == 0,
        "schedule.warmup_factor": schedule.warmup_steps == 0,
        "input.repeat_threshold": inputs.sampling != "repeat_factor",
        "input.augment.crop_min_ious": augment.crop_prob == 0,
        "input.augment.crop_min_scale": augment.crop_prob == 0,
        "input.augment.min_visible": not (
            augment.crop_prob or augment.scale_jitter or augment.mosaic_prob
        ),
        "input.augment.mosaic_scale": augment.mosaic_prob == 0,
        "input.augment.mixup_alpha": augment.mixup_prob == 0,
        "model.top_input": config.model.max_level == 5,
        "train.early_stop_min_gain": config.train.early_stop_rounds is None,
    }
    return set(ALWAYS_IDLE) | {path for path, switched_off in rules.items() if switched_off}


def effective_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Dotted path to value of every setting that something reads, comparable with `==`."""
    idle = idle_paths(config)
    settings = _flatten(config.model_dump(mode="json"))
    anchors = config.model.anchors
    scale = anchors.scale if anchors.fit == "none" else 1.0
    # Sizes, octave scales and the common factor only ever act as their product.
    for name in ("sizes", "octave_scales", "scale"):
        settings.pop(f"model.anchors.{name}")
    settings["model.anchors.sizes_px"] = [
        [round(size * octave * scale, 6) for octave in anchors.octave_scales]
        for size in anchors.sizes
    ]
    if anchors.fit == "all":  # of the aspect ratios, only their number is read
        settings["model.anchors.aspect_ratios"] = len(anchors.aspect_ratios)
    return {
        path: value
        for path, value in settings.items()
        if not any(path == p or path.startswith(f"{p}.") for p in idle)
    }


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
