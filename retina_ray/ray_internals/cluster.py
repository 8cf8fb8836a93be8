"""Of Ray's core: starting it without delays and idle hints, and how far a cluster may grow."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import ray
from ray._private.state import state

_HINTS = ("ray._private.authentication.authentication_token_setup", "ray.data")
"""Loggers of hints on defaults that suit us. Under other names, the hints would be seen."""

_STATE_SERVER = "RAY_API_SERVER_ADDRESS"


def start_ray(num_cpus: int) -> None:
    """Join the cluster that `RAY_ADDRESS` names, or start Ray on this machine.

    Args:
        num_cpus: logical CPUs of a Ray that is started.
    """
    for name in _HINTS:
        logging.getLogger(name).setLevel(logging.ERROR)
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
        return
    with _no_state_server():
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )


@contextlib.contextmanager
def _no_state_server() -> Iterator[None]:
    """Tell the processes of a Ray started here that it has no server for questions on its state.

    Without a dashboard there is none. Ray Train asks nevertheless whether its controller lives,
    looks for the address for 20 seconds each time, and the end of every run waits for that. Where
    nothing listens at the address that it is told, the question fails at once.
    """
    if _STATE_SERVER in os.environ:
        yield
        return
    os.environ[_STATE_SERVER] = "http://127.0.0.1:1"
    try:
        yield
    finally:
        del os.environ[_STATE_SERVER]


def largest_resources() -> dict[str, float]:
    """Resources by name of an autoscaling cluster at its largest; empty where it is not known.

    `ray.cluster_resources()` knows only the nodes that are there, so a run that has to wait for
    more nodes would be refused without this.
    """
    with contextlib.suppress(Exception):
        most = state.get_max_resources_from_cluster_config() or {}
        return {name: float(number) for name, number in most.items()}
    return {}
