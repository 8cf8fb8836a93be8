"""Which charts a data set's page has, and the sentences below them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from retina_ray.config import ExperimentConfig, InputConfig
from retina_ray.reports.dataset.plots import Values, bubbles, density, histogram
from retina_ray.reports.dataset.splits import Split
from retina_ray.reports.html.charts import Chart, make_chart

COCO_SIDES_PX = (32.0, 96.0)
"""COCO calls a box small below the first, large from the second on (roots of areas)."""

_COLOR = "Color: boxes in a cell."


def box_charts(splits: Sequence[Split], config: ExperimentConfig) -> Iterator[Chart]:
    """Sizes, aspects and places of boxes; crowd regions are not counted."""
    everyone = _legend(splits)
    counts = [split.boxes_per_image.astype(np.float64) for split in splits]
    yield make_chart(
        "Boxes per image",
        histogram(counts, label="boxes in an image", of="images", log=False),
        legend=everyone,
        notes=_per_split(splits, counts, _count_words),
    )
    sides = [split.sides[_proper(split)] for split in splits]
    roots = [np.sqrt(side.prod(axis=1)) for side in sides]
    label = "root of a box's area, px"
    yield make_chart(
        "Box size as stored",
        histogram(roots, label=label, of="boxes", log=True, marks=COCO_SIDES_PX),
        legend=everyone,
        notes=(*_per_split(splits, roots, _size_words), *_flat_words(splits)),
    )
    yield _training_size(splits, config)
    aspects = [side[:, 1] / side[:, 0] for side in sides]
    yield make_chart(
        "Box aspect",
        histogram(aspects, label="height / width", of="boxes", log=True, marks=(1.0,)),
        legend=everyone,
        notes=_per_split(splits, aspects, _middle_words("")),
    )
    if any(split.boxes.shape[1] == 5 for split in splits):
        yield _angles(splits)
    span = _span([side.ravel() for side in sides if len(side)])
    lines = "Lines of equal area: COCO's small end at 32\u00b2 px, large begin at 96\u00b2."
    for one, side in zip(everyone, sides, strict=True):
        yield make_chart(
            "Box width and height",
            density(side, labels=("width, px", "height, px"), unit=False, span=span,
                    guides=COCO_SIDES_PX),
            legend=(one,),
            notes=(lines, _COLOR),
            shape="square",
        )  # fmt: skip
    for one, split in zip(everyone, splits, strict=True):
        centres = split.centres[split.single]
        centres = centres[np.isfinite(centres).all(axis=1)]
        yield make_chart(
            "Where boxes lie",
            density(centres, labels=("share of the width", "share of the height"), unit=True),
            legend=(one,),
            notes=("Centers of boxes in their image, left and top at 0.", _COLOR),
            shape="square",
        )


def image_charts(splits: Sequence[Split]) -> Iterator[Chart]:
    """Sizes and aspects of images."""
    aspects = [split.heights / split.widths for split in splits]
    yield make_chart(
        "Image aspect",
        histogram(aspects, label="height / width", of="images", log=True, marks=(1.0,)),
        legend=_legend(splits),
        notes=_per_split(splits, aspects, _landscape_words),
    )
    end = 1.08 * max((max(s.widths.max(), s.heights.max()) for s in splits if len(s)), default=1)
    for number, split in enumerate(splits):
        sizes = np.stack([split.widths, split.heights], axis=1)
        yield make_chart(
            "Image sizes",
            bubbles(sizes, color=number, end=end),
            legend=((split.name, number),),
            notes=(_common_sizes(sizes),),
            shape="square",
        )


def training_sides(inputs: InputConfig) -> tuple[float, ...]:
    """Lengths of the shorter side that stand for all that training draws."""
    sizes = inputs.train_sizes_px
    if inputs.train_size_sampling == "range":
        return tuple(np.linspace(sizes[0], sizes[1], 5).tolist())
    return tuple(float(size) for size in sizes)


def _training_size(splits: Sequence[Split], config: ExperimentConfig) -> Chart:
    """Box sizes after the recipe's resizing, with its anchors."""
    inputs, anchors = config.input, config.model.anchors
    targets = training_sides(inputs)
    roots = []
    for split in splits:
        shorter = np.minimum(split.heights, split.widths)
        longer = np.maximum(split.heights, split.widths)
        proper = _proper(split)
        root = np.sqrt(split.sides[proper].prod(axis=1))
        parts = []
        for target in targets:
            factor = np.minimum(target / shorter, inputs.train_max_size_px / longer)
            parts.append(root * factor[split.image_of[proper]])
        roots.append(np.concatenate(parts))
    sides = f"{min(targets):g}" if len(targets) == 1 else f"{min(targets):g} to {max(targets):g}"
    shown = [side * anchors.scale for side in anchors.sizes]
    note = (
        f"Shorter side {sides} px, longer side at most {inputs.train_max_size_px} px, before any "
        f"other augmentation. Dotted: anchor sizes {', '.join(f'{side:g}' for side in shown)} px."
    )
    plot = histogram(
        roots, label="root of a box's area at training size, px", of="boxes", log=True,
        pale_marks=shown,
    )  # fmt: skip
    words = _per_split(splits, roots, _middle_words(" px"))
    return make_chart("Box size in training", plot, legend=_legend(splits), notes=(*words, note))


