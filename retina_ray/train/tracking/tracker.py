"""The record of a run: a local folder always, Weights & Biases and TensorBoard beside it.

For one process of a run (rank 0). What the places beside it cannot do (no network, a wrong key, a
full quota) is said once in the log and never stops a run: the local record goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from retina_ray.config import TrackingConfig
from retina_ray.train.run_files import METRICS, PICTURES
from retina_ray.train.tracking.metrics_file import MetricsFile
from retina_ray.train.tracking.tensorboard import open_tensorboard
from retina_ray.train.tracking.wandb_run import open_wandb

if TYPE_CHECKING:
    from retina_ray.evaluation.drawing import AnnotatedImage


Status = Literal["finished", "failed", "stopped"]

_log = logging.getLogger(__name__)


class Place(Protocol):
    """Where a record goes beside the local folder; whatever it raises is caught."""

    @property
    def name(self) -> str:
        """What the log calls it."""
        ...

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers of a step."""

    def log_pictures(self, pictures: Sequence[AnnotatedImage], step: int) -> None:
        """Record pictures; at least one."""

    def finish(self, status: Status) -> None:
        """Close it; must come back within minutes."""


def open_tracker(
    config: TrackingConfig,
    *,
    run_dir: str | Path,
    run_id: str,
    name: str,
    group: str | None,
    experiment: Mapping[str, Any],
    resume: bool = False,
    resume_step: int | None = None,
) -> Tracker:
    """Open the local record, the W&B run and TensorBoard's file.

    The environment's WANDB_MODE goes before `config.wandb`, except that `disabled` in the config
    starts nothing. A run that cannot be opened online is recorded offline (`wandb sync` sends it
    later). The same `run_id` continues the same run of W&B, which groups those of a `group`;
    `experiment` is the whole config.

    With `resume`, `metrics.jsonl` is continued: of steps after `resume_step`, from which the run
    goes on, local lines are dropped, and TensorBoard hides its own. (W&B keeps what it was sent,
    and shows both.)
    """
    run_dir = Path(run_dir)
    file = MetricsFile(run_dir / METRICS, resume=resume, resume_step=resume_step)
    start = {"project": config.project, "entity": config.entity, "id": run_id, "name": name}
    start |= {"group": group, "config": dict(experiment), "dir": str(run_dir)}
    places = [
        open_wandb(config.wandb, start),
        open_tensorboard(config.tensorboard, run_dir / "tensorboard", resume_step=resume_step),
    ]
    return Tracker(run_dir=run_dir, file=file, places=[p for p in places if p is not None])


class Tracker:
    """Takes the metrics and pictures of one run; made by `open_tracker`."""

    def __init__(self, *, run_dir: Path, file: MetricsFile, places: Sequence[Place]):
        """Take an open metrics file, and the places beside it."""
        self.run_dir = run_dir
        self._file = file
        self._places = places
        self._step = 0
        self._warned: set[str] = set()
        self._finished = False

    def log(self, metrics: Mapping[str, float], step: int, *, at: int | None = None) -> None:
        """Record metrics of a training step.

        They may be NaN. Everything is drawn over `step`, the training steps done; `at` are those
        done when the metrics came in, where that was later.
        """
        self._step = step if at is None else at
        values = {key: float(value) for key, value in metrics.items()}
        self._file.write(step, values, at=at)
        self._everywhere(lambda place: place.log(values, step))

    def log_pictures(self, pictures: Sequence[AnnotatedImage], step: int) -> None:
        """Record pictures of one validation, if any: a PNG sheet, and W&B's box overlays."""
        if not pictures:
            return
        from retina_ray.evaluation.drawing import contact_sheet, write_png

        sheet = contact_sheet([picture.draw() for picture in pictures])
        write_png(self.run_dir / PICTURES / f"step_{step:08d}.png", sheet)
        self._everywhere(lambda place: place.log_pictures(pictures, step))

    def finish(self, status: Status) -> None:
        """Close the record and all places; twice is fine, the first status counts.

        `failed` marks W&B's run as failed; `stopped` (by a scheduler) does not.
        """
        if self._finished:
            return
        self._finished = True
        self._file.write(self._step, {}, status=status)
        self._file.close()
        self._everywhere(lambda place: place.finish(status))

    def _everywhere(self, action: Callable[[Place], None]) -> None:
        """Do something in each place beside the local folder; its first failure is logged."""
        for place in self._places:
            try:
                action(place)
            except Exception as error:
                if place.name not in self._warned:
                    self._warned.add(place.name)
                    _log.warning(
                        "%s failed, and the run goes on (%s: %s). Metrics go to %s; later "
                        "failures of %s are not logged.",
                        place.name,
                        type(error).__name__,
                        error,
                        self._file.path,
                        place.name,
                    )
