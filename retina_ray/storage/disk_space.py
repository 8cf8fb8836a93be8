"""A full disk: how it shows in an error, and what to say of it.

Most of what goes wrong in writing may go well after a restart of the run; a full disk stays full.
"""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retina_ray.storage.uris import is_uri

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a quota that is used up, a limit to the size of files."""

_OS_ERROR = re.compile(r"(?:\(os error |Os { code: )(\d+)")
"""Of an error of safetensors, which is no OSError: its words, and those before version 0.8."""


@dataclass(frozen=True)
class DiskSpace:
    """Space on the disk of a folder; a quota may allow less than is free."""

    folder: str
    free_bytes: int
    total_bytes: int

    @classmethod
    def at(cls, uri: str) -> DiskSpace:
        """Space for what is written to `uri`; where that is remote, in the folder of the copies."""
        folder = tempfile.gettempdir() if is_uri(uri) else uri
        there = Path(folder)
        while not there.exists() and there != there.parent:
            there = there.parent
        usage = shutil.disk_usage(there)
        return cls(folder, usage.free, usage.total)

    def __str__(self) -> str:
        free, total = self.free_bytes / 2**20, self.total_bytes / 2**20
        return f"{free:.0f} of {total:.0f} MiB are free in {self.folder}"


def is_disk_full(error: BaseException) -> bool:
    """Whether something could not be written because there was no room for it."""
    for one in _chain(error):
        said = _OS_ERROR.search(str(one))
        number = one.errno if isinstance(one, OSError) else said and int(said[1])
        if number in _DISK_FULL:
            return True
    return False


def reason_of(error: BaseException) -> str:
    """Why writing failed: the system's own word, where torch hides it behind its own."""
    shown = next((one for one in _chain(error) if isinstance(one, OSError)), error)
    return f"{type(shown).__name__}: {shown}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
