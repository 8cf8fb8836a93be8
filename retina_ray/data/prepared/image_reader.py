"""Images of a prepared set by their places, each read alone: no byte more than it has.

Needs numpy and pyarrow only: Ray Data's tasks import it without PyTorch.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence

import pyarrow as pa

from retina_ray.data.prepared.byte_ranges import LENGTH_BYTES, Block, merge_ranges
from retina_ray.data.prepared.schema import IMAGE_COLUMN
from retina_ray.data.prepared.shard_reader import ShardReader
from retina_ray.errors import DataError

_MAX_GAP_BYTES = 64 * 2**10
"""What a remote storage sends in less time than it takes to answer another question."""
_MAX_BLOCK_BYTES = 8 * 2**20
_NUM_OPEN_SHARDS = 64
_MAX_KEPT_BYTES = 128 * 2**20
"""A remote set up to this size is kept in memory as it is read, instead of once for each epoch."""

Range = tuple[int, int, int, int]
"""Shard, first byte, number of bytes, CRC-32."""


class ImageReader:
    """Reads images out of shards; safe to be used by several threads, not to be pickled."""

    def __init__(self, shards: ShardReader) -> None:
        self._shards = shards
        self._lock = threading.Lock()
        self._idle: OrderedDict[int, list[pa.NativeFile]] = OrderedDict()
        num_bytes = sum(shard.num_bytes for shard in shards.info.shards)
        self._keep = num_bytes <= _MAX_KEPT_BYTES
        self._kept: dict[Range, bytes] = {}

    def read(self, places: Sequence[tuple[int, int, int]]) -> list[bytes | None]:
        """Read images.

        Args:
            places: shard, row group and row within it, as the set's index has them.

        Returns:
            The encoded images in the order of the places; None for one whose bytes are not those
            that were written: the disk or a copy has damaged it. A shard that does not say where
            its images lie is read by the row group, and has no checksums.

        Raises:
            DataError: there is no such place, a shard cannot be read, or was changed.
        """
        shards = self._shards
        for shard, row_group, row in places:
            shards.check_place(shard, row_group, row)
        named = list(dict.fromkeys(place[0] for place in places))
        tables = dict(zip(named, shards.each(shards.image_ranges, named), strict=True))
        images: list[bytes | None] = [None] * len(places)
        members: list[int] = []
        ranges: list[Range] = []
        for number, (shard, row_group, row) in enumerate(places):
            table = tables[shard]
            if table is None:
                images[number] = shards.row_group(shard, row_group)[IMAGE_COLUMN][row].as_py()
                continue
            before = sum(shards.info.shards[shard].row_group_rows[:row_group])
            members.append(number)
            ranges.append((shard, *table[before + row].item()))
        for number, image in zip(members, self._read_ranges(ranges), strict=True):
            images[number] = image
        return images

    def check(self, shard: int, row_group: int, images: Sequence[bytes]) -> None:
        """Compare what a shard says of its images with what its row group holds.

        Lengths and checksums of all; the first and the last one are read where they are said to
        lie. Nothing is compared where the shard does not say it.

        Args:
            shard: position in the set.
            row_group: position in the shard.
            images: of that row group, in order.

        Raises:
            DataError: they differ.
        """
        self._shards.check_place(shard, row_group)
        table = self._shards.image_ranges(shard)
        if table is None:
            return
        before = sum(self._shards.info.shards[shard].row_group_rows[:row_group])
        for row, image in enumerate(images):
            offset, length, checksum = table[before + row].item()
            good = (length, checksum) == (len(image), zlib.crc32(image))
            if good and row in (0, len(images) - 1):
                good = self._bytes(shard, offset, length) == image
            if not good:
                raise self._changed(
                    shard, f"image {before + row} is not what its footer says, or not there"
                )

    def _read_ranges(self, ranges: Sequence[Range]) -> list[bytes | None]:
        """Read ranges, as few bytes as is wise, unless they are kept."""
        if self._shards.is_local:
            blocks = [Block(s, o, o + n, (i,)) for i, (s, o, n, _) in enumerate(ranges)]
            return self._read_blocks(blocks, ranges)
        missing = [one for one in dict.fromkeys(ranges) if one not in self._kept]
        blocks = merge_ranges(
            [one[:3] for one in missing], max_gap=_MAX_GAP_BYTES, max_bytes=_MAX_BLOCK_BYTES
        )
        read = dict(zip(missing, self._read_blocks(blocks, missing), strict=True))
        if self._keep:
            self._kept.update((one, data) for one, data in read.items() if data is not None)
        return [read[one] if one in read else self._kept[one] for one in ranges]

    def _read_blocks(self, blocks: Sequence[Block], ranges: Sequence[Range]) -> list[bytes | None]:
        """Read blocks, and compare the ranges in them with their checksums."""
        images: list[bytes | None] = [None] * len(ranges)
        for block, content in zip(blocks, self._shards.each(self._block, blocks), strict=True):
            for member in block.members:
                _, offset, length, checksum = ranges[member]
                start = offset - block.start
                # A slice of all of it is no copy.
                image = content[start : start + length]
                good = zlib.crc32(image) == checksum
                images[member] = image if good else self._read_again(ranges[member])
        return images

    def _block(self, block: Block) -> bytes:
        content = self._bytes(block.shard, block.start, block.stop - block.start)
        if len(content) < block.stop - block.start:
            raise self._changed(
                block.shard, f"it has no longer all of the bytes {block.start} to {block.stop}"
            )
        return content

    def _read_again(self, wrong: Range) -> bytes | None:
        """Read an image that came with other bytes once more: they may be spoilt on their way.

        Returns:
            The image; None where the shard does not hold its bytes any more.

        Raises:
            DataError: not even its length stands before it, so the file was changed as a whole.
        """
        shard, offset, length, checksum = wrong
        content = self._bytes(shard, offset - LENGTH_BYTES, LENGTH_BYTES + length)
        if int.from_bytes(content[:LENGTH_BYTES], "little") != length:
            raise self._changed(
                shard, f"the image at bytes {offset} to {offset + length} is not there"
            )
        image = content[LENGTH_BYTES:]
        return image if zlib.crc32(image) == checksum else None

    def _changed(self, shard: int, reason: str) -> DataError:
        return DataError(
            f"{self._shards.shown(shard)}: {reason}: the shard was changed after it was written; "
            "copy or prepare it again"
        )

    def _bytes(self, shard: int, offset: int, length: int) -> bytes:
        """Read bytes of a shard; several threads use as many open files."""
        with self._lock:
            files = self._idle.get(shard)
            file = files.pop() if files else None
        file = file or self._shards.open_bytes(shard)
        try:
            content: bytes = file.read_at(length, offset)
        except (OSError, pa.ArrowException) as error:
            raise self._shards.unreadable(shard, error) from error
        with self._lock:
            self._idle.setdefault(shard, []).append(file)
            self._idle.move_to_end(shard)
            if len(self._idle) > _NUM_OPEN_SHARDS:
                self._idle.popitem(last=False)
        return content
