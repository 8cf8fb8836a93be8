"""The file of a page: refused before the work where it could not be written after it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from retina_ray.config import ConfigError
from retina_ray.storage.files import write_text


def check_page(out: Path, example: str) -> None:
    """Refuse a URI or a folder as a page; `example` is a name that would do.

    Raises:
        ConfigError: it is one.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", os.fspath(out)):  # Path makes one slash of two
        raise ConfigError(f"--out {out}: a local file is needed")
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; name a file, e.g. {out / example}")


def write_page(path: Path, html: str) -> None:
    """Write a page in one step: readers see the old one or the new one, whole.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        write_text(path, html)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error
