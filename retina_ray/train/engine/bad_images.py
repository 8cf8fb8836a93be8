"""Images that a run could not decode: each counts once, under a name that tells the sets apart.

Training and validation set often share file names, so those alone would make one image of two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def named_in_run(kind: str, bad: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Name bad images of one set of a run.

    Args:
        kind: of the set, "train" or "val".
        bad: (file name, reason) of each, as a batch has them.

    Returns:
        The reasons by name: "000000.jpg (val)".
    """
    return {f"{file_name} ({kind})": reason for file_name, reason in bad}


def add_new(known: dict[str, str], met: Mapping[str, str]) -> dict[str, str]:
    """Add to the known images of a run those that are new.

    Earlier versions kept bare file names. Where a run goes on from such a checkpoint, the first
    image of that file name, of either set, is taken for the one that was meant and gives it its
    name: it stays one image.

    Args:
        known: reasons by name, so far; changed in place.
        met: reasons by name; see `named_in_run`.

    Returns:
        Those of `met` that were not known.
    """
    new: dict[str, str] = {}
    for name, reason in met.items():
        bare = name.rpartition(" (")[0]
        if name not in known and bare not in known:
            new[name] = reason
        known.setdefault(name, reason)
        known.pop(bare, None)
    return new
