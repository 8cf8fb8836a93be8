"""Overrides by dotted path, and errors that name every fault at once with the nearest valid name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

Config = TypeVar("Config", bound=BaseModel)

__all__ = ["ConfigError", "config_paths", "from_json", "parse_assignments", "with_overrides"]


class ConfigError(ValueError):
    """One or more faults of a configuration.

    Attributes:
        faults: (path, message) of each fault; the path is dotted, e.g. `loss.focal_gamma`.
    """

    def __init__(self, faults: Iterable[tuple[str, str]] | str) -> None:
        """Take a list of (path, message), or one message that belongs to no path."""
        self.faults = [("", faults)] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(f"{p}: {m}" if p else m for p, m in self.faults))


def config_paths(model: type[BaseModel], prefix: str = "") -> dict[str, type[BaseModel] | None]:
    """Every dotted path of a config class; the value is the section's class, None for a leaf."""
    paths: dict[str, type[BaseModel] | None] = {}
    for name, info in model.model_fields.items():
        section = _section(info.annotation)
        paths[prefix + name] = section
        if section is not None:
            paths.update(config_paths(section, f"{prefix}{name}."))
    return paths


def with_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """Return a new config with the values at the given dotted paths replaced.

    Args:
        config: any config model; it stays as it is.
        overrides: dotted path to value, e.g. `{"loss.focal_gamma": 1.5}`. Setting a section that
            is null (`data.synthetic.seed`) starts it from its defaults.

    Raises:
        ConfigError: unknown paths (with the nearest valid name), wrong types, impossible
            combinations: all of them, not only the first.
    """
    paths = config_paths(type(config))
    faults = [(path, _unknown(path, paths)) for path in overrides if path not in paths]
    tree = config.model_dump()
    for path, value in overrides.items():
        if path in paths:
            _set(tree, path, value.model_dump() if isinstance(value, BaseModel) else value)
    return _validate(type(config), tree, faults)


def from_json(model: type[Config], text: str) -> Config:
    """Read a config from the JSON that a finished run stored.

    Raises:
        ConfigError: not JSON, unknown keys, wrong types: all faults at once.
    """
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not valid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"expected a JSON object, got {type(tree).__name__}")
    return _validate(model, tree, [])


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn `path=value` strings of a command line into overrides.

    A value is read as JSON where it is JSON (`1.5`, `[32, 64]`, `null`, `true`), else as a string.

    Raises:
        ConfigError: an entry without `=` or with an empty path; all of them at once.
    """
    overrides: dict[str, Any] = {}
    faults = []
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        path = path.strip()
        if not equals or not path:
            faults.append(("--set", f"{assignment!r} is not of the form path=value"))
            continue
        try:
            overrides[path] = json.loads(text)
        except json.JSONDecodeError:
            overrides[path] = text.strip()
    if faults:
        raise ConfigError(faults)
    return overrides


def _section(annotation: Any) -> type[BaseModel] | None:
    """The config class inside an annotation such as `AnchorConfig` or `SyntheticConfig | None`."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for name in parents:
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
    tree[leaf] = value


def _validate(model: type[Config], tree: dict[str, Any], faults: list[tuple[str, str]]) -> Config:
    try:
        config = model.model_validate(tree)
    except ValidationError as error:
        paths = config_paths(model)
        faults = [*faults, *(fault for e in error.errors() for fault in _describe(e, paths))]
    else:
        if not faults:
            return config
    raise ConfigError(faults) from None


def _describe(error: Any, paths: Mapping[str, Any]) -> list[tuple[str, str]]:
    """One pydantic error as (path, message) pairs; a ConfigError inside it brings its own."""
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return [(path, _unknown(path, paths))]
    inner = error.get("ctx", {}).get("error")
    if isinstance(inner, ConfigError):
        return inner.faults
    message = error["msg"][0].lower() + error["msg"][1:]
    return [(path, f"{message}, got {error['input']!r}")]


def _unknown(path: str, paths: Iterable[str]) -> str:
    """Say that a path does not exist, and which one was probably meant."""
    known = list(paths)
    leaf = path.rsplit(".", 1)[-1]
    same_leaf = [p for p in known if p.rsplit(".", 1)[-1] == leaf]
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.6)
    if not same_leaf and not close:
        by_leaf = {p.rsplit(".", 1)[-1]: p for p in known}
        close = [by_leaf[name] for name in difflib.get_close_matches(leaf, by_leaf, n=1)]
    nearest = (same_leaf or close)[:1]
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"unknown setting{hint}"
