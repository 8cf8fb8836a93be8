"""Runs that something happens to, and what is compared with the run that nothing happened to."""

import contextlib
import json
import sys
from pathlib import Path

import pytest
import ray.cloudpickle
import torch
from builders import logged
from ray.cluster_utils import Cluster

from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.engine import loop
from retina_ray.train.run import trainer
from retina_ray.train.run.resources import ResourceRequest

# Workers cannot import what lies beside the tests: its functions travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

ONE = ResourceRequest(num_workers=1, cpus_per_worker=1, use_gpu=False)
TWO = ResourceRequest(num_workers=2, cpus_per_worker=1, use_gpu=False)


@contextlib.contextmanager
def cluster_of(num_nodes, **environment):
    """A head that takes no tasks, and so many nodes of two CPUs each; this process is connected."""
    with pytest.MonkeyPatch.context() as patch:
        # There is no dashboard: what would ask it is told at once that nobody answers.
        patch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
        for name, value in environment.items():
            patch.setenv(name, value)
        head = {"num_cpus": 0, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(num_nodes):
            cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        ray.init(cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


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


def assert_same_end(spec, whole, *, exactly=True, without=()):
    """The run ended where the undisturbed one did: weights, average, losses of every step."""
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
    assert logged(spec, "train/lr") == logged(whole, "train/lr")
    mine, others = logged(spec, "train/loss"), logged(whole, "train/loss")
    steps = [step for step in range(1, theirs.meta.step + 1) if step - 1 not in without]
    assert [step for step, _ in mine] == steps, "a step is missing, or there twice"
    for (step, loss), (_, other) in zip(mine, others, strict=True):
        assert abs(loss - other) <= (0 if exactly else 1e-3 * abs(other)), f"loss of step {step}"
