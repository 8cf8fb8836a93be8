"""The anchors of a config on a data set, and better ones: all figures of both."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from retina_ray.anchors.clusters import Clusters, cluster_shapes
from retina_ray.anchors.coverage import AnchorReport, describe_anchors, require_aligned
from retina_ray.anchors.search import (
    Fit,
    Proposals,
    assignments,
    fit_anchors,
    propose_anchors,
)
from retina_ray.anchors.training_boxes import TrainingBoxes
from retina_ray.config import ExperimentConfig, with_overrides
from retina_ray.data.prepared.dataset import PreparedDataset

NUM_CLUSTERS = 6
"""Clusters of width and height that are shown."""


@dataclass(frozen=True)
class AnchorStudy:
    """The config's anchors, and what was proposed, on the same boxes.

    Attributes:
        dataset: where the boxes come from.
        current: figures of the config's own setting; of what `model.anchors.fit` comes to, if on.
        clusters: of the boxes' widths and heights at training size.
        finest_stride_px: distance of neighbouring cells on the finest level.
        fitted: whether `model.anchors.fit` was on.
    """

    dataset: PreparedDataset
    boxes: TrainingBoxes
    proposals: Proposals
    current: AnchorReport
    proposed: AnchorReport
    clusters: Clusters
    finest_stride_px: int
    fitted: bool
    seed: int

    @property
    def changes(self) -> list[str]:
        """`path=value` strings from the config's setting to the proposal; empty to keep it."""
        if self.proposals.keep:
            return []
        return assignments(self.current.anchors, self.proposed.anchors)

    def as_tree(self) -> dict[str, Any]:
        """Everything, as JSON takes it; figures that do not exist are null."""
        sample = {
            name: getattr(self.boxes, name)
            for name in (
                "lengths_px",
                "num_images",
                "num_images_in_set",
                "num_crowd",
                "num_too_small",
                "not_considered",
            )
        }
        tree = {
            "dataset": self.dataset.uri,
            "fingerprint": self.dataset.fingerprint,
            "seed": self.seed,
            "sample": {**sample, "num_boxes": len(self.boxes)},
            "current": _report_tree(self.current),
            "proposed": _report_tree(self.proposed),
            "fitted": self.fitted,
            "keep": self.proposals.keep,
            "set": self.changes,
            "by_num_anchors": [_fit_tree(fit) for fit in self.proposals.by_num_anchors],
            "clusters": {
                "width_height_px": self.clusters.shapes.tolist(),
                "share": self.clusters.share.tolist(),
                "mean_iou": self.clusters.mean_iou,
            },
        }
        return _without_nan(tree)


def study_anchors(
    config: ExperimentConfig, dataset: PreparedDataset, *, max_images: int, seed: int = 0
) -> AnchorStudy:
    """Measure the anchors of a config on a data set and look for better ones.

    Args:
        config: anchors, pyramid, matcher and training sizes are read.
        dataset: whose boxes; light columns only.
        max_images: of a larger set, this many images are drawn.
        seed: of all draws.

    Raises:
        ConfigError: a model of rotated boxes.
        DataError: no box is left at the training size.
    """
    require_aligned(config)
    fitted = config.model.anchors.fit != "none"
    config = fit_anchors(config, dataset)
    boxes = TrainingBoxes.from_dataset(dataset, config.input, max_images=max_images, seed=seed)
    current = describe_anchors(config, boxes)
    proposals = propose_anchors(config, boxes, seed=seed)
    proposed = current
    if not proposals.keep:
        other = with_overrides(config, {"model.anchors": proposals.proposed.anchors})
        proposed = describe_anchors(other, boxes)
    sides = (boxes.boxes[:, 2:] - boxes.boxes[:, :2]).double().numpy()
    clusters = cluster_shapes(sides, NUM_CLUSTERS, seed=seed)
    return AnchorStudy(
        dataset=dataset,
        boxes=boxes,
        proposals=proposals,
        current=current,
        proposed=proposed,
        clusters=clusters,
        finest_stride_px=config.model.strides[0],
        fitted=fitted,
        seed=seed,
    )


def _report_tree(report: AnchorReport) -> dict[str, Any]:
    return {**asdict(report), "anchors": report.anchors.model_dump(mode="json")}


def _fit_tree(fit: Fit) -> dict[str, Any]:
    tree = {**asdict(fit), "num_anchors": fit.num_anchors}
    return {**tree, "anchors": fit.anchors.model_dump(mode="json")}


def _without_nan(tree: Any) -> Any:
    """The same tree with null for NaN, which JSON does not have."""
    if isinstance(tree, dict):
        return {name: _without_nan(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_without_nan(value) for value in tree]
    return None if isinstance(tree, float) and math.isnan(tree) else tree
