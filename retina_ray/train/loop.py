"""The training loop of one worker: batches in, steps, evaluations and checkpoints out.

It knows nothing of Ray: the batches come from an iterator, and what it has to say goes to a
`Host`. So the same loop runs inside a Ray Train worker, inside a Tune trial and in a bare process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from retina_ray.config import ConfigError, ExperimentConfig
from retina_ray.data.unpack import PlannedBatch
from retina_ray.model import RetinaNet, RetinaNetCriterion
from retina_ray.model.coders import make_coder
from retina_ray.model.weights import load_backbone
from retina_ray.train import distributed
from retina_ray.train.checkpoints import Checkpoint
from retina_ray.train.compilation import compile_forward
from retina_ray.train.meters import NonFiniteLossError, StepMeter
from retina_ray.train.optim import build_optimizer, clip_gradients
from retina_ray.train.schedule import build_schedule
from retina_ray.train.validation import RoundResult, ValidationRound

logger = logging.getLogger(__name__)

__all__ = ["Host", "NonFiniteLossError", "RunShape", "TrainingLoop"]

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class RunShape:
    """What the plan says of the run as a whole.

    Attributes:
        num_steps: training steps of the whole run.
        steps_per_epoch: training steps of an epoch.
        val_rows_per_worker: validation batches that each worker sees in a round.
        start_step: training steps that are already done.
    """

    num_steps: int
    steps_per_epoch: int
    val_rows_per_worker: int
    start_step: int = 0


class Host(Protocol):
    """Who the loop reports to; on every rank, but only rank 0's figures are kept."""

    def log_step(self, metrics: dict[str, float], *, step: int) -> None:
        """Take the training figures of a logging interval (rank 0 only)."""

    def saw_bad_images(self, bad: dict[str, str]) -> None:
        """Take file names and reasons of images that the stream of any worker had to replace.

        Called with the same on every rank, so what it raises is raised by all of them at once.
        """

    def evaluated(self, result: RoundResult, *, step: int) -> dict[str, float]:
        """Score the gathered predictions of a validation round (rank 0 only)."""
        ...

    def round_ended(
        self, metrics: dict[str, float], *, step: int, epoch: int, loop: TrainingLoop
    ) -> None:
        """End a validation round: keep a checkpoint (rank 0) and report (every rank)."""