def _angles(splits: Sequence[Split]) -> Chart:
    """Turns of rotated boxes; half a turn makes the same rectangle."""
    turns, shown = [], []
    for number, split in enumerate(splits):
        turns.append(np.zeros(0))
        if split.boxes.shape[1] == 5:
            angles = split.boxes[split.single, 4].astype(np.float64)
            turns[number] = np.mod(angles[np.isfinite(angles)] + 90, 180) - 90
            shown.append((split.name, number))
    label = "angle, degrees counter-clockwise"
    return make_chart(
        "Turn of rotated boxes",
        histogram(turns, label=label, of="boxes", log=False, span=(-90, 89)),
        legend=shown,
        notes=("Modulo 180 degrees: half a turn gives the same rectangle.",),
    )


def _proper(split: Split) -> NDArray[np.int64]:
    """Positions of the boxes that have an area and are no crowd regions."""
    sides = split.sides[split.single]
    return split.single[np.isfinite(sides).all(axis=1) & (sides > 0).all(axis=1)]


def _legend(splits: Sequence[Split]) -> list[tuple[str, int]]:
    return [(split.name, number) for number, split in enumerate(splits)]


def _span(values: Values) -> tuple[float, float] | None:
    if not values:
        return None
    return float(min(map(np.min, values))), float(max(map(np.max, values)))


def _per_split(
    splits: Sequence[Split], series: Values, words: Callable[[NDArray[np.float64]], str]
) -> tuple[str, ...]:
    """A sentence for each split that has values."""
    return tuple(
        f"{split.name}: {words(values)}"
        for split, values in zip(splits, series, strict=True)
        if len(values)
    )


def _count_words(values: NDArray[np.float64]) -> str:
    empty = int((values == 0).sum())
    return f"mean {values.mean():.3g}, at most {values.max():,.0f}; " + (
        f"{empty:,} without boxes ({_percent(empty / len(values))})" if empty else "none empty"
    )


def _size_words(values: NDArray[np.float64]) -> str:
    small = (values < COCO_SIDES_PX[0]).mean()
    large = (values >= COCO_SIDES_PX[1]).mean()
    return (
        f"median {np.median(values):.3g} px; {_percent(small)} small, "
        f"{_percent(1 - small - large)} medium, {_percent(large)} large"
    )


def _middle_words(unit: str) -> Callable[[NDArray[np.float64]], str]:
    def words(values: NDArray[np.float64]) -> str:
        low, median, high = np.quantile(values, (0.01, 0.5, 0.99))
        return f"median {median:.3g}{unit}, 98 % lie between {low:.3g} and {high:.3g}{unit}"

    return words


def _landscape_words(values: NDArray[np.float64]) -> str:
    shares = {
        "landscape": (values < 1).mean(),
        "square": (values == 1).mean(),
        "portrait": (values > 1).mean(),
    }
    words = ", ".join(f"{_percent(share)} {name}" for name, share in shares.items() if share)
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return f"{words}; all {low}" if low == high else f"{words}; {low} to {high}"


def _flat_words(splits: Sequence[Split]) -> tuple[str, ...]:
    """Boxes that no chart of sizes can show."""
    flat = {split.name: len(split.single) - len(_proper(split)) for split in splits}
    return tuple(
        f"{name}: {count:,} without area or not finite, not shown"
        for name, count in flat.items()
        if count
    )


def _common_sizes(sizes: NDArray[np.int64]) -> str:
    if not len(sizes):
        return "no images"
    places, counts = np.unique(sizes, axis=0, return_counts=True)
    if len(places) == 1:
        return f"All are {places[0, 0]} x {places[0, 1]} px."
    most = np.argsort(-counts, kind="stable")[:3]
    common = ", ".join(f"{places[at, 0]} x {places[at, 1]} ({counts[at]:,})" for at in most)
    return f"{len(places):,} sizes, most often {common}. The larger a bubble, the more images."


def _percent(share: float) -> str:
    """0 and 100 % are said only of none and all."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    text = f"{100 * max(share, 0):.1f}".removesuffix(".0")
    return f"{text} %"
