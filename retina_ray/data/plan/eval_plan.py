"""The plan of an evaluation: one pass over a set, in the rows of a run's validation rounds."""

from __future__ import annotations

import pyarrow as pa

from retina_ray.data.plan.layout import RunLayout
from retina_ray.data.plan.rows import validation_round
from retina_ray.data.plan.run_plan import RunPlan


def build_eval_plan(
    index: pa.Table,
    *,
    num_workers: int,
    eval_batch_size: int,
    eval_size_px: int,
    eval_max_size_px: int,
) -> RunPlan:
    """Plan one pass over a set: each image exactly once, as in a run's validation.

    Args:
        index: light columns of the set; its images are the plan's validation images.
        num_workers: W; rows without images are added until each worker has as many.
        eval_batch_size: images of a row.
        eval_size_px: length of the shorter side.
        eval_max_size_px: limit of the longer side.

    Raises:
        DataError: the index is empty.
        ValueError: a number is out of its range.
    """
    rows = validation_round(index, num_workers, eval_batch_size, eval_size_px, eval_max_size_px)
    layout = RunLayout(
        num_workers=num_workers,
        num_epochs=0,
        steps_per_epoch=0,
        num_val_rows_per_worker=rows.num_rows // num_workers,
    )
    return RunPlan(layout, None, rows)
