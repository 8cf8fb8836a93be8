"""What a run needs of a cluster, what the cluster has, and the arithmetic between the two."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from retina_ray.config import ConfigError, ExperimentConfig
from retina_ray.data.loading.ray_stream import keep_idle_processes
from retina_ray.ray_internals.cluster import largest_resources, start_ray

DATA_CPUS = 1.0
"""CPUs that must be left for Ray Data's decoding tasks of a run: without one, the workers hold all
CPUs and wait for batches for ever."""


@dataclass(frozen=True)
class ClusterSize:
    """CPUs and GPUs of a cluster, the nodes that it may still add included."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class ResourceRequest:
    """What one run (or one trial of a sweep) takes; with `use_gpu`, one GPU for each worker."""

    num_workers: int
    cpus_per_worker: float
    use_gpu: bool
    min_workers: int | None = None  # so few of them will do; None: all of them are needed
    validation_cpus: float = 0.0  # of the asynchronous validation
    validation_gpus: float = 0.0

    @classmethod
    def of(cls, config: ExperimentConfig, cluster: ClusterSize) -> ResourceRequest:
        """The request of a configuration; `train.use_gpu = null` takes GPUs where there are."""
        train, use_gpu = config.train, config.train.use_gpu
        beside = (
            (train.validation_cpus, train.validation_gpus) if train.async_validation else (0, 0)
        )
        if use_gpu is None:
            use_gpu = cluster.gpus - beside[1] >= (train.min_workers or train.num_workers)
        return cls(train.num_workers, train.cpus_per_worker, use_gpu, train.min_workers, *beside)

    @property
    def cpus(self) -> float:
        """CPUs of all workers, of decoding, and of an asynchronous validation."""
        return self._cpus_of(self.num_workers)

    @property
    def least_workers(self) -> int:
        """Workers without which the run does not start."""
        return self.min_workers or self.num_workers

    def _cpus_of(self, num_workers: int) -> float:
        return num_workers * self.cpus_per_worker + DATA_CPUS + self.validation_cpus

    def _gpus_of(self, num_workers: int) -> float:
        return num_workers * self.use_gpu + self.validation_gpus

    def per_worker(self) -> dict[str, float]:
        """Resources of one worker, as Ray names them."""
        resources: dict[str, float] = {"CPU": self.cpus_per_worker}
        if self.use_gpu:
            resources["GPU"] = 1.0
        return resources

    def fits(self, cluster: ClusterSize) -> int:
        """How many runs of this request the cluster bears at once; 0 if not even one.

        With all their workers; where not even one run has room for them all, with the least.
        """
        return self._fits(cluster, self.num_workers) or min(
            1, self._fits(cluster, self.least_workers)
        )

    def _fits(self, cluster: ClusterSize, num_workers: int) -> int:
        by_cpus, gpus = int(cluster.cpus // self._cpus_of(num_workers)), self._gpus_of(num_workers)
        return min(by_cpus, int(cluster.gpus // gpus)) if gpus else by_cpus

    def require(self, cluster: ClusterSize) -> None:
        """Refuse a run that the cluster could never hold.

        Raises:
            ConfigError: with the arithmetic and what to change.
        """
        least, cpus = self.least_workers, self._cpus_of(self.least_workers)
        gpus = self._gpus_of(least)
        aside = (self.validation_cpus, self.validation_gpus)
        cpus_aside, gpus_aside = (f" + {x:g} for validation" if x else "" for x in aside)
        name = "train.num_workers" if self.min_workers is None else "train.min_workers"
        faults = []
        if cpus > cluster.cpus:
            message = (
                f"more workers than the cluster can ever hold: {least} x {self.cpus_per_worker:g} "
                f"CPUs + {DATA_CPUS:g} for decoding{cpus_aside} = {cpus:g} CPUs, but it has, or "
                f"may grow to, {cluster.cpus:g}: lower {name} or train.cpus_per_worker, or add "
                "nodes"
            )
            faults.append((name, message))
        if self.use_gpu and gpus > cluster.gpus:
            message = (
                f"more workers than the cluster can ever hold: {least} need a GPU each"
                f"{gpus_aside}, but it has, or may grow to, {cluster.gpus:g}: lower {name}, set "
                "train.use_gpu=false, or add GPU nodes"
            )
            faults.append((name, message))
        elif gpus > cluster.gpus:
            message = (
                f"{gpus:g}, but the cluster has, or may grow to, {cluster.gpus:g}: set it to 0, or "
                "add GPU nodes"
            )
            faults.append(("train.validation_gpus", message))
        if faults:
            raise ConfigError(faults)


def connect(config: ExperimentConfig, *, concurrent: int = 1) -> ClusterSize:
    """Join the cluster that `RAY_ADDRESS` names (a job's own), or start Ray on this machine.

    A Ray of this machine alone is given logical CPUs for `concurrent` runs beside its decoding
    tasks, also where that is more than the machine has: then they share its cores.

    Returns what the cluster has, or may grow to.
    """
    if not ray.is_initialized():
        train = config.train
        beside = DATA_CPUS + (train.validation_cpus if train.async_validation else 0)
        needed = concurrent * (train.num_workers * train.cpus_per_worker + beside)
        if not os.environ.get("RAY_ADDRESS"):  # a cluster was told already, or was not
            keep_idle_processes()
        start_ray(max(os.cpu_count() or 1, round(needed + 0.5)))
    return cluster_size()


def cluster_size() -> ClusterSize:
    """CPUs and GPUs of the connected cluster; of an autoscaling one, of its largest size."""
    now = ray.cluster_resources()
    most = largest_resources()
    return ClusterSize(
        cpus=max(now.get("CPU", 0.0), most.get("CPU", 0.0)),
        gpus=max(now.get("GPU", 0.0), most.get("GPU", 0.0)),
    )


def leave_a_cpu(node_ids: Sequence[str], cpus_per_worker: float) -> bool:
    """Whether some node has a whole CPU left for decoding beside workers on these nodes.

    The cluster may have less than the run needs: nodes went since the run was let in, or each has
    only a part of a CPU left.
    """
    num_workers = Counter(node_ids)
    return any(
        node["Resources"].get("CPU", 0) - num_workers[node["NodeID"]] * cpus_per_worker >= DATA_CPUS
        for node in ray.nodes()
        if node["Alive"]
    )
