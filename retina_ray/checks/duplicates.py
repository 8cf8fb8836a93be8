"""Which images of a data set are copies of each other, or nearly so, within and across splits.

Files that agree byte by byte are found by their digest, near-duplicates by their perceptual
hashes. These are not compared all with all: of two hashes of 64 bits that differ in at most 11, one
of four bands of 16 bits differs in at most two (pigeonhole), so each image is compared only with
those that have a band at most two bits off: for 100 000 random hashes 42 million pairs instead of
5 billion, in 3 s of one core and 20 MB; 200 000 take 7 s. For millions it becomes minutes, where
reading them takes hours.

Memory: about 0.4 kB for each image.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from retina_ray.checks.images import ImageResult
from retina_ray.data.images.perceptual_hash import (
    MAX_HASH_BITS,
    MAX_THUMBNAIL_DISTANCE,
    thumbnail_distances,
)
from retina_ray.errors import Fault

_NUM_BANDS, _BAND_BITS, _SLACK_BITS = 4, 16, 2
_MASKS = sorted(a | b for a, b in combinations_with_replacement([1 << i for i in range(16)], 2))
"""What a band may differ in, besides in nothing."""
_MAX_SHARED = 64
"""With how many of those in the same bucket an image is compared: a still camera makes thousands
that are all alike, and one or two partners are enough to name it."""
_PAIRS_AT_ONCE = 1 << 16
_THUMBNAILS_AT_ONCE = 1 << 12


@dataclass(frozen=True)
class _NearDuplicate:
    """An earlier image that a later one looks like."""

    position: int
    bits: int
    distance: float


class DuplicateFinder:
    """Collects the perceptual hashes of all images of all splits, then finds those alike."""

    def __init__(self) -> None:
        self._splits: list[str] = []
        self._split_of = array("H")
        self._names: list[str] = []
        self._ids: list[int] = []
        self._digests: dict[bytes, int] = {}
        self._copies: list[tuple[int, int]] = []
        self._seen: list[int] = []
        self._hashes = array("Q")
        self._thumbnails = bytearray()

    def add(self, split: str, result: ImageResult) -> None:
        """Note an image that could be read."""
        if result.digest is None:
            return
        if split not in self._splits:
            self._splits.append(split)
        position = len(self._names)
        self._split_of.append(self._splits.index(split))
        self._names.append(result.item.file_name)
        self._ids.append(result.item.image_id)
        first = self._digests.setdefault(result.digest, position)
        if first != position:
            self._copies.append((position, first))
        elif result.perceptual_hash is not None:
            self._seen.append(position)
            self._hashes.append(result.perceptual_hash.bits)
            self._thumbnails += result.perceptual_hash.thumbnail.tobytes()

    def faults(self) -> Iterator[tuple[str, Fault]]:
        """Yield (split, fault) for each image that an earlier one is like."""
        for position, first in self._copies:
            same = self._split_of[position] == self._split_of[first]
            kind = "image twice in a split" if same else "image in two splits"
            yield self._fault(kind, position, f"is byte by byte {self._name(first)}")
        for position, other in sorted(self._near_duplicates().items()):
            same = self._split_of[position] == self._split_of[other.position]
            kind = "near-duplicate images" if same else "near-duplicate images across splits"
            message = (
                f"looks like {self._name(other.position)}: {other.bits} of 64 bits differ, "
                f"distance {other.distance:.3f}"
            )
            yield self._fault(kind, position, message)

    def _fault(self, kind: str, position: int, message: str) -> tuple[str, Fault]:
        split = self._splits[self._split_of[position]]
        return split, Fault(kind, message, self._names[position], self._ids[position])

    def _name(self, position: int) -> str:
        return f"{self._splits[self._split_of[position]]}: {self._names[position]}"

    def _near_duplicates(self) -> dict[int, _NearDuplicate]:
        """For each image its most alike earlier one; of another split, if there is such a one."""
        hashes = np.frombuffer(self._hashes, np.uint64) if self._hashes else np.empty(0, np.uint64)
        shape = (len(hashes), 16, 16)
        thumbnails = np.frombuffer(bytes(self._thumbnails), np.uint8).reshape(shape)
        best: dict[int, tuple[bool, float, _NearDuplicate]] = {}
        for a, b, bits in close_pairs(hashes):
            slices = [
                slice(i, i + _THUMBNAILS_AT_ONCE) for i in range(0, len(a), _THUMBNAILS_AT_ONCE)
            ]
            distances = np.concatenate(
                [thumbnail_distances(thumbnails[a[s]], thumbnails[b[s]]) for s in slices]
            )
            for k in np.flatnonzero(distances <= MAX_THUMBNAIL_DISTANCE).tolist():
                earlier, later = (self._seen[i] for i in sorted((int(a[k]), int(b[k]))))
                distance = float(distances[k])
                within = self._split_of[earlier] == self._split_of[later]
                rank = (within, distance, _NearDuplicate(earlier, int(bits[k]), distance))
                if later not in best or rank[:2] < best[later][:2]:
                    best[later] = rank
        return {later: rank[2] for later, rank in best.items()}


def close_pairs(
    hashes: NDArray[np.uint64], max_bits: int = MAX_HASH_BITS
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Find the pairs of hashes that differ in few bits, each pair once.

    Args:
        hashes: (n,).
        max_bits: at most 11, so that one of the four bands differs in two bits at most.

    Yields:
        Positions of one and of the other, and the number of bits, in arrays of equal length. Where
        more than 64 hashes share a band, not every pair of them is looked at, but each is with 64.
    """
    if not 0 <= max_bits < (_SLACK_BITS + 1) * _NUM_BANDS:
        raise ValueError(
            f"max_bits = {max_bits}: expected 0 to {(_SLACK_BITS + 1) * _NUM_BANDS - 1}"
        )
    shifts = np.arange(_NUM_BANDS, dtype=np.uint64) * np.uint64(_BAND_BITS)
    bands = (hashes[:, None] >> shifts) & np.uint64((1 << _BAND_BITS) - 1)
    for band in range(_NUM_BANDS):
        for a, b in _bucket_pairs(bands[:, band].astype(np.int64)):
            differing = hashes[a] ^ hashes[b]
            bits = _num_bits(differing)
            near = bits <= max_bits
            for earlier in range(band):  # that have given this pair already
                part = (differing >> shifts[earlier]) & np.uint64((1 << _BAND_BITS) - 1)
                near &= _num_bits(part) > _SLACK_BITS
            if near.any():
                yield a[near], b[near], bits[near]


