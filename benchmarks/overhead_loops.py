"""The loops of `train_overhead.py`: a bare one, and those that it is held against, in turns.

Whoever trains asks an iterator for its batches. The one made here passes real batches on, and
between two rounds of them, when it is asked for the next, it has the bare loop train as many steps
before it answers. So a loop is timed without a change to it, in whatever process it runs, and what
else the machine does meets both alike.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from retina_ray.config import ExperimentConfig
from retina_ray.data.loading.local_stream import iterate
from retina_ray.data.loading.unpack import PlannedBatch
from retina_ray.model import RetinaNet, RetinaNetCriterion
from retina_ray.structures import Batch, ImageBatch, Targets
from retina_ray.train.engine.callbacks import Snapshot
from retina_ray.train.engine.loop import TrainingLoop
from retina_ray.train.engine.optim import build_optimizer
from retina_ray.train.engine.schedule import build_schedule
from retina_ray.train.engine.validation import Predictions
from retina_ray.train.spec import RunInputs, RunSpec

WARM_UP = 2
"""Rounds of each loop that are not timed."""

NUM_KEPT = 8
"""Batches that the bare loop trains on, over and over."""

STORE_BYTES = 80 * 2**20
"""Of Ray's object store; it takes no less than 75 MiB."""

RESULT = "turns.json"
"""In the run's folder: what its worker has measured."""


@dataclass(frozen=True)
class Round:
    """What some steps took.

    Attributes:
        wall_s: by the clock.
        thread_s: CPU seconds of the thread that trains.
        process_s: of all threads of its process.
        others_s: of the other processes that were watched.
    """

    wall_s: float
    thread_s: float
    process_s: float
    others_s: float


@dataclass(frozen=True)
class Measured:
    """A loop against the bare one, round by round, and the moments of its start.

    Attributes:
        bare: rounds of the bare loop.
        loop: rounds of the other, each of the same minute.
        asked_at: seconds since 1970, when the run was asked for; likewise the next ones.
        entered_at: when its loop was built, or its worker ran.
        first_batch_at: when its first batch came.
        first_step_at: when it came for its second batch.
    """

    bare: list[Round]
    loop: list[Round]
    asked_at: float
    entered_at: float
    first_batch_at: float
    first_step_at: float

    def of(self, figure: str) -> tuple[list[float], list[float]]:
        """A figure of the bare loop's rounds, and of the other's."""
        bare, loop = ([getattr(r, figure) for r in rounds] for rounds in (self.bare, self.loop))
        return bare, loop


class BareLoop:
    """The same step as one writes it by hand: nothing is checked, counted or written down."""

    def __init__(self, config: ExperimentConfig, *, device: torch.device, num_steps: int) -> None:
        """Build what is trained, with the weights that a run of this config starts from.

        Args:
            config: of a run in fp32 or bf16, without accumulation and average.
            device: where to train.
            num_steps: of the run, for its schedule.
        """
        torch.manual_seed(config.train.seed)
        self.model = RetinaNet.from_config(config.model)
        self.model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self._criterion = RetinaNetCriterion.from_config(config).to(device)
        self._optimizer = build_optimizer(
            self.model, config.optimizer, batch_size=config.train.batch_size
        )
        self._schedule = build_schedule(self._optimizer, config.schedule, num_steps)
        # A norm depends on the order in its last bits: the run's is that of the groups.
        self._learnt = [p for group in self._optimizer.param_groups for p in group["params"]]
        self._clip, self._threshold = config.optimizer.clip, config.optimizer.clip_threshold
        self._is_mixed = config.train.precision == "bf16"
        self._device = device

    def train(self, batches: Iterable[Batch]) -> None:
        """Make a step of each batch."""
        for in_memory in batches:
            batch = in_memory.to(self._device)
            self._optimizer.zero_grad(set_to_none=True)
            autocast = torch.autocast(self._device.type, dtype=torch.bfloat16)
            with autocast if self._is_mixed else nullcontext():
                outputs = self.model(batch.images)
            losses = self._criterion(outputs, batch.targets)
            torch.stack(list(losses.values())).sum().backward()
            if self._clip == "norm":
                clip_grad_norm_(self._learnt, self._threshold)
            elif self._clip == "value":
                clip_grad_value_(self._learnt, self._threshold)
            self._optimizer.step()
            self._schedule.step()


