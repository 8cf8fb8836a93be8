"""`ray start --head`, then `ray job submit`: the sweep as a cluster's users run it."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from builders import ROOT

from retina_ray.sweep.report import read_results

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TOKEN = secrets.token_hex(32)
RAY = str(Path(sys.executable).with_name("ray"))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def secured():
    """The activated environment of a cluster with token authentication, its users' alike."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return {**environment, "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A head node of its own, with the dashboard's job server; yields the server's address."""
    log = tmp_path_factory.mktemp("head") / "log"
    dashboard = free_port()
    command = [RAY, "start", "--head", "--block", f"--port={free_port()}", "--num-cpus=4"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    command += [f"--ray-client-server-port={free_port()}", "--disable-usage-stats"]
    environment = secured() | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}  # nothing to save
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=environment, start_new_session=True
        )
        address = f"http://127.0.0.1:{dashboard}"
        try:
            wait_for(f"{address}/api/version", process, log)
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(url, process, log, seconds=120):
    for _ in range(seconds):
        if process.poll() is not None:
            pytest.fail(f"ray start ended: {log.read_text()}")
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except urllib.error.HTTPError:
            return  # it answers: 401, for want of the token
        except OSError:
            time.sleep(1)
    pytest.fail(f"no job server after {seconds} s: {log.read_text()}")


def submit(command, patience_s=120):
    """Run `ray job submit`; a head that has just started may have no agent for jobs yet."""
    deadline = time.monotonic() + patience_s
    while True:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=secured(),
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(2)


def test_a_submitted_sweep_of_two_workers_runs_on_the_cluster(head, tmp_path):
    command = [RAY, "job", "submit", "--address", head, "--working-dir", ".", "--"]
    command += ["python", "experiments/sweep.py", "--storage", str(tmp_path), "--name", "job"]
    command += ["--space", "losses", "--num-samples", "1", "--grace-epochs", "1"]
    settings = {
        "train.num_workers": 2,
        "train.epochs": 1,
        "data.synthetic.num_train": 16,
        "data.synthetic.num_val": 8,
        "schedule.warmup_steps": 1,
        "tracking.wandb": "disabled",
    }
    for path, value in settings.items():
        command += ["--set", f"{path}={value}"]
    done = submit(command)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "best checkpoint:" in done.stdout, output
    (row,) = read_results(tmp_path / "job" / "results.json")
    assert (row.status, row.reason) == ("finished", "")
    assert row.time_s > 0  # Tune's own clock: it heard of the evaluation
    assert (row.epochs_run, len(row.history)) == (1, 1)
    assert row.metrics["AP"] >= 0
    assert row.checkpoint is not None  # Tune stops a trial at its last report, before it is written
    assert not (tmp_path / "job/trials" / row.trial_id / "failure.txt").exists()
    config = json.loads((tmp_path / "job/trials" / row.trial_id / "config.json").read_text())
    assert config["train"]["num_workers"] == 2
    assert config["loss"]["focal_gamma"] == row.params["loss.focal_gamma"]
    assert config["loss"]["box_loss"] == row.params["loss.box_loss"]
