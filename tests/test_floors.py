"""The packages and layers of docs/architecture.md, held by reading every import with `ast`.

Imports inside functions count as much as those at the top; only what stands under
`if TYPE_CHECKING:` is free, because it never runs.
"""

import ast
import graphlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

import pytest
from builders import ROOT

# An import goes down, never up, and never sideways into another package of the same layer.
LAYERS = {
    "retina_ray.errors": 0,
    "retina_ray.structures": 0,
    "retina_ray.overrides": 1,
    "retina_ray.storage": 1,
    "retina_ray.ray_internals": 1,
    "retina_ray.config": 2,
    "retina_ray.ops": 3,
    "retina_ray.model": 4,
    "retina_ray.data": 4,
    "retina_ray.evaluation": 4,
    "retina_ray.anchors": 5,
    "retina_ray.checks": 5,
    "retina_ray.train": 6,
    "retina_ray.inference": 7,
    "retina_ray.reports": 7,
    "retina_ray.sweep": 8,
    "retina_ray.cli": 9,
    "experiments": 10,
    "benchmarks": 10,
    "datasets": 10,
}

# Of a layer below, a package may be allowed only these parts.
ONLY = {
    ("retina_ray.data", "retina_ray.ops"): {"retina_ray.ops.boxes", "retina_ray.ops.anchors"},
}

MAX_LINES = 300
MAX_MODULES = 14  # of a folder, without its __init__

# Where a library may be imported: in these modules and all that lies below them.
OWNERS = {
    "ray": {
        "retina_ray.ray_internals",
        "retina_ray.data.importers.writing.ray_tasks",
        "retina_ray.data.loading.ray_stream",
        "retina_ray.train",
        "retina_ray.sweep",
        "retina_ray.inference",
        "retina_ray.cli",
        "experiments",
        "benchmarks",
    },
    "ray's private modules": {"retina_ray.ray_internals", "benchmarks"},
    "wandb": {"retina_ray.train.tracking"},
    "cv2": {"retina_ray.data", "retina_ray.evaluation.drawing", "benchmarks", "datasets"},
    "pycocotools": {"retina_ray.evaluation", "retina_ray.data.importers", "benchmarks"},
}


@dataclass(frozen=True)
class Import:
    """`target` is imported by `module` in `line` of its file."""

    module: str
    target: str
    line: int