@dataclass
class TrainingLoop:
    """One worker's training run.

    Attributes:
        config: the experiment, with `model.num_classes` set.
        shape: steps and validation rounds of the run.
        device: where the model lives.
        category_ids: original category id of each label, for the predictions.
        host: who is told.
    """

    config: ExperimentConfig
    shape: RunShape
    device: torch.device
    category_ids: list[int]
    host: Host
    step: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Build the model and all that trains it; the same weights on every worker."""
        config = self.config
        torch.manual_seed(config.train.seed)
        self.model = RetinaNet.from_config(config.model)
        if config.model.backbone_weights is not None and self.shape.start_step == 0:
            load_backbone(self.model.backbone, config.model.backbone_weights)
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.train.compile == "all":
            compile_forward(self.model)
        self.criterion = RetinaNetCriterion.from_config(config).to(self.device)
        self.optimizer = build_optimizer(
            self.model, config.optimizer, batch_size=config.train.batch_size
        )
        self.schedule = build_schedule(self.optimizer, config.schedule, self.shape.num_steps)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=config.train.precision == "fp16"
        )
        self._wrapped: nn.Module = self.model
        self._bad_images: dict[str, str] = {}  # of this worker, since it last shared them

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this run."""
        assert checkpoint.state is not None
        self.model.load_state_dict(checkpoint.model)
        self.criterion.load_state_dict(checkpoint.state["criterion"])
        self.optimizer.load_state_dict(checkpoint.state["optimizer"])
        self.schedule.load_state_dict(checkpoint.state["schedule"])
        self.scaler.load_state_dict(checkpoint.state["scaler"])
        torch.set_rng_state(checkpoint.state["rng"])
        self.step = checkpoint.meta.step

    def init_from(self, checkpoint: Checkpoint) -> None:
        """Start from the weights of another run's checkpoint, as far as they fit.

        Raises:
            ConfigError: nothing in the checkpoint fits this model.
        """
        own = self.model.state_dict()
        fitting = {
            name: tensor
            for name, tensor in checkpoint.model.items()
            if name in own and own[name].shape == tensor.shape
        }
        if not fitting:
            raise ConfigError("--init-from: no weight of that checkpoint fits this model")
        left = sorted(own.keys() - fitting.keys())
        if left:
            logger.warning("--init-from: %d weights start afresh: %s", len(left), ", ".join(left))
        self.model.load_state_dict(fitting, strict=False)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the weights."""
        return {
            "criterion": self.criterion.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def run(self, batches: Iterable[PlannedBatch]) -> None:
        """Train over the planned batches to their end.

        Raises:
            NonFiniteLossError: a loss term became NaN or infinite (on every worker at once).
            TooManyBadImagesError: too many images could not be decoded (likewise).
        """
        self._wrap()
        self.model.train()
        meter = StepMeter(self.device, batch_size=self.config.train.batch_size)
        round_ = None
        waiting = time.perf_counter()
        for planned in batches:
            meter.waited(time.perf_counter() - waiting)
            self._bad_images.update(planned.batch.bad_images)
            if planned.kind == "train":
                losses = self._train_step(planned)
                meter.update(losses)
                self.step += 1
                if self._is_logging_step():
                    self._log(meter)
            else:
                if round_ is None:
                    self._check(meter)
                    round_ = ValidationRound(
                        self.config.inference,
                        make_coder(self.config.model),
                        self.category_ids,
                        num_samples=self.config.tracking.num_pictures,
                    )
                    self.model.eval()
                round_.add(self.model, planned.batch.to(self.device))
                if round_.num_batches == self.shape.val_rows_per_worker:
                    self._end_round(round_, planned.epoch)
                    round_ = None
                    self.model.train()
                    meter.restart()
            waiting = time.perf_counter()

    def _wrap(self) -> None:
        if not distributed.is_active():
            return
        ids = [self.device.index] if self.device.type == "cuda" else None
        self._wrapped = DistributedDataParallel(
            self.model, device_ids=ids, gradient_as_bucket_view=True
        )

    def _train_step(self, planned: PlannedBatch) -> dict[str, Tensor]:
        batch = planned.batch.to(self.device)
        with self._autocast():
            outputs = self._wrapped(batch.images)
        losses = self.criterion(outputs, batch.targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(sum(losses.values(), torch.zeros((), device=self.device))).backward()
        self.scaler.unscale_(self.optimizer)
        clip_gradients(self.model.parameters(), self.config.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def _autocast(self) -> torch.autocast:
        precision = self.config.train.precision
        return torch.autocast(
            self.device.type,
            dtype=AUTOCAST.get(precision, torch.bfloat16),
            enabled=precision in AUTOCAST,
        )

    def _is_logging_step(self) -> bool:
        return self.step % self.config.train.log_every_steps == 0

    def _log(self, meter: StepMeter) -> None:
        self._check(meter)
        metrics = meter.metrics()
        metrics["train/lr"] = self.optimizer.param_groups[0]["lr"]
        metrics["train/epoch"] = self.step / self.shape.steps_per_epoch
        meter.restart()
        if distributed.rank() == 0:
            self.host.log_step(metrics, step=self.step)

    def _check(self, meter: StepMeter) -> None:
        """Stop on every worker alike if a loss since the last look was not finite.

        Or if too many images could not be decoded.
        """
        self._share_bad_images()
        bad = meter.non_finite_terms()
        if bad:
            raise NonFiniteLossError(
                f"{' and '.join(bad)} became NaN or infinite within the last "
                f"{meter.num_steps} step(s) before step {self.step} (learning rate "
                f"{self.optimizer.param_groups[0]['lr']:.3g}): lower optimizer.lr, lengthen "
                "schedule.warmup_steps or clip harder (optimizer.clip_threshold)"
            )

    def _share_bad_images(self) -> None:
        new = distributed.union(self._bad_images, self.device)
        self._bad_images = {}
        if new:
            self.host.saw_bad_images(new)

    def _end_round(self, round_: ValidationRound, epoch: int) -> None:
        """Gather, score, keep a checkpoint, report."""
        self._share_bad_images()
        gathered = round_.gather()
        metrics = {}
        if distributed.rank() == 0:
            metrics = self.host.evaluated(gathered, step=self.step)
        self.host.round_ended(metrics, step=self.step, epoch=epoch + 1, loop=self)
