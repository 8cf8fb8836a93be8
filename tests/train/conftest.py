"""A small run on a few drawn pictures, as the tests of this folder need it. No Ray."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from retina_ray.config import AnchorConfig, ExperimentConfig, ModelConfig, with_overrides
from retina_ray.data.local import iterate
from retina_ray.data.schema import record_from_row
from retina_ray.data.shards import PreparedDataset, ShardWriter
from retina_ray.data.synthetic import make_shapes
from retina_ray.train.spec import RunInputs, RunSpec
from retina_ray.train.worker import run_worker


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


@pytest.fixture(scope="session")
def eight_pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "train"
    make_shapes(str(folder), num_images=8, size_px=64, seed=3, split="train")
    return str(folder)


@pytest.fixture
def damaged_pictures(tmp_path, eight_pictures):
    """The eight pictures, two of which are no images any more."""
    folder = tmp_path / "damaged"
    source = PreparedDataset.open(eight_pictures)
    with ShardWriter(folder, name="t", split="x", categories=source.info.categories) as writer:
        for number, row in enumerate(source.read_row_group(0, 0).to_pylist()):
            record = record_from_row(row)
            writer.add(replace(record, image=b"noise") if number in (2, 5) else record)
    names = source.annotations()["file_name"].to_pylist()
    return str(folder), {names[2], names[5]}


@pytest.fixture
def harness(tmp_path, eight_pictures):
    torch.set_num_threads(1)
    return Harness(tmp_path, eight_pictures)
