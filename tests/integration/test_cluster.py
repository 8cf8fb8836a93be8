"""The stream and the training on a Ray cluster of several nodes, some of which go and come."""

import contextlib
import os
import re
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
import ray.cloudpickle
from builders import logged, make_spec, run_here
from faulty_runs import assert_same_end, cluster_of, injected, starts
from streams import consume, digest, wait_until

from retina_ray.data.loading.batch_loader import BatchLoader
from retina_ray.data.loading.local_stream import iterate
from retina_ray.data.loading.ray_stream import IDLE_VARIABLE, stream
from retina_ray.data.plan.run_plan import RunPlan
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.train.recovery import elastic
from retina_ray.train.run import async_validation, trainer
from retina_ray.train.run.resources import ResourceRequest, cluster_size, leave_a_cpu

pytestmark = [pytest.mark.ray, pytest.mark.long]
# Decoding tasks cannot import a test module: its loader travels by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def cluster():
    with cluster_of(2, **{IDLE_VARIABLE: "1000"}) as cluster:  # what Ray itself does
        yield cluster


class NotingLoader(BatchLoader):
    """Leaves a file in a folder for each block: the node that it was decoded on."""

    notes: Path
    pause_s: float

    def load_table(self, plan_table):
        time.sleep(self.pause_s)
        first = plan_table["plan_index"][0].as_py()
        (self.notes / f"{ray.get_runtime_context().get_node_id()}-{first}").touch()
        return super().load_table(plan_table)


def test_a_cpu_for_decoding_is_a_whole_one_of_one_node(cluster):
    first, second = (node.node_id for node in cluster.worker_nodes)
    assert leave_a_cpu([first, second], 1.0)
    assert leave_a_cpu([first, first], 1.0)
    assert leave_a_cpu([first], 2.0)
    assert not leave_a_cpu([first, second], 1.5), "half a CPU of each"
    assert not leave_a_cpu([first, first, second, second], 1.0)


