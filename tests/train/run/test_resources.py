import pytest

from retina_ray.config import ConfigError, ExperimentConfig, with_overrides
from retina_ray.train.run.resources import ClusterSize, ResourceRequest

BASE = ExperimentConfig()


def request_of(cluster, **overrides):
    return ResourceRequest.of(with_overrides(BASE, overrides), cluster)


def test_gpus_are_taken_where_there_are_enough():
    two = {"train.num_workers": 2}
    assert request_of(ClusterSize(16, 2), **two).use_gpu
    assert not request_of(ClusterSize(16, 1), **two).use_gpu
    assert not request_of(ClusterSize(16, 8), **two, **{"train.use_gpu": False}).use_gpu


@pytest.mark.parametrize(
    ("workers", "cpus_per_worker", "cluster", "at_once", "per_worker"),
    [
        (4, 3.0, (12.9, 0), 0, {"CPU": 3.0}),  # a run takes 4 x 3 and one to decode
        (4, 3.0, (26, 0), 2, {"CPU": 3.0}),
        (1, 1.0, (4, 0), 2, {"CPU": 1.0}),  # four would hold all CPUs, and wait for their data
        (2, 1.0, (64, 5), 2, {"CPU": 1.0, "GPU": 1.0}),
    ],
)
def test_so_many_runs_fit_at_once(workers, cpus_per_worker, cluster, at_once, per_worker):
    size = ClusterSize(*cluster)
    wish = {"train.num_workers": workers, "train.cpus_per_worker": cpus_per_worker}
    need = request_of(size, **wish)
    assert need.fits(size) == at_once
    assert need.per_worker() == per_worker


def test_what_can_never_run_is_refused_with_the_arithmetic():
    wish = {"train.num_workers": 8, "train.cpus_per_worker": 2.0, "train.use_gpu": True}
    small = ClusterSize(8, 2)
    with pytest.raises(ConfigError) as caught:
        request_of(small, **wish).require(small)
    cpus, gpus = (message for _, message in caught.value.faults)
    assert "more workers than the cluster can ever hold" in cpus
    assert "8 x 2 CPUs + 1 for decoding = 17 CPUs" in cpus
    assert "may grow to, 8:" in cpus
    assert "8 need a GPU each" in gpus
    request_of(ClusterSize(17, 8), **wish).require(ClusterSize(17, 8))


def test_an_elastic_run_needs_room_for_its_least_workers_only():
    wish = {"train.num_workers": 8, "train.min_workers": 2, "train.cpus_per_worker": 2.0}
    need = request_of(ClusterSize(64, 2), **wish)
    assert need.use_gpu, "two GPUs are enough to start"
    assert not request_of(ClusterSize(64, 1), **wish).use_gpu
    need.require(ClusterSize(5, 2))
    with pytest.raises(ConfigError) as caught:
        need.require(ClusterSize(4, 1))
    (path, cpus), (_, gpus) = caught.value.faults
    assert path == "train.min_workers"
    assert "2 x 2 CPUs + 1 for decoding = 5 CPUs" in cpus
    assert "2 need a GPU each" in gpus
    # Runs that could grow are not crowded: one at a time where there is no room for two whole ones.
    assert [need.fits(ClusterSize(64, gpus)) for gpus in (1, 2, 7, 8, 17)] == [0, 1, 1, 1, 2]


def test_an_asynchronous_validation_needs_room_beside_the_workers():
    wish = {"train.async_validation": True, "train.validation_cpus": 2.0}
    need = request_of(ClusterSize(4, 0), **wish)
    assert need.cpus == 4.0  # a worker, decoding, and the task
    need.require(ClusterSize(4, 0))
    with pytest.raises(ConfigError, match=r"1 for decoding \+ 2 for validation = 4 CPUs"):
        need.require(ClusterSize(3, 0))
    wish = {"train.async_validation": True, "train.validation_gpus": 1.0}
    shared = ClusterSize(8, 1)
    assert not request_of(shared, **wish).use_gpu  # the only GPU is the task's
    with pytest.raises(ConfigError, match=r"train\.validation_gpus"):
        request_of(shared, **wish).require(ClusterSize(8, 0))
    with pytest.raises(ConfigError, match=r"1 need a GPU each \+ 1 for validation"):
        request_of(shared, **wish, **{"train.use_gpu": True}).require(shared)
