"""What the anchors of a config do with the boxes of a data set, before any training.

The anchors are those of the real grid of each image, and who learns what is decided by the
matcher that training uses.

Shapes: M boxes, N images of a batch, R anchors of an image, P positive anchors.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retina_ray.anchors.overlaps import BestOverlaps, grid_size
from retina_ray.anchors.training_boxes import TrainingBoxes
from retina_ray.config import AnchorConfig, ConfigError, ExperimentConfig, MatcherConfig
from retina_ray.model.assignment import make_matcher
from retina_ray.ops.anchors import AnchorGenerator
from retina_ray.ops.boxes import box_area, paired_iou

SMALL_PX, MEDIUM_PX = 32.0, 96.0
"""Sides of the squares that part COCO's small, medium and large objects."""

# Entries of the largest table of one call of the matcher: a few dozen MB.
_MAX_ENTRIES = 2**22


@dataclass(frozen=True)
class Coverage:
    """How some boxes fare with the anchors. Shares are 0 to 1, NaN where there is no box.

    Attributes:
        num_boxes: boxes, each counted once for each training size.
        recall: share with some anchor at the threshold or above.
        mean_iou: mean of the largest IoU of each box with any anchor.
        positives: mean number of anchors that learn a box.
        low_quality: share that is learnt only by anchors below the threshold.
        without: share that no anchor learns: none overlaps the box, or another box has them all.
    """

    num_boxes: int
    recall: float
    mean_iou: float
    median_iou: float
    positives: float
    low_quality: float
    without: float


@dataclass(frozen=True)
class AnchorReport:
    """The figures of one anchor setting.

    Attributes:
        threshold: the IoU from which a box counts as reached.
        by_size: of COCO's small, medium and large by the box's area at training size.
        by_class: by name, those without a box left out.
    """

    anchors: AnchorConfig
    num_anchors: int
    threshold: float
    overall: Coverage
    by_size: dict[str, Coverage]
    by_class: dict[str, Coverage]


def describe_anchors(config: ExperimentConfig, boxes: TrainingBoxes) -> AnchorReport:
    """Match the anchors of a config with the boxes and say how they fare.

    Args:
        config: `model.anchors`, the pyramid and the matcher are read.
        boxes: at the training sizes of the config.

    Raises:
        ConfigError: a model of rotated boxes.
    """
    require_aligned(config)
    best = BestOverlaps(boxes, config.model).of(config.model.anchors)
    positives, learnt_iou = _match(config, boxes)
    figures = (best, positives, learnt_iou)
    threshold = match_threshold(config.matcher)
    area = box_area(boxes.boxes)
    parts = {
        "small": area < SMALL_PX**2,
        "medium": (area >= SMALL_PX**2) & (area < MEDIUM_PX**2),
        "large": area >= MEDIUM_PX**2,
    }
    classes = {name: boxes.labels == k for k, name in enumerate(boxes.class_names)}
    return AnchorReport(
        anchors=config.model.anchors,
        num_anchors=config.model.num_anchors,
        threshold=threshold,
        overall=_coverage(figures, area >= 0, threshold),
        by_size={name: _coverage(figures, part, threshold) for name, part in parts.items()},
        by_class={
            name: _coverage(figures, part, threshold)
            for name, part in classes.items()
            if bool(part.any())
        },
    )


def match_threshold(matcher: MatcherConfig) -> float:
    """The IoU from which a box counts as reached: `matcher.high`; 0.5 for ATSS, which has none."""
    return 0.5 if matcher.method == "atss" else matcher.high


def require_aligned(config: ExperimentConfig) -> None:
    """Refuse a model of rotated boxes.

    Raises:
        ConfigError: what is measured here (nearest cells, clusters of width and height) says
            nothing about turned anchors.
    """
    if config.model.box_type == "rotated":
        raise ConfigError(
            [
                (
                    "model.box_type",
                    '"rotated": anchors are analysed and fitted for aligned boxes only; a set of '
                    'rotated boxes has aligned ones too, for which "aligned" can be set',
                )
            ]
        )


def _match(config: ExperimentConfig, boxes: TrainingBoxes) -> tuple[Tensor, Tensor]:
    """Run the matcher over all images.

    Returns:
        (M,) how many anchors learn a box, and (M,) the largest IoU among these, 0 without any.
    """
    generator = AnchorGenerator.from_config(config.model)
    matcher = make_matcher(config.matcher)
    positives = torch.zeros(len(boxes), dtype=torch.int64)
    learnt_iou = torch.zeros(len(boxes))
    with one_thread():
        for padded, rows in _batches(boxes, generator):
            grids = [grid_size(padded, stride) for stride in generator.strides]
            levels = generator(grids)
            batch = pad_sequence([boxes.boxes[r] for r in rows], batch_first=True)
            number = pad_sequence(rows, batch_first=True)
            match = matcher.match_grid(batch, levels, grids)
            image, anchor = match.positive.nonzero(as_tuple=True)  # (P,) each
            box = match.index[image, anchor]
            iou = paired_iou(batch[image, box], torch.cat(levels)[anchor])
            place = number[image, box]
            positives.index_add_(0, place, torch.ones_like(place))
            learnt_iou.scatter_reduce_(0, place, iou, "amax")
    return positives, learnt_iou


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Small tensors, many of them: several threads only slow each other down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _batches(
    boxes: TrainingBoxes, generator: AnchorGenerator
) -> Iterator[tuple[tuple[int, int], list[Tensor]]]:
    """Yield images of one padded size: its (height, width), and the boxes' positions of each."""
    counts = torch.bincount(boxes.image, minlength=len(boxes.sizes))
    by_image = torch.arange(len(boxes)).split(counts.tolist())
    groups: dict[tuple[int, int], list[Tensor]] = {}
    for (height, width), rows in zip(boxes.padded_sizes().tolist(), by_image, strict=True):
        if len(rows):
            groups.setdefault((height, width), []).append(rows)
    for padded, images in groups.items():
        cells = sum(math.prod(grid_size(padded, stride)) for stride in generator.strides)
        step = max(1, _MAX_ENTRIES // (cells * generator.num_anchors))
        # Images with like numbers of boxes together: a batch is as long as its longest.
        images.sort(key=len)
        for start in range(0, len(images), step):
            yield padded, images[start : start + step]


def _coverage(figures: tuple[Tensor, Tensor, Tensor], part: Tensor, threshold: float) -> Coverage:
    """Sum up the boxes (M,) that `part` marks."""
    best, positives, learnt_iou = (of_box[part] for of_box in figures)
    low_quality = (positives > 0) & (learnt_iou < threshold)

    def mean(values: Tensor) -> float:
        return float(values.double().mean())

    return Coverage(
        num_boxes=len(best),
        recall=mean(best >= threshold),
        mean_iou=mean(best),
        median_iou=float(best.double().quantile(0.5)) if len(best) else float("nan"),
        positives=mean(positives),
        low_quality=mean(low_quality),
        without=mean(positives == 0),
    )
