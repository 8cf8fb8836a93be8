"""What tests build from: paths, tiny configs, and runs without Ray."""

import contextlib
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from retina_ray.config import AnchorConfig, ExperimentConfig, ModelConfig, with_overrides
from retina_ray.data.loading.local_stream import iterate
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import record_from_row
from retina_ray.data.prepared.writer import ShardWriter
from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.run.worker import run_worker
from retina_ray.train.spec import RunInputs, RunSpec
from retina_ray.train.tracking.metrics_file import read_metrics

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
BCCD, COCO_TINY = SHARED_DATA / "bccd", SHARED_DATA / "coco_tiny"
"""Real data that is not part of the project; tests that use it are skipped where it is absent."""


def small_config(**overrides):
    """A model on images of 64 px that trains for seconds: its backbone stays as it is drawn.

    Group norm, so that batches do not mix images.
    """
    base = ExperimentConfig(
        model=ModelConfig(
            num_classes=3,
            backbone="resnet18",
            backbone_norm="gn",
            freeze_stages=5,
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
            "tracking.tensorboard": "off",
            "tracking.num_pictures": 0,
            **overrides,
        },
    )


ONE_EPOCH = {"train.epochs": 1, "schedule.warmup_steps": 1}

BY_HEART = {
    "model.backbone_norm": "bn",
    "model.freeze_stages": 0,
    "model.fpn_channels": 64,
    "input.flip": "none",
    "optimizer.lr": 2e-3,
    "train.epochs": 60,
    "train.eval_every_epochs": 60,
    "train.batch_size": 2,
}
"""What a model that trains as a whole needs to learn two images by heart, in about 2 s."""


def damaged_copy(data, folder, positions):
    """A copy of a set of one row group, of which these images are no images any more."""
    source = PreparedDataset.open(data)
    with ShardWriter(folder, name="t", split="x", categories=source.info.categories) as writer:
        for number, row in enumerate(source.read_row_group(0, 0).to_pylist()):
            record = record_from_row(row)
            writer.add(replace(record, image=b"noise") if number in positions else record)
    return str(folder)


def make_spec(config, data, folder, name="run", **changes):
    """A run over a set that is training and validation set at once."""
    spec = RunSpec(
        config=config,
        train_uri=data,
        val_uri=data,
        run_uri=str(Path(folder) / name),
        name=name,
        run_id=name,
    )
    return replace(spec, **changes)


def run_here(spec, *, num_workers=None, stop_after_rows=None, on_row=None, report=None, **options):
    """Run in this process, without Ray, from the last checkpoint on.

    Args:
        spec: the run.
        num_workers: of the plan; this is the first of them.
        stop_after_rows: break off as a killed process would after so many rows of the plan.
        on_row: called with each row before it is handed out.
        report, options: of `run_worker`.
    """
    inputs, start = RunInputs.open(spec, num_workers), spec.start_step()
    rows = inputs.plan.worker_rows(0, start, validate_first=spec.validates_first())

    def batches():
        for number, batch in enumerate(iterate(rows, inputs.loader)):
            if number == stop_after_rows:
                raise Killed
            if on_row is not None:
                on_row(batch)
            yield batch

    torch.set_num_threads(1)
    run_worker(
        spec,
        inputs,
        batches(),
        start_step=start,
        device=torch.device("cpu"),
        report=report or (lambda metrics, uri: None),
        **options,
    )


@contextlib.contextmanager
def small_disk(folder, *, size):
    """A file system of a size (`64k`, `2m`) of its own; skips where none may be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def save_checkpoint(store, checkpoint, *, metric=None):
    """Write a checkpoint at once, without a lease; its URI."""
    entry = store.index.new_entry(checkpoint.meta.step, metric)
    store.add(entry, checkpoint, store.index)
    return store.uri_of(entry.name)


class Killed(Exception):  # noqa: N818 - not an error, the end of a process
    """Stands for the end of the process."""


@dataclass
class Harness:
    """Makes runs over one set in one folder, and keeps what they report."""

    root: object
    data: str
    reports: list = field(default_factory=list)

    def spec(self, config, name="run", **changes):
        return make_spec(config, self.data, self.root, name, **changes)

    def run(self, spec, **options):
        """See `run_here`."""
        run_here(spec, report=lambda *one: self.reports.append(one), **options)


def logged(spec, key):
    """(step, value) of every line of a run's record that has a metric."""
    lines = read_metrics(f"{spec.run_uri}/metrics.jsonl")
    return [(line["step"], line["metrics"][key]) for line in lines if key in line["metrics"]]


def assert_same_weights(spec, other):
    """The last checkpoints of two runs are of one step and equal bit for bit."""
    ours, theirs = (load_checkpoint(one.checkpoints.last) for one in (spec, other))
    assert ours.meta.step == theirs.meta.step
    for mine, wanted in ((ours.model, theirs.model), (ours.ema or {}, theirs.ema or {})):
        assert mine.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(mine[name], tensor), name
