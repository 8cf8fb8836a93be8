"""Overrides by dotted path, and errors that name all faults at once and the nearest valid names."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from retina_ray.errors import ConfigError

Config = TypeVar("Config", bound=BaseModel)

_UNKNOWN = "unknown setting"
_PYTHON_SPELLING = {"True": True, "False": False, "None": None}


def config_fields(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Every dotted path of a config class, sections included, with pydantic's field."""
    fields: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        fields[prefix + name] = field
        if section := _section(field.annotation):
            fields.update(config_fields(section, f"{prefix}{name}."))
    return fields


def config_paths(model: type[BaseModel]) -> dict[str, type[BaseModel] | None]:
    """Every dotted path of a config class; the value is the section's class, None for a leaf."""
    return {path: _section(field.annotation) for path, field in config_fields(model).items()}


def with_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """Return a new config with the values at the given dotted paths replaced.

    Args:
        config: any config model; it stays as it is.
        overrides: dotted path to value, e.g. `{"loss.focal_gamma": 1.5}`. Setting a section that
            is null (`data.synthetic.seed`) starts it from its defaults. A whole section
            (`{"loss": {...}}`) is replaced, what the new value does not name falls back to its
            default; paths inside it count after it, in whatever order they are given.

    Raises:
        ConfigError: all unknown paths (with the nearest valid name) and all values of a wrong type
            or range; where every value is valid by itself, all impossible combinations.
    """
    paths = config_paths(type(config))
    faults = [(str(path), _unknown(path, paths)) for path in overrides if path not in paths]
    tree = config.model_dump()
    for path in sorted(overrides.keys() & paths.keys(), key=lambda known: known.count(".")):
        value = overrides[path]
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

    A value is read as JSON where it is JSON (`1.5`, `[32, 64]`, `null`, `true`), else as a string;
    Python's `True`, `False` and `None` are understood too. Of two entries for one path the last
    counts.

    Raises:
        ConfigError: an entry without `=` or with an empty path; all of them at once.
    """
    overrides: dict[str, Any] = {}
    faults = []
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        path, text = path.strip(), text.strip()
        if not equals or not path:
            faults.append(("--set", f"{assignment!r} is not of the form path=value"))
            continue
        try:
            overrides[path] = json.loads(text)
        except json.JSONDecodeError:
            overrides[path] = _PYTHON_SPELLING.get(text, text)
    if faults:
        raise ConfigError(faults)
    return overrides


def faults_of(error: ValidationError, model: type[BaseModel]) -> list[tuple[str, str]]:
    """What pydantic found wrong with a config of this class, as (path, message) pairs."""
    paths = config_paths(model)
    return [fault for e in error.errors() for fault in _describe(e, paths)]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a tree of sections by their dotted paths; an empty section is a value."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        is_section = isinstance(value, Mapping) and value
        flat.update(flatten(value, f"{path}.") if is_section else {path: value})
    return flat


def _section(annotation: Any) -> type[BaseModel] | None:
    """The config class inside an annotation such as `AnchorConfig` or `SyntheticConfig | None`."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for name in parents:
        if not isinstance(tree.get(name), dict):
            if tree.get(name) is not None:
                return  # a value that is no section stands here, and is refused as such
            tree[name] = {}
        tree = tree[name]
    tree[leaf] = copy.deepcopy(value)


def _validate(model: type[Config], tree: dict[str, Any], faults: list[tuple[str, str]]) -> Config:
    try:
        config = model.model_validate(tree)
    except ValidationError as error:
        faults = [*faults, *faults_of(error, model)]
    else:
        if not faults:
            return config
    raise ConfigError(faults) from None


def _describe(error: Any, paths: Mapping[str, Any]) -> list[tuple[str, str]]:
    """One pydantic error as (path, message) pairs; a ConfigError inside it brings its own."""
    path = ".".join(str(part) for part in error["loc"])
    inner = error.get("ctx", {}).get("error")
    if isinstance(inner, ConfigError):
        inside = [(".".join(filter(None, (path, p))), m) for p, m in inner.faults]
        # A section knows only its own names: say again what was probably meant, among all of them.
        return [(p, _unknown(p, paths) if m.startswith(_UNKNOWN) else m) for p, m in inside]
    if error["type"] == "extra_forbidden":
        return [(path, _unknown(path, paths))]
    if error["type"] == "model_type":
        return [(path, f"is a section with settings of its own, got {error['input']!r}")]
    message = error["msg"][0].lower() + error["msg"][1:]
    return [(path, f"{message}, got {error['input']!r}")]


def _unknown(path: Any, paths: Iterable[str]) -> str:
    """Say that a path does not exist, and which one was probably meant.

    In this order: a similar name in the same section, the same name in the most similar section,
    the most similar path, the most similar name anywhere.
    """
    known = list(paths)
    section, _, leaf = str(path).rpartition(".")
    names = {p: p.rpartition(".")[2] for p in known}
    siblings = {name: p for p, name in names.items() if p.rpartition(".")[0] == section}
    homonyms = [p for p in known if names[p] == leaf]
    by_name = {name: p for p, name in names.items()}
    nearest = (
        [siblings[name] for name in difflib.get_close_matches(leaf, siblings, n=1)]
        or difflib.get_close_matches(str(path), homonyms, n=1, cutoff=0.0)
        or difflib.get_close_matches(str(path), known, n=1)
        or [by_name[name] for name in difflib.get_close_matches(leaf, by_name, n=1)]
    )
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"{_UNKNOWN}{hint}"
