"""The model of a run with all that trains it: loss, optimizer, schedule, scaler, average."""

from __future__ import annotations

import logging
from typing import Any

import torch

from retina_ray.config import ExperimentConfig
from retina_ray.model import RetinaNet, RetinaNetCriterion
from retina_ray.model.weights import load_backbone
from retina_ray.train.checkpoint.compatibility import fitting_weights
from retina_ray.train.checkpoint.format import Checkpoint
from retina_ray.train.engine.compilation import compile_forward
from retina_ray.train.engine.ema import WeightAverage
from retina_ray.train.engine.optim import build_optimizer
from retina_ray.train.engine.schedule import build_schedule

logger = logging.getLogger(__name__)


class Learner:
    """What the steps of a run change, apart from the steps."""

    def __init__(
        self, config: ExperimentConfig, *, device: torch.device, num_steps: int, is_new: bool
    ) -> None:
        """Build everything; the same weights on every worker.

        Where `is_new` is false, a checkpoint follows, and the weights' file is not read.
        """
        train = config.train
        torch.manual_seed(train.seed)
        self.model = RetinaNet.from_config(config.model)
        if config.model.backbone_weights is not None and is_new:
            load_backbone(self.model.backbone, config.model.backbone_weights)
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if train.compile == "all":
            compile_forward(self.model)
        self.criterion = RetinaNetCriterion.from_config(config).to(device)
        self.optimizer = build_optimizer(self.model, config.optimizer, batch_size=train.batch_size)
        self.schedule = build_schedule(self.optimizer, config.schedule, num_steps)
        self.scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
        self.average = (
            None if train.ema_decay is None else WeightAverage(self.model, train.ema_decay)
        )

    @property
    def lr(self) -> float:
        """The learning rate of the next step, of the first parameter group."""
        return self.optimizer.param_groups[0]["lr"]

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the weights and their average."""
        return {
            "criterion": self.criterion.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.average is None else {"num_updates": self.average.num_updates},
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same run."""
        state = checkpoint.state
        assert state is not None
        self.model.load_state_dict(checkpoint.model)
        self.criterion.load_state_dict(state["criterion"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            assert checkpoint.ema is not None
            self.average.load(checkpoint.ema, num_updates=state["ema"]["num_updates"])

    def init_from(self, checkpoint: Checkpoint) -> None:
        """Start from the weights of another run, as far as they fit.

        Where that run kept an average of its weights, that is what is taken.

        Raises:
            ConfigError: nothing in the checkpoint fits this model.
        """
        match = fitting_weights(self.model.state_dict(), checkpoint.weights)
        if not match.is_complete:
            logger.warning("--init-from: %s", match.describe())
        self.model.load_state_dict(match.fitting, strict=False)
        if self.average is not None:
            self.average.restart()
