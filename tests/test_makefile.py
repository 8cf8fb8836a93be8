"""`make` with a stub for Python: what it runs, how often, and what it says when it cannot.

The stub answers `-c` (the version check) and `-m venv`; the environment that it makes holds a stub
as well, which notes what it is asked to do.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from builders import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

ENVIRONMENT = """#!/bin/sh
echo "$@" >> "$STUB_LOG"
if [ -e "$STUB_LOG.broken" ] && grep -qe "$(cat "$STUB_LOG.broken")" "$STUB_LOG"; then exit 1; fi
case "$*" in
  *"pip freeze"*) printf 'zlib-ng==2\\nAbc==1.0\\n' ;; esac
"""
INTERPRETER = """#!/bin/sh
case "$1" in
  --version) echo "Python 3.8.0" ;;
  -c) exit "${STUB_TOO_OLD:-0}" ;;
  -m) echo "$@" >> "$STUB_LOG"
      mkdir -p "$4/bin" && cp "$STUB_ENVIRONMENT" "$4/bin/python" ;;
esac
"""


class Checkout:
    """A copy of the files that `make` reads, with stubs beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder / "checkout", folder / "log"
        self.folder.mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.folder / name)
        self.python = _script(folder / "python", INTERPRETER)
        self.environment = _script(folder / "environment", ENVIRONMENT)
        self.broken = Path(f"{self.log}.broken")  # holds the words of the command that fails

    def make(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        own = re.compile("MAKE|MFLAGS|VENV|ARGS")  # of the make that runs these tests
        inherited = {k: v for k, v in os.environ.items() if not own.match(k)}
        stubs = {"STUB_LOG": str(self.log), "STUB_ENVIRONMENT": str(self.environment)}
        return subprocess.run(
            ["make", f"PYTHON={self.python}", *arguments],
            cwd=self.folder,
            env=inherited | stubs | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def makes(self, *arguments: str, **variables: str) -> None:
        """Make it without an error."""
        result = self.make(*arguments, **variables)
        assert result.returncode == 0, result.stderr

    def calls(self) -> list[str]:
        """What the stubs were asked to do since the last time, without the checks."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line for line in lines if "--version" not in line and not line.startswith("-c")]


def _script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


@pytest.fixture
def installed(checkout):
    """A checkout with its environment."""
    checkout.makes("venv")
    checkout.calls()
    return checkout


INSTALL = "-m pip install --disable-pip-version-check -c constraints.txt -e .[dev,docs]"


def test_the_environment_is_made_once(checkout):
    checkout.makes("venv")
    assert checkout.calls() == ["-m venv --clear .venv", INSTALL]

    checkout.makes("venv")
    assert checkout.calls() == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_installs_again_into_the_same_environment(installed, name):
    stamp = (installed.folder / ".venv/.installed").stat().st_mtime
    os.utime(installed.folder / name, (stamp + 10, stamp + 10))

    installed.make("venv")
    assert installed.calls() == [INSTALL]


def test_an_installation_that_breaks_off_goes_on_next_time(checkout):
    checkout.broken.write_text("pip install")
    assert checkout.make("venv").returncode != 0
    checkout.calls()

    checkout.broken.unlink()
    checkout.makes("venv")
    assert checkout.calls() == [INSTALL]


def test_a_too_old_python_is_named_before_anything_is_made(checkout):
    result = checkout.make("venv", STUB_TOO_OLD="1")
    assert result.returncode != 0
    assert "needs Python 3.11 or newer" in result.stderr
    assert "Python 3.8.0" in result.stderr
    assert "make PYTHON=" in result.stderr
    assert checkout.calls() == []
    assert not (checkout.folder / ".venv").exists()


def test_a_missing_python_is_named(checkout):
    result = checkout.make("venv", "PYTHON=no-such-python")
    assert result.returncode != 0
    assert "no-such-python was not found" in result.stderr


ARGS = "--space losses --num-samples 2"
FAST = f"-m pytest -n logical --dist worksteal -m not ray and not long {ARGS}"


@pytest.mark.parametrize(
    ("target", "runs"),
    [
        ("sweep", [f"experiments/sweep.py {ARGS}"]),
        ("test-fast", [FAST]),
        ("test", [FAST, f"-m pytest -m ray and not long {ARGS}"]),
    ],
)
def test_a_target_installs_first_and_passes_arguments_on(checkout, target, runs):
    checkout.makes(target, f"ARGS={ARGS}")
    assert checkout.calls() == ["-m venv --clear .venv", INSTALL, *runs]
    checkout.makes(target, f"ARGS={ARGS}")
    assert checkout.calls() == runs


def test_the_oldest_versions_have_an_environment_of_their_own(installed):
    options = (f"OLDEST_PYTHON={installed.python}", "ARGS=-m ray -n0")
    installed.makes("test-oldest", *options)
    *install, run = installed.calls()
    assert install[0] == "-m venv --clear .venv-oldest"
    assert "--resolution lowest-direct" in install[-1]
    assert "constraints.txt" not in install[-1]
    assert run.endswith("-m not ray and not long -m ray -n0"), "the last -m counts"
    installed.makes("test-oldest", *options)
    assert len(installed.calls()) == 1


@pytest.mark.parametrize("part", ["not ray", "pytest -m ray"])
def test_a_failure_in_either_part_of_the_tests_fails(installed, part):
    installed.broken.write_text(part)
    assert installed.make("test").returncode != 0


def test_a_part_without_any_of_the_wanted_tests_is_no_failure(installed):
    environment = installed.folder / ".venv/bin/python"
    environment.write_text('#!/bin/sh\nexit "$STUB_EXIT"\n')
    installed.makes("test", STUB_EXIT="5")
    assert installed.make("test", STUB_EXIT="1").returncode != 0


def test_the_environment_may_lie_elsewhere(checkout):
    checkout.makes("venv", "VENV=other")
    assert (checkout.folder / "other/.installed").exists()
    assert not (checkout.folder / ".venv").exists()


def test_bench_runs_every_file_that_exists_but_the_soak(checkout):
    checkout.makes("bench")
    (checkout.folder / "benchmarks").mkdir()
    for name in ("b.py", "a.py", "soak.py", "notes.md"):
        (checkout.folder / "benchmarks" / name).touch()
    checkout.calls()
    checkout.makes("bench")
    assert checkout.calls() == ["benchmarks/a.py", "benchmarks/b.py"]


def test_plain_make_lists_the_targets(checkout):
    result = checkout.make()
    listed = {line.split()[0] for line in result.stdout.splitlines()}
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert listed == set(phony[1].split())
    assert checkout.calls() == []


def test_clean_leaves_the_environment_the_data_and_the_results(installed):
    kept = ["results/run.json", "data/image.jpg", ".venv/.installed"]
    for name in [*kept, ".pytest_cache/x", "build/x", "retina_ray/__pycache__/x"]:
        path = installed.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    installed.makes("clean")
    assert all((installed.folder / name).exists() for name in kept)
    for name in (".pytest_cache", "build", "retina_ray/__pycache__"):
        assert not (installed.folder / name).exists()


def test_constraints_are_refreshed_from_an_upgraded_environment(checkout):
    checkout.makes("constraints")
    upgrade, freeze = checkout.calls()[-2:]
    assert "--upgrade" in upgrade
    assert "-c constraints.txt" not in upgrade
    assert "--exclude-editable" in freeze
    *head, first, second = (checkout.folder / "constraints.txt").read_text().splitlines()
    assert (first, second) == ("Abc==1.0", "zlib-ng==2")
    assert head == [line for line in _constraints() if line.startswith("#")]
    checkout.make("venv")
    assert checkout.calls() == [], "what was just upgraded would be installed again"


@pytest.mark.parametrize("command", ["--upgrade", "pip freeze"])
def test_constraints_that_cannot_be_refreshed_stay(installed, command):
    installed.broken.write_text(command)
    assert installed.make("constraints").returncode != 0
    assert (installed.folder / "constraints.txt").read_text().splitlines() == _constraints()


def _constraints() -> list[str]:
    return (ROOT / "constraints.txt").read_text().splitlines()


def test_constraints_pin_exact_versions_and_name_no_host():
    pins = [line for line in _constraints() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!]+", pin) for pin in pins)
    pinned = {re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins}
    assert len(pinned) == len(pins)
    assert {"torch", "torchvision", "ray", "wandb", "pytest", "ruff"} <= pinned
    assert "retina-ray" not in pinned
    for name in ("constraints.txt", "Makefile", "pyproject.toml", ".pre-commit-config.yaml"):
        text = (ROOT / name).read_text()
        assert "://" not in text, f"{name} names a host"
        assert not re.search(r"(?<![\w.])/(home|root|work|opt|Users)/", text), name