def _bucket_pairs(keys: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], ...]]:
    """Yield the positions of pairs whose 16-bit keys differ in at most two bits."""
    # Mixed, so that where a bucket is too full, partners come from all splits.
    mixed = np.random.default_rng(0).permutation(len(keys))
    order = mixed[np.argsort(keys[mixed], kind="stable")]
    ranked = keys[order]
    starts = np.searchsorted(ranked, np.arange((1 << _BAND_BITS) + 1))
    place = np.arange(len(keys))
    for mask in (0, *_MASKS):
        lowest = mask & -mask  # by which of the two sides comes first is settled
        mine = place if mask == 0 else np.flatnonzero((ranked & lowest) == 0)
        other = ranked[mine] ^ mask
        first = mine + 1 if mask == 0 else starts[other]
        counts = np.clip(starts[other + 1] - first, 0, _MAX_SHARED)
        ends = np.cumsum(counts)
        at = 0
        while at < len(mine):
            base = int(ends[at - 1]) if at else 0
            until = max(at + 1, int(np.searchsorted(ends, base + _PAIRS_AT_ONCE, side="right")))
            part = counts[at:until]
            a = np.repeat(mine[at:until], part)
            inner = np.arange(len(a)) - np.repeat(ends[at:until] - part - base, part)
            b = np.repeat(first[at:until], part) + inner
            if len(a):
                yield order[a], order[b]
            at = until


def _num_bits(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many bits are set (the sums of 1, 2, 4 and 8 bits in parallel)."""
    ones, twos, fours = (
        np.uint64(m) for m in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F)
    )
    values = values - ((values >> np.uint64(1)) & ones)
    values = (values & twos) + ((values >> np.uint64(2)) & twos)
    values = (values + (values >> np.uint64(4))) & fours
    return ((values * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)
