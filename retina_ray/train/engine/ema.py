"""An exponential moving average of the weights, which evaluates better than the last step's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def decay_at(num_updates: int, decay: float) -> float:
    """The decay of an update: small at first, so that the random start is soon forgotten.

    min(decay, (1 + t) / (10 + t)), as TensorFlow's `tf.train.ExponentialMovingAverage` with its
    argument `num_updates`.

    """
    return min(decay, (1 + num_updates) / (10 + num_updates))


class WeightAverage:
    """Keeps an average of the parameters that a model learns, on their device, in float32.

    Frozen parameters do not move, so they need none. Buffers, such as the statistics of batch norm,
    are the model's own: they are averages already.

    It holds no second model. `applied` exchanges the storage of the weights and of their average,
    which copies nothing, so the trained weights come back as they were to the last bit.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the weights of a model on its device.

        Its parameters must not be replaced later (their values may).
        """
        self._model = model
        learnt = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._names = list(learnt)
        self._parameters: list[Tensor] = list(learnt.values())
        self._averages = [p.detach().clone() for p in self._parameters]
        self.decay = decay
        self.num_updates = 0

    def update(self) -> None:
        """Move the average towards the weights, after a step; one kernel for many of them."""
        average = get_ema_multi_avg_fn(decay_at(self.num_updates, self.decay))
        average(self._averages, self._parameters, self.num_updates)
        self.num_updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the average for its weights; do not train in there."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def weights(self) -> dict[str, Tensor]:
        """A state dict of the model with the average in it; like any, it is no copy."""
        with self.applied():
            return dict(self._model.state_dict())

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor], *, num_updates: int) -> None:
        """Go on from what `weights` and `num_updates` were.

        Raises:
            KeyError: the average of a parameter is missing.
        """
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(weights[name])
        self.num_updates = num_updates

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew from the weights that the model has now."""
        for parameter, average in zip(self._parameters, self._averages, strict=True):
            average.copy_(parameter)
        self.num_updates = 0

    def _exchange(self) -> None:
        for i, parameter in enumerate(self._parameters):
            self._averages[i], parameter.data = parameter.data, self._averages[i]
