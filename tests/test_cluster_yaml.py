"""`ray_cluster.yaml` against Ray's own schema and against the project, without a cloud account."""

import re

import jsonschema
import pytest
import yaml
from builders import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config

from retina_ray.data.loading.ray_stream import IDLE_VARIABLE, KEPT_IDLE_S

TEXT = (ROOT / "ray_cluster.yaml").read_text()
RUNNER = (ROOT / "retina_ray" / "sweep" / "runner.py").read_text()
(DRIVER,) = re.findall(r'^DRIVER\b.* = "(\w+)"$', RUNNER, re.MULTILINE)  # without Ray Tune


@pytest.fixture
def cluster() -> dict:
    """As Ray sees it: the file over Ray's defaults for the provider."""
    return prepare_config(yaml.safe_load(TEXT))


def test_ray_accepts_it(cluster):
    validate_config(cluster)


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ((), "max_worker", 3),
        (("available_node_types", "head"), "resources", {"CPU": "four"}),
        (("available_node_types", "gpu_worker"), "max_worker", 8),
    ],
)
def test_ray_refuses_a_planted_fault(cluster, where, key, value):
    part = cluster
    for name in where:
        part = part[name]
    part[key] = value
    with pytest.raises(jsonschema.ValidationError):
        validate_config(cluster)


class NoRepeats(yaml.SafeLoader):
    """YAML itself takes the last one of equal keys without a word."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), keys
        return super().construct_mapping(node, deep)


def test_no_key_is_given_twice():
    assert yaml.load(TEXT, NoRepeats) == yaml.safe_load(TEXT)
    with pytest.raises(AssertionError):
        yaml.load("a: {b: 1, b: 2}", NoRepeats)


def test_the_head_drives_trials_and_does_nothing_else(cluster):
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert "GPU" not in head["resources"]
    assert head["resources"][DRIVER] > 0
    assert head["max_workers"] == 0
    assert "InstanceMarketOptions" not in head["node_config"], "the head must not be a spot machine"


def test_workers_are_spot_machines_that_come_and_go(cluster):
    workers = {k: v for k, v in cluster["available_node_types"].items() if k != "head"}
    assert {name: (w["min_workers"], w["max_workers"]) for name, w in workers.items()} == {
        "gpu_worker": (0, 8),
        "cpu_worker": (0, 4),
    }
    assert workers["gpu_worker"]["resources"]["GPU"] == 1
    assert "GPU" not in workers["cpu_worker"]["resources"]
    for worker in workers.values():
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert DRIVER not in worker["resources"]
    assert cluster["max_workers"] == 12
    assert cluster["idle_timeout_minutes"] > 0


def test_every_image_has_the_pinned_ray(cluster):
    (pinned,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    types = cluster["available_node_types"].values()
    images = [t["docker"]["worker_image"] for t in types if "docker" in t]
    assert len(images) == 1
    images.append(cluster["docker"]["image"])
    for image in images:
        name, _, tag = image.partition(":")
        version, python, _ = tag.split("-")
        assert (name, version) == ("rayproject/ray", pinned)
        assert int(python.removeprefix("py3")) >= 11


def test_every_node_installs_the_package_with_its_constraints(cluster):
    mounted = [remote for remote, local in cluster["file_mounts"].items() if local == "."]
    for commands in (cluster["head_setup_commands"], cluster["worker_setup_commands"]):
        install = [c for c in commands if c.startswith(f"cd {mounted[0]} ")]
        assert len(install) == 1
        assert "-c constraints.txt -e ." in install[0]


def test_ray_is_started_with_the_autoscaler_tokens_and_idle_processes_that_stay(cluster):
    head, worker = cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]
    assert "--head" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert "--dashboard-host" not in head, "the dashboard must stay on localhost"
    assert "--address=$RAY_HEAD_IP:6379" in worker
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert f"--env {IDLE_VARIABLE}={1000 * KEPT_IDLE_S}" in cluster["docker"]["run_options"]
    assert "~/.ray" in cluster["file_mounts"]
    assert "AUTH_TOKEN=" not in TEXT


def test_what_is_large_or_secret_stays_at_home(cluster):
    excluded = {pattern.strip("/") for pattern in cluster["rsync_exclude"]}
    assert {".git", ".venv", "data", "results", "wandb"} <= excluded


def test_no_value_of_a_real_account_is_in_it():
    for pattern in (r"ami-[0-9a-f]{8}", r"\b\d{12}\b", r"arn:aws:iam::", r"sg-[0-9a-f]", r"AKIA"):
        assert not re.search(pattern, TEXT), pattern
