"""Metrics of a logging interval, kept on the device so that no step waits for them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retina_ray.train.engine import distributed
from retina_ray.train.errors import NonFiniteLossError

GRADIENT = "gradient"
GRAD_NORM = "grad_norm"
SKIPPED_UPDATES = "train/skipped_updates"
"""Metric: updates of the interval that fp16's loss scaling left out to find its scale."""

_NUM_NAMED_IMAGES = 16


@dataclass(frozen=True)
class StepMetrics:
    """What a training step tells of itself, in scalars on the device."""

    losses: dict[str, Tensor]  # this worker's share of each term
    grad_norm: Tensor  # of the gradient over all workers, before clipping
    is_sound: Tensor  # False: the gradient is not finite, and no scaling of the loss explains it


@dataclass(frozen=True)
class _Place:
    """What the process knows of a step without asking the device."""

    step: int
    image_ids: list[int]
    lr: float


class StepMeter:
    """The loss terms step by step, images per second, and the share of time spent on waiting.

    An interval may be cut by a checkpoint: `state_dict` has its steps so far.
    """

    def __init__(self, device: torch.device, *, batch_size: int) -> None:
        """Start an interval; `batch_size` is the images of a step over all workers."""
        self._device = device
        self._batch_size = batch_size
        self._names: list[str] = []
        self._paused = 0.0
        self.restart()

    def restart(self) -> None:
        """Begin a new interval."""
        self._earlier: Tensor | None = None  # steps before a checkpoint: means over the workers
        self._rows: list[Tensor] = []  # a step each: the loss terms, the norm, whether it is sound
        self._places: list[_Place] = []
        self._known: Tensor | None = None
        self._waited_s = 0.0
        self._started = time.perf_counter()

    @property
    def num_steps(self) -> int:
        """Steps of the interval that this process has done."""
        return len(self._rows)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not self._rows and self._earlier is None

    def waited(self, seconds: float) -> None:
        """Add time in which the step stood still for its batch."""
        self._waited_s += seconds

    def start(self) -> None:
        """Let the time of the interval run."""
        self._started = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock: what comes is no training."""
        self._paused = time.perf_counter()

    def resume(self) -> None:
        """Let it run on."""
        self._started += time.perf_counter() - self._paused

    def update(self, metrics: StepMetrics, *, step: int, image_ids: list[int], lr: float) -> None:
        """Add a step; NaN and infinity are found later."""
        self._names = list(metrics.losses)
        values = [*metrics.losses.values(), metrics.grad_norm, metrics.is_sound]
        self._rows.append(torch.stack([value.detach().float() for value in values]))
        self._places.append(_Place(step, image_ids, lr))
        self._known = None

    def check(self) -> None:
        """Wait for the device, and stop on every worker alike if a step was not finite.

        Raises:
            NonFiniteLossError: of the first such step of the interval.
        """
        table = self._own_table()
        for row, place in zip(table.tolist(), self._places, strict=True):
            terms = [n for n, v in zip(self._names, row, strict=False) if not math.isfinite(v)]
            if not terms and row[-1] < 1:
                terms = [GRADIENT]
            if terms:
                names = [*self._names, GRAD_NORM]
                raise _error(place, terms, dict(zip(names, row, strict=False)))

    def metrics(self) -> dict[str, float]:
        """Mean losses over the workers and the steps, and the pace of this worker's interval.

        The mean norm of the gradient is that of the steps where it was finite.
        """
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        metrics: dict[str, float] = {}
        if not self.is_empty:
            table = self._table().double()
            num_losses = len(self._names)
            means = table[:, :num_losses].mean(0).tolist()
            metrics = {f"train/{n}": value for n, value in zip(self._names, means, strict=True)}
            metrics["train/loss"] = sum(metrics.values())
            norms = table[:, num_losses]
            finite = norms[norms.isfinite()]
            if len(finite):
                metrics[f"train/{GRAD_NORM}"] = float(finite.mean())
            if len(finite) < len(norms):
                metrics[SKIPPED_UPDATES] = float(len(norms) - len(finite))
        metrics["perf/images_per_s"] = self.num_steps * self._batch_size / elapsed
        metrics["perf/data_wait_fraction"] = min(1.0, self._waited_s / elapsed)
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
            metrics["perf/gpu_memory_gib"] = peak / 2**30
            torch.cuda.reset_peak_memory_stats(self._device)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The interval so far, the same on every worker, after a `check` of its last step."""
        return {"names": self._names, "steps": None if self.is_empty else self._table()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with an interval."""
        self.restart()
        self._names, self._earlier = list(state["names"]), state["steps"]

    def _own_table(self) -> Tensor:
        """(steps of this process, values) on the CPU, averaged over the workers."""
        if self._known is None:
            width = len(self._names) + 2
            rows = torch.stack(self._rows) if self._rows else torch.zeros(0, width)
            self._known = distributed.mean(rows).cpu() if self._rows else rows
        return self._known

    def _table(self) -> Tensor:
        own = self._own_table()
        return own if self._earlier is None else torch.cat([self._earlier, own])


def _error(place: _Place, terms: list[str], values: dict[str, float]) -> NonFiniteLossError:
    """Ask all workers for their images of the step, and say what is known."""
    of_workers = distributed.all_objects(place.image_ids)
    image_ids = tuple(image_id for one in of_workers for image_id in one)
    some = ", ".join(map(str, image_ids[:_NUM_NAMED_IMAGES]))
    if len(image_ids) > _NUM_NAMED_IMAGES:
        some += f" and {len(image_ids) - _NUM_NAMED_IMAGES} more"
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    return NonFiniteLossError(
        f"{' and '.join(terms)} became NaN or infinite in training step {place.step} (from 0; "
        f"learning rate {place.lr:.3g}; {metrics}; images {some}): lower optimizer.lr, lengthen "
        "schedule.warmup_steps or clip harder (optimizer.clip_threshold)",
        step=place.step,
        terms=tuple(terms),
        values=values,
        image_ids=image_ids,
        lr=place.lr,
    )
