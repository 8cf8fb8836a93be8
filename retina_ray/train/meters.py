"""Figures of a logging interval, kept on the device so that no step waits for them."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from retina_ray.train import distributed

__all__ = ["NonFiniteLossError", "StepMeter"]


class NonFiniteLossError(RuntimeError):
    """A loss term became NaN or infinite."""


class StepMeter:
    """Sums of the loss terms, images per second, and the share of time spent waiting for data."""

    def __init__(self, device: torch.device, *, batch_size: int) -> None:
        """Start an interval; `batch_size` is the images of a step over all workers."""
        self._device = device
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Begin a new interval."""
        self._sums: dict[str, Tensor] = {}
        self.num_steps = 0
        self._waited_s = 0.0
        self._started = time.perf_counter()

    def waited(self, seconds: float) -> None:
        """Add time in which the step stood still for its batch."""
        self._waited_s += seconds

    def update(self, losses: dict[str, Tensor]) -> None:
        """Add the losses of a step; NaN and infinity stay in the sums and are found later."""
        for name, loss in losses.items():
            self._sums[name] = self._sums[name] + loss if name in self._sums else loss
        self.num_steps += 1

    def non_finite_terms(self) -> list[str]:
        """Name the loss terms that were NaN or infinite on any worker (waits for the device)."""
        if not self._sums:
            return []
        finite = distributed.mean(torch.stack(list(self._sums.values())).float()).isfinite()
        return [name for name, ok in zip(self._sums, finite.tolist(), strict=True) if not ok]

    def metrics(self) -> dict[str, float]:
        """Mean losses over the workers and the steps, and the pace of this worker's interval."""
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        means = distributed.mean(torch.stack(list(self._sums.values())).float() / self.num_steps)
        figures = {
            f"train/{name}": value for name, value in zip(self._sums, means.tolist(), strict=True)
        }
        figures["train/loss"] = sum(figures.values())
        figures["perf/images_per_s"] = self.num_steps * self._batch_size / elapsed
        figures["perf/data_wait_fraction"] = min(1.0, self._waited_s / elapsed)
        return figures
