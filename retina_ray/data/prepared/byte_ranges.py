"""Where the images of a shard lie: a byte range and a checksum for each, in the shard's footer.

The image column is stored as it is (PLAIN, not compressed), so the bytes of an image lie in one
piece in the file, after their length in four bytes, and can be read without the rest of their row
group. The ranges are found while the shard is written, by looking for the images in what was
sent, so each range holds its image byte for byte, whatever pages the Parquet writer made.

They are kept in the shard itself, among the key-value pairs of its footer: no file beside it could
be lost or belong to another shard, and whoever does not know the key reads the shard as before.
A shard without it was written by an older version, or rewritten by another program; its images
are read by the row group.

Needs numpy and pyarrow only: Ray Data's tasks import it without PyTorch.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

RANGES_KEY = "retina_ray.image_ranges"
"""Key in a shard's footer. What its value means never changes: another meaning, another key."""

IMAGE_RANGE = np.dtype([("offset", "<u8"), ("length", "<u4"), ("crc32", "<u4")])
"""Of an image: first byte in the file, number of bytes, and their CRC-32."""

LENGTH_BYTES = 4
"""Before each value of a PLAIN column of bytes stands its length, little-endian."""

_HEAD_BYTES = 64


class RangeRecorder:
    """A sink that passes on what a Parquet writer writes, and finds the images in it.

    Holds one row group in memory, from its first byte until `locate`.

    Args:
        sink: where all goes; whoever opened it closes it.
    """

    def __init__(self, sink: pa.NativeFile) -> None:
        self._sink = sink
        self._pieces: list[bytes] = []
        self._position = self._start = 0
        self._ranges: list[tuple[int, int, int]] = []
        self.closed = False

    def write(self, data: Any) -> int:
        """Pass bytes on; as `pyarrow.PythonFile` wants it."""
        self._sink.write(data)
        self._pieces.append(bytes(data))
        self._position += len(data)
        return len(data)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._position

    def flush(self) -> None:
        """Pass on what the sink still holds."""
        self._sink.flush()

    def close(self) -> None:
        """Nothing more comes; the sink stays open."""
        self.closed = True

    def locate(self, images: Iterable[bytes]) -> None:
        """Find the images of a row group that was just written.

        Args:
            images: in the order of the rows.

        Raises:
            RuntimeError: an image is not there in one piece.
        """
        content, cursor = b"".join(self._pieces), 0
        for image in images:
            prefix = len(image).to_bytes(LENGTH_BYTES, "little")
            head = prefix + image[:_HEAD_BYTES]
            at = content.find(head, cursor)
            while at >= 0 and not content.startswith(image, at + LENGTH_BYTES):
                at = content.find(head, at + 1)
            if at < 0:
                raise RuntimeError(
                    f"pyarrow {pa.__version__} does not write images in one piece, which reading "
                    "them one by one rests on: install a version that retina_ray was tested with "
                    "(see constraints.txt)"
                )
            cursor = at + LENGTH_BYTES + len(image)
            offset = self._start + at + LENGTH_BYTES
            self._ranges.append((offset, len(image), zlib.crc32(image)))
        self._pieces, self._start = [], self._position

    @property
    def footer(self) -> dict[str, str]:
        """The pair for the shard's footer: all ranges, in the order of the rows."""
        ranges = np.array(self._ranges, IMAGE_RANGE)
        return {RANGES_KEY: base64.b64encode(ranges.tobytes()).decode()}


def decode_ranges(value: bytes, *, num_rows: int, num_bytes: int) -> np.ndarray:
    """Read the ranges out of a shard's footer.

    Args:
        value: what stands there under `RANGES_KEY`.
        num_rows: images of the shard.
        num_bytes: size of its file.

    Returns:
        (num_rows,) `IMAGE_RANGE`.

    Raises:
        ValueError: it is no such list, or not of this file; says why.
    """
    content = base64.b64decode(value, validate=True)
    if len(content) != num_rows * IMAGE_RANGE.itemsize:
        raise ValueError(
            f"{len(content)} bytes, expected {IMAGE_RANGE.itemsize} for each of {num_rows} images"
        )
    ranges = np.frombuffer(content, IMAGE_RANGE)
    ends = ranges["offset"] + ranges["length"]
    outside = np.flatnonzero(
        (ranges["offset"] < LENGTH_BYTES) | (ranges["offset"] > num_bytes) | (ends > num_bytes)
    )
    if len(outside):
        row = int(outside[0])
        raise ValueError(
            f"image {row} at bytes {ranges['offset'][row]} to {ends[row]} of a file of "
            f"{num_bytes} bytes"
        )
    return ranges


@dataclass(frozen=True)
class Block:
    """Bytes of a shard that are read at once.

    Attributes:
        shard: position of the shard in the set.
        start: first byte.
        stop: after the last one.
        members: numbers of the wanted ranges that lie in it.
    """

    shard: int
    start: int
    stop: int
    members: tuple[int, ...]


def merge_ranges(
    ranges: Sequence[tuple[int, int, int]], *, max_gap: int, max_bytes: int
) -> list[Block]:
    """Join ranges between which little lies: to read that as well costs less than to ask again.

    Args:
        ranges: shard, first byte and number of bytes of each.
        max_gap: most bytes between two that are joined.
        max_bytes: a block does not grow beyond this by joining.

    Returns:
        Blocks in the order of the files; each range is a member of exactly one.
    """
    blocks: list[Block] = []
    for member in sorted(range(len(ranges)), key=lambda i: ranges[i]):
        shard, start, length = ranges[member]
        last = blocks[-1] if blocks else None
        if (
            last is not None
            and last.shard == shard
            and start - last.stop <= max_gap
            and start + length - last.start <= max_bytes
        ):
            stop = max(last.stop, start + length)
            blocks[-1] = Block(shard, last.start, stop, (*last.members, member))
        else:
            blocks.append(Block(shard, start, start + length, (member,)))
    return blocks
