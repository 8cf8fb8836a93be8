"""One training run of the learning benchmark, and the file that remembers the finished ones."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from contestants import Contestant, Name, contestant

from retina_ray.config import ExperimentConfig
from retina_ray.data.loading.local_stream import iterate
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.evaluation.coco import evaluate_coco
from retina_ray.evaluation.results import to_results
from retina_ray.structures import Batch
from retina_ray.train.spec import RunInputs

RUNS_FILE = "runs.jsonl"


@dataclass(frozen=True)
class Job:
    """A run to be made.

    Attributes:
        subject: the data set's name.
        name: who learns.
        config: complete; `data.train` and `data.val` are prepared sets.
    """

    subject: str
    name: Name
    config: ExperimentConfig

    @property
    def key(self) -> str:
        """The same for the same run only: any setting that changes makes another one."""
        content = json.dumps([self.subject, self.name, self.config.model_dump(mode="json")])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Score:
    """COCO's figures after an epoch, from 0 to 1."""

    epoch: int
    ap: float
    ap50: float
    ap75: float


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        key: of its job.
        subject: the data set's name.
        name: who learnt.
        seed: of weights, order and augmentation.
        lr: learning rate.
        scores: of each evaluation, the last one after the last epoch.
        train_cpu_s: CPU seconds of this process in training, input included.
        eval_cpu_s: the same in evaluation.
        num_skipped: steps left out, for a gradient that was not finite.
    """

    key: str
    subject: str
    name: Name
    seed: int
    lr: float
    scores: list[Score]
    train_cpu_s: float
    eval_cpu_s: float
    num_skipped: int

    @property
    def last(self) -> Score:
        """The score of the last epoch."""
        return self.scores[-1]


def run_all(jobs: Iterable[Job], work: Path, *, at_once: int, threads: int) -> dict[str, Run]:
    """Make the runs that are not in the folder's file yet, each in a process of its own.

    Args:
        jobs: to be made, in this order.
        work: folder; each run that ends is added to its `runs.jsonl` at once.
        at_once: runs side by side.
        threads: of torch in each.

    Returns:
        The run of each job by its key.
    """
    wanted = {job.key: job for job in jobs}
    file = work / RUNS_FILE
    runs = {run.key: run for run in _read(file) if run.key in wanted}
    missing = [job for key, job in wanted.items() if key not in runs]
    # A process for each run, so that none inherits another one's memory or caches.
    with ProcessPoolExecutor(
        at_once, mp_context=get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        for future in as_completed([pool.submit(train, job, threads) for job in missing]):
            run = future.result()
            runs[run.key] = run
            with file.open("a") as lines:
                # In a line of its own also after one that was cut short.
                lines.write("\n" * (lines.tell() > 0) + json.dumps(asdict(run)))
    return runs


def train(job: Job, threads: int) -> Run:
    """Make a run in this process: its plan's batches in order, without Ray."""
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(threads)
    config = job.config
    assert config.data.train is not None
    assert config.data.val is not None
    inputs = RunInputs(
        config, PreparedDataset.open(config.data.train), PreparedDataset.open(config.data.val)
    )
    truth = inputs.val.ground_truth()
    learner = contestant(job.name, config, num_steps=inputs.layout.num_steps)
    scores: list[Score] = []
    results: list[dict[str, Any]] = []
    seconds = {"train": 0.0, "val": 0.0}
    num_skipped = rows = 0
    begin = time.process_time()
    for planned in iterate(inputs.plan.worker_rows(0), inputs.loader):
        batch = planned.batch
        assert not batch.bad_images
        if planned.kind == "train":
            num_skipped += not learner.step(batch)
        else:
            results += _predicted(learner, batch, inputs.category_ids)
            rows += 1
        if rows == inputs.layout.num_val_rows_per_worker:
            found = evaluate_coco(truth, results, max_detections=config.inference.max_detections)
            scores.append(Score(planned.epoch + 1, found.AP, found.AP50, found.AP75))
            _say(job, scores[-1])
            results, rows = [], 0
        end = time.process_time()
        seconds[planned.kind] += end - begin
        begin = end
    seed, lr = config.train.seed, config.optimizer.lr
    cpu_s = seconds["train"], seconds["val"]
    return Run(job.key, job.subject, job.name, seed, lr, scores, *cpu_s, num_skipped)


def _predicted(
    learner: Contestant, batch: Batch, category_ids: list[int]
) -> Iterator[dict[str, Any]]:
    """Entries of COCO's results format."""
    sizes = batch.images.sizes.tolist()
    for found, image_id, original, (height, width) in zip(
        learner.predict(batch), batch.image_ids, batch.original_sizes, sizes, strict=True
    ):
        yield from to_results(
            found,
            image_id=image_id,
            original_size=original,
            resized_size=(height, width),
            category_ids=category_ids,
        )


def _say(job: Job, score: Score) -> None:
    config = job.config
    print(
        f"{time.strftime('%H:%M:%S')} {job.subject} {job.name} seed {config.train.seed} "
        f"lr {config.optimizer.lr:g} epoch {score.epoch}/{config.train.epochs}: "
        f"AP {score.ap:.3f} AP50 {score.ap50:.3f}",
        flush=True,
    )


def _read(file: Path) -> Iterator[Run]:
    """The finished runs; a line that was cut short is passed over, and its run made again."""
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            fields = json.loads(line)
        except json.JSONDecodeError:
            continue
        yield Run(**{**fields, "scores": [Score(**score) for score in fields["scores"]]})
