"""The errors of bad input: of a configuration, a data set, a file, a storage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class ConfigError(ValueError):
    """One or more faults of a configuration.

    Attributes:
        faults: (path, message) of each fault; the path is dotted, e.g. `loss.focal_gamma`.
    """

    def __init__(self, faults: Iterable[tuple[str, str]] | str) -> None:
        """Take a list of (path, message), or one message that belongs to no path."""
        self.faults = [("", faults)] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(f"{p}: {m}" if p else m for p, m in self.faults))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[tuple[str, str]]]]:
        """Keep the faults apart when the error travels from a worker to the driver."""
        return type(self), (self.faults,)


class StorageError(Exception):
    """A remote storage did not answer for as long as it was asked, or does not know us.

    No fault of the data, and no `OSError`: nobody shall take it for a file that is damaged.
    """


_MAX_LINES = 50


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a data set.

    Attributes:
        kind: a few words that group alike faults, e.g. "box of zero or negative size".
        message: which value was found, what was expected, and what to do.
        file: the image or annotation file concerned.
        image_id: the original one, as that of the annotation.
    """

    kind: str
    message: str
    file: str | None = None
    image_id: int | str | None = None
    annotation_id: int | str | None = None

    def __str__(self) -> str:
        places = (
            self.file,
            None if self.image_id is None else f"image {self.image_id}",
            None if self.annotation_id is None else f"annotation {self.annotation_id}",
        )
        where = ", ".join(place for place in places if place is not None)
        return f"{where}: {self.message}" if where else self.message


class DataError(ValueError):
    """A data set cannot be used as it is; says everything that is wrong with it at once.

    Attributes:
        faults: in the order in which they were found; the message shows about 50 lines and counts
            the rest.
    """

    def __init__(self, faults: str | Iterable[Fault]) -> None:
        if isinstance(faults, str):
            faults = [Fault("data set", faults)]
        self.faults: list[Fault] = list(faults)
        super().__init__(self.faults)

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return str(self.faults[0])
        return "\n".join(_fault_lines(self.faults))


def _fault_lines(faults: Sequence[Fault]) -> list[str]:
    """List faults by kind, the total of each kind always, at most `_MAX_LINES` single ones."""
    totals = Counter(fault.kind for fault in faults)
    share = max(1, _MAX_LINES // max(1, len(totals)))
    lines = [f"{len(faults)} faults in the data"]
    for kind, total in totals.items():
        lines.append(f"{kind} ({total}):")
        shown = [fault for fault in faults if fault.kind == kind][:share]
        lines += [f"  {fault}" for fault in shown]
        if total > len(shown):
            lines.append(f"  and {total - len(shown)} more")
    return lines


class SourceFileError(ValueError):
    """A file of the source, an image or its annotation, cannot be used.

    Attributes:
        kind: a few words that group alike faults.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message