@dataclass
class Turns:
    """Passes batches to a training loop, and lets a bare one train in between.

    Attributes:
        build_bare: called when the loop that is measured has warmed up.
        device: where both train.
        steps: of a round.
        num_rounds: timed rounds of each loop.
        others: CPU seconds so far of other processes to watch, each under its id.
        bare: the bare loop, once it is built.
        bare_rounds: what was measured of it.
        loop_rounds: what was measured of the other.
        first_batch_at: see `Measured`.
        first_step_at: likewise.
    """

    build_bare: Callable[[], BareLoop]
    device: torch.device
    steps: int
    num_rounds: int
    others: Callable[[], dict[int, float]] = dict
    bare: BareLoop = field(init=False)
    bare_rounds: list[Round] = field(init=False, default_factory=list)
    loop_rounds: list[Round] = field(init=False, default_factory=list)
    first_batch_at: float = field(init=False, default=0.0)
    first_step_at: float = field(init=False, default=0.0)

    def through(self, batches: Iterable[PlannedBatch]) -> Iterator[PlannedBatch]:
        """Yield the batches of all rounds; the rest is left where it is."""
        iterator = iter(batches)
        kept: list[Batch] = []
        for planned in itertools.islice(iterator, WARM_UP * self.steps):
            self.first_batch_at = self.first_batch_at or time.time()
            if len(kept) < NUM_KEPT:
                kept.append(_copy(planned.batch))
            yield planned
            self.first_step_at = self.first_step_at or time.time()
        endless = itertools.cycle(kept)
        self.bare = self.build_bare()
        self.bare.train(itertools.islice(endless, WARM_UP * self.steps))
        for number in range(self.num_rounds):  # first the one, then the other
            if number % 2:
                yield from self._loop(iterator)
            self._bare(endless)
            if not number % 2:
                yield from self._loop(iterator)

    def _bare(self, batches: Iterator[Batch]) -> None:
        clock = _Clock(self)
        self.bare.train(itertools.islice(batches, self.steps))
        self.bare_rounds.append(clock.stop())

    def _loop(self, batches: Iterator[PlannedBatch]) -> Iterator[PlannedBatch]:
        """Yield a round; it ends when the loop, done with the last batch, comes for another."""
        clock = _Clock(self)
        yield from itertools.islice(batches, self.steps)
        self.loop_rounds.append(clock.stop())


class _Clock:
    """Runs from its making to `stop`; what it does itself lies outside."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._others = turns.others()
        self._synchronize()
        self._thread_s, self._process_s = time.thread_time(), time.process_time()
        self._started = time.perf_counter()

    def stop(self) -> Round:
        self._synchronize()
        wall_s = time.perf_counter() - self._started
        process_s = time.process_time() - self._process_s
        thread_s = time.thread_time() - self._thread_s
        others = self._turns.others()
        others_s = sum(s - self._others.get(process, 0.0) for process, s in others.items())
        return Round(wall_s, thread_s, process_s, others_s)

    def _synchronize(self) -> None:
        if self._turns.device.type == "cuda":
            torch.cuda.synchronize(self._turns.device)


def _copy(batch: Batch) -> Batch:
    """A batch in memory of its own, page-locked where it was."""

    def copy(tensor: Tensor) -> Tensor:
        return tensor.clone().pin_memory() if tensor.is_pinned() else tensor.clone()

    images = ImageBatch(copy(batch.images.pixels), copy(batch.images.sizes))
    targets = Targets(copy(batch.targets.boxes), copy(batch.targets.labels))
    return replace(batch, images=images, targets=targets)


def _turns_of(spec: RunSpec, inputs: RunInputs, device: torch.device, **others: Any) -> Turns:
    """The turns of a run's loop and a bare one like it."""
    num_steps = inputs.layout.num_steps
    build = functools.partial(BareLoop, spec.config, device=device, num_steps=num_steps)
    return Turns(build, device, **others)


class _Silent:
    """Callbacks that do nothing with what they are told."""

    def on_log(self, metrics: dict[str, float], *, step: int) -> None: ...

    def on_bad_images(self, bad: dict[str, str]) -> None: ...

    def score(self, found: Predictions, *, step: int) -> dict[str, float]:
        return {}

    def on_validation_end(self, metrics: dict[str, float], snapshot: Snapshot | None) -> None: ...

    def validation_is_done(self) -> bool:
        return True

    def take_validation(self, *, step: int) -> tuple[dict[str, float], dict[str, str]]:
        return {}, {}

    def on_last_validation(self, metrics: dict[str, float], *, step: int, epoch: int) -> None: ...

    def on_checkpoint(self, snapshot: Snapshot | None) -> None: ...

    def stop_reason(self) -> str | None:
        return None


