"""The layout of a run's folder: one name for each file, for whoever writes or reads it.

    <storage>/<name>/
      run.json              what it is called, its data sets, its id, versions
      config.json           the complete configuration
      metrics.jsonl         see `retina_ray.train.tracking.metrics_file`
      bad_images.json       images that could not be decoded, and why
      predictions.parquet   of the best evaluation, see `retina_ray.evaluation.predictions_file`
      checkpoints/          see `retina_ray.train.checkpoint.store`
      pictures/             of evaluations
      report.html           its page
      failure.txt, stopped.txt, non_finite.json   what workers tell their driver
      rollbacks.json, non_finite/                 see `retina_ray.train.recovery.rollback`

Names are joined to a run's URI with `retina_ray.storage.uris.join_uri`.
"""

from __future__ import annotations

RUN = "run.json"
CONFIG = "config.json"
METRICS = "metrics.jsonl"
BAD_IMAGES = "bad_images.json"
CHECKPOINTS = "checkpoints"
CHECKPOINT_INDEX = "index.json"
"""In the folder of the checkpoints."""
PICTURES = "pictures"
REPORT = "report.html"
FAILURE = "failure.txt"
STOPPED = "stopped.txt"
NON_FINITE_STEP = "non_finite.json"
NON_FINITE_BATCHES = "non_finite"
ROLLBACKS = "rollbacks.json"
