"""The recipes of a project, for commands that are not one of its scripts."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from retina_ray.cli.options import RECIPES_FILE
from retina_ray.cli.scripts import load_config
from retina_ray.config import ConfigError, ExperimentConfig, with_overrides
from retina_ray.overrides import parse_assignments


def config_of_options(
    recipe: str | None,
    recipes: Path | None,
    assignments: Iterable[str] | None = None,
    *,
    base: Callable[[], ExperimentConfig] = ExperimentConfig,
) -> ExperimentConfig:
    """Build the config of a command from its options.

    Args:
        recipe: a recipe's name, or the JSON file that a run stored; None takes `base`.
        recipes: see `find_recipes`; only a recipe's name needs it.
        assignments: `path=value` strings.
        base: the config without a recipe.

    Raises:
        ConfigError: unknown recipe, unreadable file, bad overrides.
    """
    if recipe is None:
        return with_overrides(base(), parse_assignments(assignments or ()))
    known = {} if recipe.endswith(".json") else find_recipes(recipes)
    if not known and not recipe.endswith(".json"):
        raise ConfigError(
            f"--recipe {recipe}: there is no {RECIPES_FILE} here; name the file of the recipes by "
            "--recipes, or give the config.json of a run"
        )
    return load_config(recipe, assignments, known)


def find_recipes(path: Path | None) -> dict[str, Callable[[], ExperimentConfig]]:
    """Load the recipes of a Python file by its path; its folder need not be a package.

    Args:
        path: a file that has a dict `RECIPES` of functions by name; None takes
            `experiments/recipes.py` in the current folder, or no recipes where there is none.

    Raises:
        ConfigError: no such file, one that cannot be run, or one without recipes.
    """
    if path is None:
        if not RECIPES_FILE.is_file():
            return {}
        path = RECIPES_FILE
    path = path.expanduser()
    if not path.is_file():
        raise ConfigError(f"--recipes {path}: no such file")
    spec = importlib.util.spec_from_file_location(f"_recipes_of_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--recipes {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except Exception as error:
        sys.modules.pop(spec.name, None)
        raise ConfigError(
            f"--recipes {path}: cannot be run ({type(error).__name__}: {error})"
        ) from error
    recipes = getattr(module, "RECIPES", None)
    if not isinstance(recipes, dict) or not all(map(callable, recipes.values())):
        raise ConfigError(
            f"--recipes {path}: has no RECIPES, a dict of functions by name "
            "(see experiments/recipes.py)"
        )
    return recipes
