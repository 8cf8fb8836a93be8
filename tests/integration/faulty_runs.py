"""Runs that something happens to, and what is compared with the run that nothing happened to."""

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import ray.cloudpickle
import torch

from retina_ray.data.loading.local_stream import iterate
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import record_from_row
from retina_ray.data.prepared.writer import ShardWriter
from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.engine import loop
from retina_ray.train.run import trainer
from retina_ray.train.run.resources import Footprint
from retina_ray.train.run.worker import run_worker
from retina_ray.train.spec import RunInputs, RunSpec
from retina_ray.train.tracking.metrics_file import read_metrics

# Workers cannot import what lies beside the tests: its functions travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

ONE = Footprint(num_workers=1, cpus_per_worker=1, use_gpu=False)
TWO = Footprint(num_workers=2, cpus_per_worker=1, use_gpu=False)


def make_spec(config, data, folder, name="run"):
    return RunSpec(
        config=config,
        train_uri=data,
        val_uri=data,
        run_uri=str(Path(folder) / name),
        name=name,
        run_id=name,
    )


def damaged(data, folder, positions):
    """A copy of a set of one row group, of which these images are no images any more."""
    source = PreparedDataset.open(data)
    with ShardWriter(folder, name="t", split="x", categories=source.info.categories) as writer:
        for number, row in enumerate(source.read_row_group(0, 0).to_pylist()):
            record = record_from_row(row)
            writer.add(replace(record, image=b"noise") if number in positions else record)
    return str(folder)


def run_alone(spec):
    """The same run in this process, without Ray, and without anything in its way."""
    inputs = RunInputs.open(spec)
    run_worker(
        spec,
        inputs,
        iterate(inputs.plan.worker_rows(0), inputs.loader),
        start_step=0,
        device=torch.device("cpu"),
        report=lambda metrics, uri: None,
    )


@contextlib.contextmanager
def injected(monkeypatch, folder, fault, *, before=None):
    """Have `fault(loop, do_step)` stand in for every training step of the workers.

    `before(config)` is called first in each worker. Each group that starts leaves its worker's node
    and first step in `folder/starts.jsonl`.
    """
    work = trainer._worker_in_group

    def worker(config):
        from retina_ray.train.engine import distributed

        step, run = loop.TrainingLoop._train_step, loop.TrainingLoop.run

        def stepped(self, rows):
            return fault(self, lambda: step(self, rows))

        def started(self, batches):
            if distributed.rank() == 0:
                node = ray.get_runtime_context().get_node_id()
                with open(f"{folder}/starts.jsonl", "a") as file:
                    file.write(json.dumps({"step": self.step, "node": node}) + "\n")
            return run(self, batches)

        loop.TrainingLoop._train_step, loop.TrainingLoop.run = stepped, started
        if before is not None:
            before(config)
        try:
            work(config)
        finally:
            loop.TrainingLoop._train_step, loop.TrainingLoop.run = step, run

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_worker_in_group", worker)
        yield


def starts(folder):
    """The first step of each group, and its node."""
    lines = (Path(folder) / "starts.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def figures(spec):
    """(step, loss, learning rate) of every step in the run's record."""
    return [
        (r["step"], r["metrics"]["train/loss"], r["metrics"]["train/lr"])
        for r in read_metrics(Path(spec.run_uri) / "metrics.jsonl")
        if "train/loss" in r["metrics"]
    ]


def val_figures(spec):
    """(step, AP) of each validation in the run's record."""
    return [
        (r["step"], r["metrics"]["val/AP"])
        for r in read_metrics(Path(spec.run_uri) / "metrics.jsonl")
        if "val/AP" in r["metrics"]
    ]


def assert_same_end(spec, whole, *, exactly=True, without=()):
    """The run ended where the undisturbed one did: weights, average, figures of every step."""
    ours, theirs = (load_checkpoint(one.checkpoints.last) for one in (spec, whole))
    assert ours.meta.step == theirs.meta.step
    for kind in ("model", "ema"):
        mine, others = getattr(ours, kind), getattr(theirs, kind)
        assert (mine is None) == (others is None), kind
        for name, tensor in (others or {}).items():
            if exactly:
                assert torch.equal(mine[name], tensor), f"{kind} {name}"
            else:
                torch.testing.assert_close(mine[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    mine, others = figures(spec), figures(whole)
    steps = [step for step in range(1, theirs.meta.step + 1) if step - 1 not in without]
    assert [step for step, _, _ in mine] == steps, "a step is missing, or there twice"
    assert [rate for _, _, rate in mine] == [rate for _, _, rate in others]
    for (step, loss, _), (_, other, _) in zip(mine, others, strict=True):
        assert abs(loss - other) <= (0 if exactly else 1e-3 * abs(other)), f"loss of step {step}"
