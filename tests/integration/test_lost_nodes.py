"""A run of one worker whose node goes, with notice and without; another node has room for it."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
import ray.cloudpickle
from builders import make_spec, run_here
from faulty_runs import ONE, assert_same_end, cluster_of, injected, starts
from ray.core.generated import autoscaler_pb2

from retina_ray.train.run import trainer

pytestmark = [pytest.mark.ray, pytest.mark.long]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

AT = 8
"""Step before which the node goes; the last checkpoint before it is that of step 6."""


@pytest.fixture
def cluster():
    with cluster_of(1, RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="0.5") as cluster:
        yield cluster


@pytest.fixture
def run_without_its_node(cluster, shapes_set, tiny_config, tmp_path, monkeypatch):
    """Do a run whose first node goes by `leave(cluster, node)`, and the undisturbed one."""

    def run(leave, **overrides):
        settings = {"train.batch_size": 2, "train.epochs": 3, "train.ema_decay": 0.9}
        config = tiny_config(**settings, **{"train.checkpoint_every_steps": 3}, **overrides)
        whole, spec = (make_spec(config, shapes_set, tmp_path, name) for name in ("whole", "run"))
        run_here(whole)
        (node,) = [n for n in cluster.list_all_nodes() if n is not cluster.head_node]
        first_node = node.node_id
        there, gone = tmp_path / "there", tmp_path / "gone"

        def wait(loop, do_step):
            if ray.get_runtime_context().get_node_id() == first_node:
                if loop.step == AT:
                    there.touch()
                    while not gone.exists():
                        time.sleep(0.1)
                if loop.step >= AT:
                    time.sleep(1)  # the notice comes within a second
            do_step()

        # Nodes can be added by the main thread alone.
        with injected(monkeypatch, tmp_path, wait), ThreadPoolExecutor(1) as pool:
            run = pool.submit(trainer.fit, spec, ONE)
            while not there.exists():
                assert not run.done(), run.exception()
                time.sleep(0.1)
            cluster.add_node(num_cpus=2)
            cluster.wait_for_nodes()
            leave(cluster, node)
            gone.touch()
            run.result(timeout=300)
        first, second = starts(tmp_path)
        assert first == {"step": 0, "node": first_node}
        assert second["node"] != first_node
        assert_same_end(spec, whole)
        return second["step"]

    return run


def test_a_drained_node_is_left_with_a_checkpoint(run_without_its_node):
    def drain(cluster, node):
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline_ms = round((time.time() + 60) * 1000)
        gcs = ray._raylet.GcsClient(address=cluster.address)
        accepted, why = gcs.drain_node(node.node_id, reason, "a spot node goes", deadline_ms)
        assert accepted, why

    assert AT < run_without_its_node(drain, **{"train.max_failures": 0}) < 15


def test_a_node_that_is_gone_is_replaced(run_without_its_node):
    def remove(cluster, node):
        cluster.remove_node(node, allow_graceful=False)

    assert run_without_its_node(remove, **{"train.max_failures": 1}) == 6
