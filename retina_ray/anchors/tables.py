"""A study of anchors for the console."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich import box
from rich.markup import escape
from rich.table import Table

from retina_ray.anchors.clusters import Clusters
from retina_ray.anchors.coverage import AnchorReport, Coverage
from retina_ray.anchors.search import SCALES, TOLERANCE, Fit, Proposals
from retina_ray.anchors.study import AnchorStudy
from retina_ray.config import AnchorConfig
from retina_ray.evaluation.tables import percent

MAX_CLASS_ROWS = 20

HARD_TO_REACH = 0.8
"""Where fewer of the small boxes are reached, other anchors are not enough, and that is said."""

_BOUNDS = "small, medium, large: area of the box at training size below 32², below 96², above"


def study_tables(study: AnchorStudy) -> Iterator[Table | str]:
    """What the console shows of a study: tables, and lines before and after them."""
    yield _about_the_boxes(study)
    yield _coverage_table(study.current, "of the config")
    if not study.proposals.keep:
        yield _coverage_table(study.proposed, "that are proposed")
    yield _comparison(study.proposals)
    yield _cluster_table(study.clusters)
    yield from _advice(study)


def _about_the_boxes(study: AnchorStudy) -> str:
    boxes, lengths = study.boxes, ", ".join(map(str, study.boxes.lengths_px))
    images = (
        f"all {boxes.num_images} images"
        if boxes.num_images == boxes.num_images_in_set
        else f"{boxes.num_images} images drawn from {boxes.num_images_in_set}"
    )
    lines = [
        f"{study.dataset.uri}: {images}, shorter side {lengths} px, {len(boxes)} boxes"
        + (", each counted at each size" if len(boxes.lengths_px) > 1 else ""),
        f"left out: {boxes.num_crowd} crowd regions, {boxes.num_too_small} boxes below "
        "input.min_box_size_px",
    ]
    if study.fitted:
        lines.append("the anchors of the config are those that model.anchors.fit comes to")
    if boxes.not_considered:
        lines.append(f"not taken into account: {', '.join(boxes.not_considered)}")
    return "\n".join(lines)


def _comparison(proposals: Proposals) -> Table:
    """The config's setting, the proposal, and the best for each number of anchors."""
    table = Table(
        title="Settings (means over the classes)", box=box.SIMPLE_HEAD, title_justify="left"
    )
    for name in ("", "anchors a cell", "scale", "octave scales", "ratios", "recall %", "mean IoU"):
        table.add_column(name, justify="left" if name == "" else "right")
    table.add_row("config", *_fit_cells(proposals.current), style="bold")
    if not proposals.keep:
        table.add_row("proposed", *_fit_cells(proposals.proposed), style="bold")
    table.add_section()
    for fit in proposals.by_num_anchors:
        table.add_row(f"best of {fit.num_anchors}", *_fit_cells(fit))
    return table


def _cluster_table(clusters: Clusters) -> Table:
    table = Table(
        title=f"Clusters of the boxes (mean IoU {clusters.mean_iou:.2f})",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    for name in ("width px", "height px", "height / width", "boxes %"):
        table.add_column(name, justify="right")
    for (width, height), share in zip(clusters.shapes, clusters.share, strict=True):
        cells = (f"{width:.0f}", f"{height:.0f}", f"{height / width:.2f}", percent(share))
        table.add_row(*cells)
    return table


def _advice(study: AnchorStudy) -> Iterator[str]:
    yield from _verdict(study)
    small = study.proposed.by_size["small"]
    if small.recall < HARD_TO_REACH:
        yield (
            f"{percent(1 - small.recall)} % of the small boxes are not reached even so: on the "
            f"finest level, anchors lie {study.finest_stride_px} px apart. Larger "
            "input.train_sizes_px or a finer level (model.min_level) would reach more of them."
        )


def _verdict(study: AnchorStudy) -> Iterator[str]:
    current, proposed = study.proposals.current, study.proposals.proposed
    if study.proposals.keep:
        yield (
            f"The anchors of the config reach {percent(current.recall)} % of the boxes of a "
            f"class, within {100 * TOLERANCE:g} percent points of the best that was found: "
            "keep them."
        )
        return
    yield (
        f"Proposed: {percent(proposed.recall)} % of the boxes of a class reached instead of "
        f"{percent(current.recall)} %, with {proposed.num_anchors} anchors a cell instead of "
        f"{current.num_anchors}. To use it:"
    )
    yield " ".join(f"--set {change}" for change in study.changes)
    if proposed.anchors.scale in (SCALES[0], SCALES[-1]):
        yield (
            "The scale is at the end of what was tried: other model.anchors.sizes or levels "
            "would fit better."
        )


def _coverage_table(report: AnchorReport, which: str) -> Table:
    """Rows for all boxes, by size, and by class, the worst first."""
    ranked = sorted(report.by_class.items(), key=lambda item: (item[1].recall, item[0]))
    hidden = len(ranked) - MAX_CLASS_ROWS
    table = Table(
        title=f"Anchors {which}: {report.num_anchors} a cell, {_setting(report.anchors)}",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption=_BOUNDS if hidden <= 0 else f"{_BOUNDS}\n{hidden} better classes: see --json",
        caption_justify="left",
    )
    table.add_column("boxes", no_wrap=True)
    for name in (
        "number",
        f"IoU ≥ {report.threshold:g} %",
        "mean IoU",
        "median",
        "anchors a box",
        f"only < {report.threshold:g} %",
        "no anchor %",
    ):
        table.add_column(name, justify="right")
    table.add_row("all", *_coverage_cells(report.overall), style="bold")
    table.add_section()
    for name, coverage in report.by_size.items():
        table.add_row(name, *_coverage_cells(coverage))
    table.add_section()
    for name, coverage in ranked[:MAX_CLASS_ROWS]:
        table.add_row(escape(name), *_coverage_cells(coverage))
    return table


def _coverage_cells(coverage: Coverage) -> list[str]:
    return [
        str(coverage.num_boxes),
        percent(coverage.recall),
        _number(coverage.mean_iou),
        _number(coverage.median_iou),
        _number(coverage.positives, 1),
        percent(coverage.low_quality),
        percent(coverage.without),
    ]


def _fit_cells(fit: Fit) -> list[str]:
    anchors = fit.anchors
    return [
        str(fit.num_anchors),
        f"{anchors.scale:.4g}",
        str(len(anchors.octave_scales)),
        " ".join(f"{ratio:g}" for ratio in anchors.aspect_ratios),
        percent(fit.recall),
        _number(fit.mean_iou),
    ]


def _setting(anchors: AnchorConfig) -> str:
    sizes = ", ".join(f"{size * anchors.scale:.4g}" for size in anchors.sizes)
    ratios = ", ".join(f"{ratio:g}" for ratio in anchors.aspect_ratios)
    return f"sizes {sizes} px, {len(anchors.octave_scales)} octave scales, ratios {ratios}"


def _number(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
