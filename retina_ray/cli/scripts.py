"""What the scripts of `experiments/` share: recipes by name or file, overrides, clean exits."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import typer
from rich.console import Console

from retina_ray.config import ConfigError, ExperimentConfig, from_json, with_overrides
from retina_ray.errors import DataError, StorageError
from retina_ray.overrides import parse_assignments
from retina_ray.train.errors import RunError, RunTerminatedError

Named = TypeVar("Named")

USER_FAULT = 2
"""Exit code where the user can mend it: config, data, a cluster that is too small."""

FAILED = 1
"""Exit code of a run that its workers could not bring to its end."""

INTERRUPTED = 130

TERMINATED = 143
"""Exit code of a run that SIGTERM ended in order, as a shell gives it."""


def load_config(
    recipe: str,
    assignments: Iterable[str] | None,
    recipes: Mapping[str, Callable[[], ExperimentConfig]],
) -> ExperimentConfig:
    """Build the config of a script from its options.

    Args:
        recipe: a recipe's name, or the JSON file that a run stored.
        assignments: `path=value` strings, where there are any.
        recipes: the recipes by name.

    Raises:
        ConfigError: unknown recipe, unreadable file, bad overrides: all faults at once.
    """
    if recipe.endswith(".json"):
        try:
            base = from_json(ExperimentConfig, Path(recipe).expanduser().read_text())
        except OSError as error:
            raise ConfigError(f"--recipe {recipe}: {error.strerror or error}") from error
    else:
        base = named(recipe, recipes, "--recipe")()
    return with_overrides(base, parse_assignments(assignments or ()))


def named(name: str, known: Mapping[str, Named], option: str) -> Named:
    """Look a name up, or say which one was probably meant."""
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ConfigError(f"{option} {name}: unknown; {hint}there are: {', '.join(known)}")


def storage_uri(storage: str) -> str:
    """An absolute folder or a URI as it is: workers run elsewhere."""
    if "://" in storage:
        return storage.rstrip("/")
    return os.path.abspath(Path(storage).expanduser())


def run_name(given: str | None, recipe: str) -> str:
    """The given name, or one made of the recipe and the time."""
    if given is None:
        return f"{Path(recipe).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    if "/" in given or given in (".", "..", ""):
        raise ConfigError(f"--name {given!r}: a plain folder name is needed, without '/'")
    return given


@contextlib.contextmanager
def clean_exit(console: Console) -> Iterator[None]:
    """Turn a user's fault into its message and exit code 2, Ctrl-C into 130; no traceback.

    A run that SIGTERM ended says so, with exit code 143. One that failed, or a storage that does
    not answer, ends with its cause and exit code 1. Anything else is a fault of this package and
    keeps its traceback.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        yield
    except (ConfigError, DataError) as error:
        say(f"error: {error}")
        raise typer.Exit(USER_FAULT) from None
    except RunTerminatedError as error:
        say(f"ended: {error}", console)
        sys.stdout.flush()
        raise typer.Exit(TERMINATED) from None
    except RunError as error:
        say(f"the run failed: {error}")
        raise typer.Exit(FAILED) from None
    except StorageError as error:
        say(f"error: {error}")
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        console.print("interrupted")
        sys.stdout.flush()
        raise typer.Exit(INTERRUPTED) from None


def say(text: str, console: Console | None = None) -> None:
    """Print a line as it is: without markup, colors or breaks. Without a console, to stderr."""
    console = console or Console(stderr=True)
    console.print(text, highlight=False, markup=False, soft_wrap=True)
