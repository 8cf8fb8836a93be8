"""What tests build from: paths, tiny configs, and runs without Ray."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from retina_ray.config import AnchorConfig, ExperimentConfig, ModelConfig, with_overrides
from retina_ray.data.loading.local_stream import iterate
from retina_ray.train.run.worker import run_worker
from retina_ray.train.spec import RunInputs, RunSpec

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
BCCD, COCO_TINY = SHARED_DATA / "bccd", SHARED_DATA / "coco_tiny"
"""Real data that is not part of the project; tests that use it are skipped where it is absent."""


def small_config(**overrides):
    """ResNet-18 from scratch on pictures of 64 px: seconds for an epoch of 8 pictures."""
    base = ExperimentConfig(
        model=ModelConfig(
            num_classes=3,
            backbone="resnet18",
            backbone_norm="gn",
            freeze_stages=0,
            max_level=5,
            fpn_channels=32,
            head_num_convs=1,
            head_norm="gn",
            anchors=AnchorConfig(sizes=(12.0, 24.0, 48.0)),
        )
    )
    return with_overrides(
        base,
        {
            "input.train_sizes_px": (64,),
            "input.train_max_size_px": 64,
            "input.eval_size_px": 64,
            "input.eval_max_size_px": 64,
            "optimizer.name": "adamw",
            "optimizer.lr": 1e-3,
            "optimizer.clip": "norm",
            "schedule.name": "cosine",
            "schedule.warmup_steps": 2,
            "train.epochs": 2,
            "train.batch_size": 4,
            "train.eval_batch_size": 4,
            "train.log_every_steps": 1,
            "tracking.wandb": "disabled",
            **overrides,
        },
    )


@dataclass
class Harness:
    """Runs a worker in this process over a set that is training and validation set at once."""

    root: object
    data: str
    reports: list = field(default_factory=list)

    def spec(self, config, name="run", **changes):
        spec = RunSpec(
            config=config,
            train_uri=self.data,
            val_uri=self.data,
            run_uri=str(self.root / name),
            name=name,
            run_id=name,
        )
        return replace(spec, **changes)

    def run(self, spec, *, stop_after_rows=None, on_row=None, **options):
        """Run to the end, or break off as a killed process would after some rows of the plan.

        `on_row` is called with a row's step before it is handed out; `options` are `run_worker`'s.
        """
        inputs, start = RunInputs.open(spec), spec.start_step()
        rows = inputs.plan.worker_rows(0, start)
        batches = iterate(rows, inputs.loader)
        if stop_after_rows is not None:
            batches = _broken_off(batches, stop_after_rows)
        if on_row is not None:
            batches = _watched(batches, on_row)
        run_worker(
            spec,
            inputs,
            batches,
            start_step=start,
            device=torch.device("cpu"),
            report=lambda metrics, uri: self.reports.append((metrics, uri)),
            **options,
        )


class Killed(Exception):  # noqa: N818 - not an error, the end of a process
    """Stands for the end of the process."""


def _watched(batches, on_row):
    for batch in batches:
        on_row(batch.step)
        yield batch


def _broken_off(batches, num_rows):
    for number, batch in enumerate(batches):
        if number == num_rows:
            raise Killed
        yield batch