def imports_of(source: str, module: str, *, is_package: bool, known: set[str]) -> list[Import]:
    """All imports that can run, absolute; `from a import b` is `a.b` where that is a module."""
    package = module if is_package else module.rpartition(".")[0]
    found = []
    for node in _running(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            full = [f"{base}.{alias.name}" for alias in node.names]
            targets = [name if name in known else base for name in full]
        elif isinstance(node, ast.Call) and _imports_by_name(node):
            targets = [ast.literal_eval(node.args[0])]
        else:
            continue
        found += [Import(module, target, node.lineno) for target in targets]
    return found


def violations(imports: list[Import]) -> list[str]:
    """One line for each import that the layers do not allow."""
    return [
        f"{one.module}, line {one.line}: imports {one.target}: {reason}"
        for one in imports
        for reason in (*_wrong_layer(one), *_wrong_owner(one))
    ]


def _wrong_layer(one: Import) -> Iterator[str]:
    here, there = _package(one.module), _package(one.target)
    if here is None or there is None or here == there:
        return
    allowed = ONLY.get((here, there))
    if allowed is not None:
        if not any(_within(one.target, part) for part in allowed):
            yield f"of {there}, {here} may use only {', '.join(sorted(allowed))}"
    elif LAYERS[there] >= LAYERS[here]:
        yield f"{here} is on layer {LAYERS[here]}, {there} on {LAYERS[there]}"


def _wrong_owner(one: Import) -> Iterator[str]:
    package, *parts = one.target.split(".")
    if package == "ray" and any(part.startswith("_") for part in parts):
        package = "ray's private modules"
    owners = OWNERS.get(package)
    if owners is not None and not any(_within(one.module, owner) for owner in owners):
        yield f"{package} belongs to {', '.join(sorted(owners))}"


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            if not isinstance(node.test, ast.UnaryOp):
                yield from (n for part in node.orelse for n in (part, *_running(part)))
                continue
        yield node
        yield from _running(node)


def _imports_by_name(node: ast.Call) -> bool:
    """`importlib.import_module("a.b")` and `__import__("a.b")`."""
    name = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
    literal = bool(node.args) and isinstance(node.args[0], ast.Constant)
    return literal and name in {"import_module", "__import__"}


def _package(module: str) -> str | None:
    return next((package for package in LAYERS if _within(module, package)), None)


def _within(module: str, ancestor: str) -> bool:
    return module == ancestor or module.startswith(f"{ancestor}.")


@cache
def _files() -> dict[str, Path]:
    """Every Python file of the project but the tests, by its dotted name."""
    files = [
        path
        for folder in ("retina_ray", "experiments", "benchmarks", "datasets")
        for path in (ROOT / folder).rglob("*.py")
    ]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
    return dict(zip((name.removesuffix(".__init__") for name in names), files, strict=True))


@cache
def _imports() -> dict[str, list[Import]]:
    """The imports of every module."""
    return {
        name: imports_of(
            path.read_text(), name, is_package=path.name == "__init__.py", known=set(_files())
        )
        for name, path in _files().items()
    }


def _of_packages(*packages: str) -> list[str]:
    return [name for name in sorted(_files()) if _package(name) in packages]


# The project


def test_every_import_goes_down():
    assert [line for imports in _imports().values() for line in violations(imports)] == []


def test_no_modules_import_one_another_in_a_circle():
    graph = {
        module: {one.target for one in imports} & set(_files())
        for module, imports in _imports().items()
    }
    assert sum(len(targets) for targets in graph.values()) > 500
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_files_and_folders_are_small_enough_to_be_read():
    files = [path for name, path in _files().items() if not _within(name, "benchmarks")]
    lines = {path: len(path.read_text().splitlines()) for path in files}
    modules = Counter(path.parent for path in files if path.name != "__init__.py")
    large = [path for path, count in lines.items() if count > MAX_LINES]
    large += [folder for folder, count in modules.items() if count > MAX_MODULES]
    assert [str(path.relative_to(ROOT)) for path in large] == []


def test_only_packages_list_their_names():
    """A module's names are those without an underscore."""
    listing = [
        str(path.relative_to(ROOT))
        for path in _files().values()
        if path.name != "__init__.py" and "\n__all__" in path.read_text()
    ]
    assert listing == []


def test_every_module_has_a_layer_and_the_tables_name_what_exists():
    """A rule about a module that was renamed would hold nothing."""
    modules = {name for name in _files() if name != "retina_ray"}
    assert [name for name in sorted(modules) if _package(name) is None] == []
    named = {m for owners in OWNERS.values() for m in owners} | set(LAYERS)
    named |= {part for parts in ONLY.values() for part in parts}
    assert named - modules - {"experiments", "benchmarks", "datasets"} == set()


def test_model_and_losses_run_where_ray_is_not_installed():
    todo = _of_packages("retina_ray.model", "retina_ray.ops", "retina_ray.structures")
    needed = set(todo)
    while todo:
        module = todo.pop()
        targets = {one.target for one in _imports().get(module, ())}
        targets |= {module.rpartition(".")[0]}  # a package's __init__ runs as well
        todo += targets - needed
        needed |= targets
    libraries = {name.partition(".")[0] for name in needed}
    assert "torchvision" in libraries
    assert libraries & {"ray", "wandb", "cv2", "pycocotools"} == set()


def test_decoding_runs_where_torch_is_not_installed():
    """Ray Data's tasks import these on machines and in processes that have no use for torch."""
    needs_torch = [
        f"retina_ray.data.loading.{name}" for name in ("local_stream", "ray_stream", "unpack")
    ]
    code = f"""
import importlib, sys
for name in ("ray", "wandb", "torch", "torchvision"):
    sys.modules[name] = None
try:
    import {needs_torch[0]}
except ImportError:
    pass
else:
    raise AssertionError("torch can be imported all the same")
for name in {sorted(set(_of_packages("retina_ray.data")) - set(needs_torch))!r}:
    importlib.import_module(name)
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


# The test itself

PLANTED = [
    # up: at the top, in a function, in a try, by name
    ("retina_ray.ops.boxes", "from retina_ray.model import RetinaNet"),
    ("retina_ray.config", "import retina_ray.ops.boxes as boxes"),
    ("retina_ray.model.fpn", "def f():\n    from retina_ray.train.engine.loop import TrainingLoop"),
    ("retina_ray.model.fpn", "try:\n    import retina_ray.cli\nexcept ImportError:\n    pass"),
    ("retina_ray.ops.boxes", "import importlib\nimportlib.import_module('retina_ray.model')"),
    ("retina_ray.train.engine.loop", "from experiments.recipes import shapes"),
    # sideways
    ("retina_ray.data.plan.run_plan", "from retina_ray.evaluation import coco"),
    # relative
    ("retina_ray.ops.boxes", "from ..model import RetinaNet"),
    ("retina_ray.ops.boxes", "from .. import model"),
    ("retina_ray.data.importers.coco", "from ...model.fpn import FPN"),
    # only parts of ops for data
    ("retina_ray.data.plan.run_plan", "from retina_ray.ops import losses"),
    ("retina_ray.data.plan.run_plan", "import retina_ray.ops"),
    # libraries with owners
    ("retina_ray.data.plan.run_plan", "import ray.data"),
    ("retina_ray.train.run.trainer", "from ray.train.v2._internal.execution import context"),
    ("retina_ray.sweep.report", "from wandb.sdk import wandb_run"),
    ("retina_ray.model.fpn", "if not TYPE_CHECKING:\n    import ray"),
    ("retina_ray.model.fpn", "if TYPE_CHECKING:\n    pass\nelse:\n    import ray"),
]

ALLOWED = [
    ("retina_ray.config", "from retina_ray.overrides import ConfigError"),
    ("retina_ray.ops.boxes", "from retina_ray import __version__"),
    ("retina_ray.ops.boxes", "from .anchors import AnchorGenerator"),
    ("retina_ray.data.plan.run_plan", "from retina_ray.ops import boxes"),
    ("retina_ray.data.plan.run_plan", "from retina_ray.ops.anchors import AnchorGenerator"),
    ("retina_ray.data.loading.ray_stream", "import ray.data"),
    ("retina_ray.ray_internals.cluster", "from ray._private.state import state"),
    ("retina_ray.model.fpn", "import typing\nif typing.TYPE_CHECKING:\n    import wandb"),
    ("retina_ray.model.fpn", "import raytracer, wandbox, torch"),
]


def _judge(module: str, source: str, *, is_package: bool = False) -> list[str]:
    found = imports_of(source, module, is_package=is_package, known=set(_files()))
    return violations(found)


@pytest.mark.parametrize(("module", "source"), PLANTED)
def test_a_planted_violation_is_found(module, source):
    assert len(_judge(module, source)) == 1


@pytest.mark.parametrize(("module", "source"), ALLOWED)
def test_what_the_layers_allow_is_left_alone(module, source):
    assert _judge(module, source) == []


def test_a_package_resolves_relative_imports_from_itself():
    source = "from . import fpn\nfrom ..train import loop"
    (line,) = _judge("retina_ray.model", source, is_package=True)
    assert "imports retina_ray.train:" in line
