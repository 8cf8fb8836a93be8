"""Which settings of a configuration reach what is built.

A setting that another one switches off (beta under GIoU, milestones under a cosine) is left out, so
two configs with equal effective settings train the same model. What switches off what stands beside
the settings, see `retina_ray.config.base.ReadWhen`.
"""

from __future__ import annotations

from typing import Any

from retina_ray.config import ExperimentConfig, idle_paths
from retina_ray.overrides import flatten


def effective_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Dotted path to value of every setting that something reads, comparable with `==`."""
    idle = idle_paths(config)
    settings = flatten(config.model_dump(mode="json"))
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