def test_a_node_that_goes_in_mid_stream_changes_nothing(cluster, shapes_set, tiny_config, tmp_path):
    # Large enough for the nodes' object stores: what is smaller, Ray keeps with the driver.
    sizes = {"train_sizes_px": (128,), "eval_size_px": 128}
    sizes |= {"train_max_size_px": 128, "eval_max_size_px": 128}
    config = tiny_config(
        **{"train.num_workers": 2, "train.epochs": 12},
        **{f"input.{name}": size for name, size in sizes.items()},
    )
    dataset = PreparedDataset.open(shapes_set)
    index = dataset.index()
    plan, sets = RunPlan.from_config(config, index, index), (dataset, dataset, index, index)
    alone = [digest(row) for row in iterate(plan.table, BatchLoader.from_config(config, *sets))]
    loader = NotingLoader.from_config(config, *sets)
    loader.notes, loader.pause_s = tmp_path, 0.1
    gone = sorted(cluster.worker_nodes, key=lambda node: node.node_id)[0]

    def remove():
        def waiting():
            """Rows on the node that goes which the first worker, after its 9, is far from."""
            rows = [int(p.name.split("-")[1]) for p in tmp_path.glob(f"{gone.node_id}-*")]
            return [row for row in rows if row % 2 == 0 and row > 2 * 9 + 6]

        wait_until(lambda: len(waiting()) >= 3)
        cluster.remove_node(gone, allow_graceful=False)

    try:
        rows = stream(plan, loader, batch_bytes=2**40)  # so large that each block holds one
        got = consume(plan, rows, after_rows={9: remove})
    finally:
        cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
    assert got == [alone[0::2], alone[1::2]]
    by_node = Counter(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert len(by_node) >= 2, "decoded on both nodes"
    assert cluster.head_node.node_id not in by_node
    assert sum(by_node.values()) > len(plan), "some were made again elsewhere"


def test_two_workers_then_one_then_two_end_as_one_undisturbed_worker(
    cluster, shapes_set, tiny_config, tmp_path, monkeypatch
):
    """A worker reserves 1.5 CPUs: there is room for one on each node, and none left to decode."""
    wish = {"train.epochs": 9, "train.checkpoint_every_steps": 2, "train.eval_every_epochs": 3}
    wish |= {"train.ema_decay": 0.9, "optimizer.lr": 0.001}
    whole = make_spec(tiny_config(**wish, **{"train.accumulate": 2}), shapes_set, tmp_path, "whole")
    run_here(whole)
    wish |= {"train.num_workers": 2, "train.min_workers": 1, "train.cpus_per_worker": 1.5}
    spec = make_spec(tiny_config(**wish), shapes_set, tmp_path, "elastic")
    request = ResourceRequest.of(spec.config, cluster_size())
    request.require(cluster_size())
    monkeypatch.setattr(elastic, "INTERVAL_S", 1.0)
    # Ray Train learns late that a node is gone, and first waits for one in its place.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")

    def noted(loop, do_step):
        from retina_ray.train.engine import distributed

        group = len(starts(tmp_path))
        if group == 1 and loop.step == 6:
            time.sleep(600)  # until the node goes
        do_step()
        if distributed.rank() == 0:
            (tmp_path / f"group{group}-{loop.step:02}").touch()
        if group == 2:
            time.sleep(2.5)  # until there are two nodes again

    with injected(monkeypatch, tmp_path, noted), ThreadPoolExecutor(1) as pool:
        run = pool.submit(trainer.fit, spec, request)
        wait_for(tmp_path / "group1-05", run)
        cluster.remove_node(sorted(cluster.worker_nodes, key=lambda n: n.node_id)[0], False)
        wait_for(tmp_path / "group2-07", run)
        cluster.add_node(num_cpus=2)
        run.result()
    assert group_sizes() == [2, 1, 2]
    steps = [[int(p.name[-2:]) for p in sorted(tmp_path.glob(f"group{g}-*"))] for g in (1, 2, 3)]
    assert steps[0] == [0, 1, 2, 3, 4, 5]
    assert steps[1][0] in (2, 4, 6), "where the last checkpoint was when the node went"
    assert steps[1] + steps[2] == list(range(steps[1][0], 27)), "for the larger group none is lost"
    assert_same_end(spec, whole, exactly=False)


def test_two_workers_on_two_nodes_are_validated_beside_their_training(
    cluster, shapes_set, tiny_config, tmp_path, monkeypatch
):
    """One of the workers is killed while a round is under way."""
    wish = {"train.epochs": 4, "train.ema_decay": 0.9, "optimizer.lr": 0.001}
    whole = make_spec(tiny_config(**wish, **{"train.accumulate": 2}), shapes_set, tmp_path, "whole")
    run_here(whole)
    wish |= {"train.num_workers": 2, "train.async_validation": True, "train.max_failures": 1}
    wish |= {"train.checkpoint_every_steps": 1}
    spec = make_spec(tiny_config(**wish), shapes_set, tmp_path, "beside")
    request = ResourceRequest.of(spec.config, cluster_size())
    request.require(cluster_size())

    def mortal(loop, do_step):
        from retina_ray.train.engine import distributed

        (tmp_path / f"worker-{distributed.rank()}-{os.getpid()}").touch()
        if loop.step == 4 and distributed.rank() == 1 and not (tmp_path / "died").exists():
            wait_until((tmp_path / "round-00000003").exists)
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        do_step()

    def noted(run, uri):
        (tmp_path / f"round-{uri[-8:]}").touch()
        (tmp_path / f"validated-{os.getpid()}").touch()
        if not (tmp_path / "died").exists():
            time.sleep(60)  # the group that waits for it dies meanwhile
        return async_validation.validate(run, uri)

    def before(config):
        trainer._validate = noted

    with injected(monkeypatch, tmp_path, mortal, before=before):
        trainer.fit(spec, request)
    assert (tmp_path / "died").exists()
    assert [start["step"] for start in starts(tmp_path)] == [0, 4]
    assert_same_end(spec, whole, exactly=False)
    mine, theirs = logged(spec, "val/AP"), logged(whole, "val/AP")
    assert [step for step, _ in mine] == [step for step, _ in theirs] == [3, 6, 9, 12]
    assert [ap for _, ap in mine] == pytest.approx([ap for _, ap in theirs], abs=0.02)
    workers = {path.name.rpartition("-")[2] for path in tmp_path.glob("worker-*")}
    validators = {path.name.rpartition("-")[2] for path in tmp_path.glob("validated-*")}
    assert len(workers) == 4
    assert validators
    assert not validators & workers


def wait_for(path, run):
    """Wait for a file that a run makes; whatever ends the run is raised."""
    while not path.exists():
        with contextlib.suppress(TimeoutError):
            run.result(timeout=0.2)
            raise AssertionError(f"the run ended before {path}")


def group_sizes():
    """Workers of each group that started, in the order of time."""
    logs = Path(ray._private.worker._global_node.get_session_dir_path(), "logs", "train")
    text = "".join(path.read_text() for path in logs.glob("*app-controller*.log"))
    return [int(n) for n in re.findall(r"Started training worker group of size (\d+)", text)]
