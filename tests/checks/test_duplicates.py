import time

import numpy as np
import pytest
from check_sources import picture

from retina_ray.checks.duplicates import DuplicateFinder, close_pairs
from retina_ray.checks.images import ImageItem, ImageResult
from retina_ray.data.images.perceptual_hash import PerceptualHash, perceptual_hash


def pairs_of(hashes, max_bits=11) -> list[tuple[int, int, int]]:
    hashes = np.array(hashes, np.uint64)
    return sorted(
        (min(i, j), max(i, j), bits)
        for a, b, n in close_pairs(hashes, max_bits)
        for i, j, bits in zip(a.tolist(), b.tolist(), n.tolist(), strict=True)
    )


def test_no_hash_and_one():
    assert pairs_of([]) == []
    assert pairs_of([5]) == []


@pytest.mark.parametrize(("bits", "is_near"), [(0, True), (1, True), (11, True), (12, False)])
def test_eleven_bits_are_near_and_twelve_are_not(bits, is_near):
    other = (1 << bits) - 1  # all in one band
    spread = sum(1 << (5 * bit) for bit in range(bits))  # three or so in each band
    for value in (other, spread):
        assert pairs_of([0, value]) == ([(0, 1, bits)] if is_near else [])


def test_the_same_pairs_as_comparing_all_with_all():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 600, dtype=np.uint64)
    copies = hashes[:300].copy()
    for i, copy in enumerate(copies):
        for bit in rng.choice(64, rng.integers(0, 17), replace=False):
            copies[i] = copy = copy ^ (np.uint64(1) << np.uint64(bit))
    values = [int(h) for h in np.concatenate([hashes, copies, hashes[:9]])]
    expected = [
        (i, j, (a ^ b).bit_count())
        for j, b in enumerate(values)
        for i, a in enumerate(values[:j])
        if (a ^ b).bit_count() <= 11
    ]
    assert len(expected) > 100
    assert pairs_of(values) == sorted(expected)  # each of them once


def test_more_bits_than_the_bands_allow_are_refused():
    with pytest.raises(ValueError, match="max_bits = 12: expected 0 to 11"):
        pairs_of([1, 2], 12)


def test_many_hashes_take_seconds_not_hours():
    hashes = np.random.default_rng(1).integers(0, 2**64, 15_000, dtype=np.uint64)
    hashes[14_000] = hashes[10_000] ^ np.uint64(0b1010101)
    start = time.monotonic()
    assert (10_000, 14_000, 4) in pairs_of(hashes)
    assert time.monotonic() - start < 20


def test_thousands_that_are_all_alike_are_each_found():
    num = 3000
    near = np.zeros(num, np.int64)
    for a, b, _ in close_pairs(np.zeros(num, np.uint64)):
        near += np.bincount(a, minlength=num) + np.bincount(b, minlength=num)
    assert near.min() >= 64
    assert near.sum() <= 2 * 64 * num


def result(
    number: int, perceptual_hash: PerceptualHash | None, digest: bytes | None = None
) -> ImageResult:
    item = ImageItem(f"{number}.jpg", number, 1, 1, bytes, lambda *_: None)  # type: ignore
    digest = digest or number.to_bytes(16, "big")
    return ImageResult(item, [], np.empty(0, np.int32), 0, digest, perceptual_hash)


def faults(finder: DuplicateFinder) -> list[tuple[str, str, str]]:
    return [(split, fault.kind, str(fault)) for split, fault in finder.faults()]


def test_nothing_to_compare():
    finder = DuplicateFinder()
    assert faults(finder) == []
    finder.add("train", ImageResult(result(1, None).item, [], np.empty(0, np.int32), 0, None, None))
    finder.add("train", result(2, None))
    assert faults(finder) == []


def test_near_hashes_of_pictures_that_differ_are_not_reported():
    finder = DuplicateFinder()
    for number in (1, 2):
        thumbnail = perceptual_hash(picture(number)[..., 0]).thumbnail
        finder.add("train", result(number, PerceptualHash(7, thumbnail)))
    assert faults(finder) == []


def test_the_partner_of_another_split_comes_first_though_one_of_its_own_is_nearer():
    hashed = perceptual_hash(picture(1)[..., 0])
    finder = DuplicateFinder()
    finder.add("train", result(1, PerceptualHash(hashed.bits ^ 0b111, hashed.thumbnail)))
    finder.add("val", result(2, hashed))
    finder.add("val", result(3, hashed))
    kind = "near-duplicate images across splits"
    text = "looks like train: 1.jpg: 3 of 64 bits differ, distance 0.000"
    assert faults(finder) == [
        ("val", kind, f"2.jpg, image 2: {text}"),
        ("val", kind, f"3.jpg, image 3: {text}"),
    ]


def test_a_copy_that_was_not_decoded_is_found_by_its_bytes():
    finder = DuplicateFinder()
    finder.add("train", result(1, None, b"x" * 16))
    finder.add("val", result(2, None, b"x" * 16))
    finder.add("val", result(3, None, b"x" * 16))
    assert [(split, kind) for split, kind, _ in faults(finder)] == [
        ("val", "image in two splits"),
        ("val", "image in two splits"),
    ]
