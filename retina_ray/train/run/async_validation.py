"""Asynchronous validation: a checkpoint is evaluated elsewhere while the steps go on.

At most one is under way. Its outcome is taken in at the step where the next one is due, and at the
end of the run: always at the same steps, however long it took, so a run stays repeatable. One that
is slower than the training between two of them is waited for.

Ray Train can validate checkpoints by itself (`validation_config`). This is the same idea without
its own record of checkpoints, which only the version of Ray that wrote it can read: a run could not
be resumed after an update of Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass

import torch

from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.evaluation.predictions_file import PredictionsOrigin, predictions_to_parquet
from retina_ray.model import RetinaNet
from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.engine.validation import Sample, predict_dataset, score_predictions
from retina_ray.train.spec import RunSpec

DURATION, WAIT = "perf/validation_s", "perf/validation_wait_s"
"""Metrics: seconds that a validation took, and those that the training waited for it."""

POLL_S = 5.0
"""Between two looks at a validation that is waited for: how soon a reason to stop is heard."""


class ValidationError(RuntimeError):
    """An asynchronous validation failed, or did not come to its end in time."""


@dataclass(frozen=True)
class Outcome:
    """What a validation came to."""

    step: int  # training steps of the weights
    metrics: dict[str, float]
    predictions: bytes  # the content of a `predictions.parquet`
    samples: list[Sample]
    bad_images: dict[str, str]  # reasons by name (`named_in_run`)


def validate(spec: RunSpec, checkpoint_uri: str) -> Outcome:
    """Evaluate a checkpoint of a run: its averaged weights where it has some.

    Raises:
        ConfigError: the checkpoint cannot be read.
        DataError: the validation set is missing or broken.
        RuntimeError: not every image was seen once.
    """
    started = time.perf_counter()
    config, train = spec.config, spec.config.train
    checkpoint = load_checkpoint(checkpoint_uri, weights_only=True)
    device = torch.device("cuda" if train.validation_gpus > 0 else "cpu")
    num_threads = max(1, int(train.validation_cpus))
    model = RetinaNet.from_config(config.model)
    model.load_state_dict(checkpoint.weights)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = PreparedDataset.open(spec.val_uri)
    found = predict_dataset(
        model.eval(),
        config,
        data,
        device=device,
        num_samples=config.tracking.num_pictures,
        num_threads=num_threads,
    )
    truth = data.ground_truth(box_type=config.model.box_type)
    metrics = score_predictions(found, truth, config.inference)
    origin = PredictionsOrigin(checkpoint.meta.step, data.info.fingerprint)
    return Outcome(
        step=checkpoint.meta.step,
        metrics={**metrics, DURATION: time.perf_counter() - started},
        predictions=predictions_to_parquet(found.results, origin=origin),
        samples=found.samples,
        bad_images=found.bad_images,
    )


class AsyncValidation:
    """The asynchronous validations of a run, one after the other; for rank 0."""

    def __init__(self, submit: Callable[[str], Future[Outcome]], *, timeout_s: float) -> None:
        """Take what starts `validate` for a checkpoint's URI somewhere, and returns at once.

        After waiting for one for `timeout_s`, the training takes it for hung.
        """
        self._submit = submit
        self._timeout_s = timeout_s
        self._running: Future[Outcome] | None = None
        self._waited_s = 0.0

    def start(self, checkpoint_uri: str) -> None:
        """Start the validation of a checkpoint; what fails, `take` raises."""
        self._waited_s = 0.0
        try:
            self._running = self._submit(checkpoint_uri)
        except Exception as error:
            self._running = Future()
            self._running.set_exception(error)

    def is_done(self) -> bool:
        """Whether none is under way, or its outcome is there; waits for it for `POLL_S`.

        Raises:
            ValidationError: it was waited for too long by now.
        """
        if self._running is None or self._running.done():
            return True
        before = time.monotonic()
        wait([self._running], timeout=POLL_S)
        self._waited_s += time.monotonic() - before
        if self._running.done():
            return True
        if self._waited_s > self._timeout_s:
            raise ValidationError(
                f"the asynchronous validation did not end: the training waited "
                f"{self._waited_s:.0f} s for it (train.stall_timeout_s). Is there room for its "
                "train.validation_cpus and train.validation_gpus?"
            )
        return False

    def take(self) -> tuple[Outcome, float] | None:
        """The outcome of the validation that is done, and the seconds it was waited for.

        None where none was started.

        Raises:
            ValidationError: it failed.
        """
        done, self._running = self._running, None
        if done is None:
            return None
        try:
            return done.result(timeout=0), self._waited_s
        except Exception as error:
            cause = getattr(error, "cause", None) or error
            raise ValidationError(
                f"the asynchronous validation failed: {type(cause).__name__}: {cause}"
            ) from error