def without_ray(
    spec: RunSpec, device: torch.device, *, steps: int, num_rounds: int
) -> tuple[Measured, int]:
    """The training loop on batches in memory.

    Args:
        spec: the run.
        device: where to train.
        steps: of a round.
        num_rounds: timed rounds of each loop.

    Returns:
        What was measured, and how many tensors of the two trained models differ in the end.
    """
    inputs = RunInputs.open(spec)
    rows = inputs.plan.segment(0).slice(0, NUM_KEPT)
    batches = list(iterate(rows, inputs.loader, pin_memory=device.type == "cuda"))
    turns = _turns_of(spec, inputs, device, steps=steps, num_rounds=num_rounds)
    asked_at = time.time()
    loop = TrainingLoop(spec.config, inputs.layout, device, inputs.category_ids, _Silent())
    entered_at = time.time()
    loop.run(turns.through(_endless(batches)))
    ours, bare = loop.model.state_dict(), turns.bare.model.state_dict()
    num_differing = sum(not torch.equal(ours[name], bare[name]) for name in bare)
    times = (asked_at, entered_at, turns.first_batch_at, turns.first_step_at)
    return Measured(turns.bare_rounds, turns.loop_rounds, *times), num_differing


def _endless(batches: list[PlannedBatch]) -> Iterator[PlannedBatch]:
    for step, planned in enumerate(itertools.cycle(batches)):
        yield replace(planned, step=step)


def through_ray(spec: RunSpec, *, steps: int, num_rounds: int) -> tuple[Measured, dict[str, float]]:
    """A run of one Ray Train worker, on a Ray of this machine.

    Args:
        spec: the run; more than is timed.
        steps: of a round.
        num_rounds: timed rounds of each loop.

    Returns:
        What was measured, and what took how many seconds before the run.
    """
    os.environ.pop("RAY_ADDRESS", None)  # what is asked is what this machine does
    os.environ["RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES"] = str(STORE_BYTES)  # read on import
    begin = time.perf_counter()
    # Here, so that the other loops are measured where Ray is not installed.
    import ray

    from retina_ray.train.run import trainer
    from retina_ray.train.run.resources import ResourceRequest, connect

    imported = time.perf_counter()
    cluster = connect(spec.config)
    seconds = {"imports of Ray": imported - begin, "start of Ray": time.perf_counter() - imported}
    try:
        store_bytes = ray.cluster_resources()["object_store_memory"]
        if store_bytes > STORE_BYTES:
            raise RuntimeError(f"Ray's object store has {store_bytes:g} B, not {STORE_BYTES}")
        request = ResourceRequest.of(spec.config, cluster)
        request.require(cluster)
        asked_at = time.time()
        worker = _worker_in_turns(steps=steps, num_rounds=num_rounds)
        with mock.patch.object(trainer, "_worker_in_group", worker):
            trainer.fit(spec, request)
    finally:
        ray.shutdown()
    found = json.loads(Path(spec.run_uri, RESULT).read_text())
    bare, loop = ([Round(**one) for one in found.pop(name)] for name in ("bare", "loop"))
    return Measured(bare, loop, asked_at=asked_at, **found), seconds


def _worker_in_turns(*, steps: int, num_rounds: int) -> Callable[[dict[str, Any]], None]:
    """The entry point of a Ray Train worker: the real one, whose batches go through the turns."""
    beside = functools.partial(cpu_seconds_beside, os.getpid())

    def worker(train_loop_config: dict[str, Any]) -> None:
        from retina_ray.train.run import trainer

        entered_at, run_worker = time.time(), trainer.run_worker

        def in_turns(
            spec: RunSpec, inputs: RunInputs, batches: Iterable[PlannedBatch], **others: Any
        ) -> None:
            device = others["device"]
            turns = _turns_of(
                spec, inputs, device, steps=steps, num_rounds=num_rounds, others=beside
            )
            run_worker(spec, inputs, turns.through(batches), **others)
            found = {
                "bare": [asdict(one) for one in turns.bare_rounds],
                "loop": [asdict(one) for one in turns.loop_rounds],
                "entered_at": entered_at,
                "first_batch_at": turns.first_batch_at,
                "first_step_at": turns.first_step_at,
            }
            Path(spec.run_uri, RESULT).write_text(json.dumps(found))

        with mock.patch.object(trainer, "run_worker", in_turns):
            trainer._worker_in_group(train_loop_config)

    return worker


def cpu_seconds_beside(driver: int) -> dict[int, float]:
    """CPU seconds so far of each process of a driver and its Ray, but this one's."""
    root = psutil.Process(driver)
    seconds = {}
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if process.pid != os.getpid():
                times = process.cpu_times()
                seconds[process.pid] = times.user + times.system
    return seconds
