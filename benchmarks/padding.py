"""How much of a batch is padding, with landscape and portrait images apart and together?

Counted on a run's plan: each image at its target size against the batch's, which is a multiple of
32 px and as large as its largest image. Sizes of images are those of a COCO annotation file, or
118 000 drawn like COCO's.

python benchmarks/padding.py --coco COCO_TINY/annotations/instances_train2017.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer
from measure import OutOption, QuickOption, Spread
from page import Page
from scale import ROWS_PER_GROUP, coco_like_sizes

from retina_ray.config import ExperimentConfig, with_overrides
from retina_ray.data.plan.run_plan import RunPlan

DIVISOR = ExperimentConfig().input.size_divisibility_px


def index_of(height: np.ndarray, width: np.ndarray) -> pa.Table:
    """The light columns of images of these sizes."""
    number = np.arange(len(height))
    columns = {
        "shard": np.zeros(len(height), np.int64),
        "row_group": number // ROWS_PER_GROUP,
        "row": number % ROWS_PER_GROUP,
        "height": height,
        "width": width,
    }
    return pa.table({name: pa.array(values, pa.int32()) for name, values in columns.items()})


def target_sizes(
    height: np.ndarray, width: np.ndarray, size_px: np.ndarray, max_size_px: np.ndarray
) -> np.ndarray:
    """`shortest_edge_size` of many images, (n, 2)."""
    sizes = np.stack([height, width], 1).astype(float)
    factor = np.minimum(size_px / sizes.min(1), max_size_px / sizes.max(1))
    return np.maximum(1, np.floor(sizes * factor[:, None] + 0.5))


def padding(
    height: np.ndarray, width: np.ndarray, *, batch_size: int, group_by_aspect: bool, seed: int
) -> float:
    """Share of the pixels of an epoch's batches that belongs to no image."""
    settings = {
        "train.batch_size": batch_size,
        "train.epochs": 1,
        "train.seed": seed,
        "input.group_by_aspect": group_by_aspect,
    }
    config = with_overrides(ExperimentConfig(), settings)
    rows = RunPlan.from_config(config, index_of(height, width), None).segment(0)
    images = np.stack(rows["images"].combine_chunks().flatten().to_numpy().reshape(-1, batch_size))
    flat = images.ravel()
    limits = (np.repeat(rows[name].to_numpy(), batch_size) for name in ("size_px", "max_size_px"))
    own = target_sizes(height[flat], width[flat], *limits).reshape(-1, batch_size, 2)
    padded = np.ceil(own.max(axis=1) / DIVISOR) * DIVISOR
    return 1 - own.prod(axis=2).sum() / (padded.prod(axis=1) * batch_size).sum()


def main(
    coco: Annotated[Path | None, typer.Option(help="An annotation file of COCO's format.")] = None,
    quick: QuickOption = False,
    out: OutOption = None,
) -> None:
    """Count the padding of COCO's sizes."""
    page = Page("How much of a batch is padding?", device=None, threads=1)
    drawn = 2_000 if quick else 118_000
    sets = {f"{drawn:,} sizes drawn like COCO's": coco_like_sizes(drawn)}
    if coco is not None:
        images = json.loads(coco.read_text())["images"]
        height, width = (np.array([i[side] for i in images]) for side in ("height", "width"))
        sets[f"{coco.name}, {len(images)} images"] = (height, width)
    seeds = range(2 if quick else 5)
    rows = []
    for name, (height, width) in sets.items():
        for batch_size in (2, 8, 16):
            apart, together = (
                Spread.of(
                    [
                        100
                        * padding(
                            height, width, batch_size=batch_size, group_by_aspect=group, seed=seed
                        )
                        for seed in seeds
                    ]
                )
                for group in (True, False)
            )
            rows.append([name, str(batch_size), str(apart), str(together)])
    page.table(
        f"Per cent of all pixels, shorter side 640 to 800: median (range) of {len(seeds)} seeds",
        ["images", "batch", "aspects apart", "together"],
        rows,
    )
    page.finish(out)


if __name__ == "__main__":
    typer.run(main)
