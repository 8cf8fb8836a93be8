"""What a run's predictions are worth: everything that its page shows of them, computed once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import BoxType
from retina_ray.evaluation.coco import CocoMetrics, evaluate_coco, metric_names
from retina_ray.evaluation.confusion import ImageScores, confusion_matrix, score_images
from retina_ray.evaluation.curves import Threshold, best_thresholds, class_precisions
from retina_ray.evaluation.errors import ErrorAnalysis, find_errors
from retina_ray.evaluation.matching import Floats, Ints, match, scene_of
from retina_ray.evaluation.predictions_file import (
    PREDICTIONS_FILE,
    predictions_from_parquet,
    predictions_origin,
)
from retina_ray.reports.run.record import RunRecord
from retina_ray.storage.uris import shown_uri

_STRICT_IOU = 0.75


class NoAnalysis(Exception):  # noqa: N818 - it tells of something that is missing, no fault
    """There are no predictions to analyse, or they do not fit; the message says what to do."""


@dataclass(frozen=True, eq=False)
class RunAnalysis:
    """Predictions against the validation set.

    Attributes:
        step: training steps that the model had done; None where the file does not say.
        metrics: COCO's.
        class_ap: (K,) AP of each class, NaN without boxes.
        errors: TIDE's analysis at IoU 0.5, with the matching.
        precision: (K, 101) precision over recall at IoU 0.5.
        strict_precision: the same at IoU 0.75.
        together: the score threshold with the best F1 over all classes.
        thresholds: that of each class.
        confusion: (K + 1, K + 1) at that threshold.
        images: how good each image's detections are, at that threshold.
    """

    step: int | None
    metrics: CocoMetrics
    class_ap: Floats
    errors: ErrorAnalysis
    precision: Floats
    strict_precision: Floats
    together: Threshold
    thresholds: list[Threshold]
    confusion: Ints
    images: ImageScores

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, by ascending category id."""
        return self.errors.matching.scene.names


def analyse(record: RunRecord, dataset: PreparedDataset) -> RunAnalysis:
    """Analyse the predictions in a run's folder against its validation set.

    Raises:
        NoAnalysis: no predictions, a damaged file, or one of another data set.
        DataError: the data set cannot be read, or has not the boxes that the run predicts.
    """
    step, results = _load(record, dataset)
    box_type: BoxType = record.setting("model.box_type")
    if results:
        box_type = "rotated" if len(results[0]["bbox"]) == 5 else "aligned"
    truth = dataset.ground_truth(box_type=box_type)
    limit = record.setting("inference.max_detections")
    try:
        # `auto`, whatever the run took: the metrics are the same.
        metrics = evaluate_coco(truth, results, max_detections=limit, backend="auto")
        scene = scene_of(truth, results, max_detections=limit)
    except ValueError as error:
        raise NoAnalysis(
            f"{PREDICTIONS_FILE} does not fit {shown_uri(dataset.uri)}, so it is probably of "
            f"another data set; name the one that the run was validated on by --data. {error}."
        ) from error
    errors = find_errors(scene)
    together, thresholds = best_thresholds(errors.matching)
    threshold = 0.0 if math.isnan(together.score) else together.score
    keys = metric_names(truth["categories"])
    return RunAnalysis(
        step=step,
        metrics=metrics,
        class_ap=np.array([metrics.per_class[keys[i]] for i in scene.category_ids.tolist()]),
        errors=errors,
        precision=class_precisions(errors.matching),
        strict_precision=class_precisions(match(scene, iou=_STRICT_IOU)),
        together=together,
        thresholds=thresholds,
        confusion=confusion_matrix(scene, score_threshold=threshold),
        images=score_images(errors, score_threshold=threshold),
    )


def _load(record: RunRecord, dataset: PreparedDataset) -> tuple[int | None, list[dict[str, Any]]]:
    """Step and predictions of a run's file."""
    path = record.folder / PREDICTIONS_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NoAnalysis(
            f"There is no {PREDICTIONS_FILE} in this folder. A run writes it at its best "
            "evaluation, so it has none before the first. For a checkpoint that is there, python "
            f"experiments/evaluate.py --checkpoint CHECKPOINT --dataset {shown_uri(dataset.uri)} "
            f"--out {record.place} writes one."
        ) from None
    except OSError as error:
        raise NoAnalysis(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        origin = predictions_origin(data, PREDICTIONS_FILE)
        results = predictions_from_parquet(data, PREDICTIONS_FILE)
    except ValueError as error:
        raise NoAnalysis(f"{error}.") from error
    fingerprint = dataset.info.fingerprint
    if origin.dataset_fingerprint not in (None, fingerprint):
        raise NoAnalysis(
            f"{PREDICTIONS_FILE} is of another data set than {shown_uri(dataset.uri)} holds now "
            f"(fingerprint {str(origin.dataset_fingerprint)[:12]} against {fingerprint[:12]}). "
            "Name the set that the run was validated on by --data."
        )
    return origin.step, results
