"""YAML of somebody else's making, read as plain values and nothing more.

YAML's safe loader refuses tags that would make Python objects. Refused besides are aliases, with
which a small file unfolds to a huge one, and integers that Python could not even print.
"""

from __future__ import annotations

import os
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from retina_ray.data.prepared.record_checks import is_id
from retina_ray.errors import DataError
from retina_ray.storage.files import read_bytes


class _PlainLoader(yaml.SafeLoader):
    """YAML's safe loader without aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse a reference to an earlier value.

        Raises:
            yaml.YAMLError: there is one.
        """
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ComposerError(None, None, "aliases (*name) are refused", mark)
        return super().compose_node(parent, index)


def _construct_int(loader: _PlainLoader, node: yaml.ScalarNode) -> int:
    """Read an integer.

    Raises:
        yaml.YAMLError: it has more than 64 bits.
    """
    value = loader.construct_yaml_int(node)
    if not is_id(value):
        message = "integers of more than 64 bits are refused"
        raise yaml.MarkedYAMLError(None, None, message, node.start_mark)
    return value


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def load_plain_yaml(uri: str | os.PathLike[str], file: str) -> Any:
    """Read a YAML file.

    Args:
        uri: a local path or a URI.
        file: its name for messages.

    Raises:
        DataError: missing, malformed, or with what is refused.
    """
    try:
        return yaml.load(read_bytes(uri), Loader=_PlainLoader)
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except ConstructorError as error:
        raise DataError(
            f"{file}: only plain values are read, no Python objects: {error.problem}; remove the "
            f"tag{_place(error)}"
        ) from None
    except RecursionError:
        message = "lists within lists, hundreds deep, which no description needs; mend the file"
        raise DataError(f"{file}: cannot be read as YAML: {message}") from None
    except (OSError, ValueError, OverflowError, yaml.YAMLError) as error:
        raise DataError(f"{file}: cannot be read as YAML: {error}") from None


def _place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark
    return f" in line {mark.line + 1}" if mark is not None else ""
