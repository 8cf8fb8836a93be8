"""Pictures are read alone: each from its own bytes of the shard, or not at all."""

import base64
import pickle
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileOpener
from spoilt_sets import with_column
from tiny_sets import make_record, write_set

from retina_ray.data.loading.stored_images import StoredImages
from retina_ray.data.prepared import image_reader
from retina_ray.data.prepared.byte_ranges import (
    IMAGE_RANGE,
    RANGES_KEY,
    Block,
    RangeRecorder,
    decode_ranges,
    merge_ranges,
)
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import Record
from retina_ray.errors import DataError

RNG = np.random.default_rng(0)
SMALL = [RNG.bytes(int(n)) for n in RNG.integers(50, 400, 11)]
LARGE = [RNG.bytes(700_000) for _ in range(5)]  # several pages of 1 MiB to a column
# Lengths and beginnings of images within others, and the same image twice.
NESTED = [
    b"\x05\0\0\0abcdX",
    b"abcde",
    b"\x05\0\0\0abcde",
    b"abcde",
    b"",
    b"\0\0\0\0",
    b"a",
]


def record(i: int, image: bytes, **changes) -> Record:
    """Image i with i % 3 boxes, of which the second is a crowd region."""
    num = i % 3
    boxes, crowd = [(1, 2, 11 + i, 22.5)] * num, np.arange(num) == 1
    return make_record(i, boxes, image=image, width=64 + i, iscrowd=crowd, **changes)


def write(uri, images=SMALL, **options) -> PreparedDataset:
    def more(i: int) -> dict:
        if options.get("box_type") != "rotated":
            return {}
        return {"rotated_boxes": np.array([[9, 9, 4, 2, i]] * (i % 3), np.float32)}

    records = (record(i, image, **more(i)) for i, image in enumerate(images))
    return write_set(uri, records, **{"rows_per_group": 3, "rows_per_shard": 7, **options})


def places(dataset: PreparedDataset) -> list[tuple[int, int, int]]:
    index = dataset.index()
    return list(zip(*(index[n].to_pylist() for n in ("shard", "row_group", "row")), strict=True))


def footer(path: Path) -> np.ndarray:
    value = pq.read_metadata(path).metadata[RANGES_KEY.encode()]
    return np.frombuffer(base64.b64decode(value), IMAGE_RANGE).copy()


def rewrite(folder: Path, ranges: np.ndarray | str | None, name="shard-00000.parquet"):
    """Write a shard as another program does, with what it then says of its images."""
    path = folder / name
    table = pq.read_table(path)
    with pq.ParquetWriter(path, table.schema, compression="NONE") as writer:
        writer.write_table(table, row_group_size=3)
        if ranges is not None:
            text = ranges
            if isinstance(ranges, np.ndarray):
                text = base64.b64encode(ranges.tobytes()).decode()
            writer.add_key_value_metadata({RANGES_KEY: text})


@pytest.mark.parametrize("images", [SMALL, LARGE, NESTED], ids=["small", "large", "nested"])
@pytest.mark.parametrize("box_type", ["aligned", "rotated"])
def test_each_range_holds_its_image(tmp_path, images, box_type):
    dataset = write(tmp_path / "a", images, box_type=box_type)
    found = []
    for shard in dataset.info.shards:
        path = tmp_path / "a" / shard.file
        content = path.read_bytes()
        for offset, length, checksum in footer(path).tolist():
            image = content[offset : offset + length]
            assert content[offset - 4 : offset] == len(image).to_bytes(4, "little")
            assert checksum == zlib.crc32(image)
            found.append(image)
    assert found == images
    assert pq.read_table(tmp_path / "a" / "shard-00000.parquet")["image"].to_pylist() == images[:7]


def test_an_image_in_two_pieces_is_an_error():
    recorder = RangeRecorder(pa.BufferOutputStream())
    recorder.write(b"\x04\0\0\0ab")
    recorder.write(b"cd")
    recorder.locate([b"abcd"])  # two writes are no matter
    recorder.write(b"\x04\0\0\0ab-cd")
    with pytest.raises(RuntimeError, match="does not write images in one piece"):
        recorder.locate([b"abcd"])


def test_what_only_begins_like_an_image_is_passed_over():
    """Before the images stand the other columns, and they may hold anything."""
    alike = b"alike" * 20
    recorder = RangeRecorder(pa.BufferOutputStream())
    recorder.write(b"\x78\0\0\0" + alike + b"A" * 20)
    recorder.write(b"\x78\0\0\0" + alike + b"B" * 20)
    recorder.locate([alike + b"B" * 20])
    value = recorder.footer[RANGES_KEY].encode()
    ((offset, length, _),) = decode_ranges(value, num_rows=1, num_bytes=248).tolist()
    assert (offset, length) == (128, 120)


@pytest.mark.parametrize("scheme", ["", "file://", "fsspec+file://"])
def test_images_come_as_they_were_written(tmp_path, scheme):
    dataset = write(f"{scheme}{tmp_path}/a")
    order = [*places(dataset), (0, 1, 2)]
    random.Random(0).shuffle(order)
    # Three of a row group, seven of a shard.
    expected = [SMALL[7 * shard + 3 * group + row] for shard, group, row in order]
    assert dataset.read_images(order) == expected
    assert pickle.loads(pickle.dumps(dataset)).read_images(order) == expected
    assert dataset.read_images([]) == []
    for wrong in [(2, 0, 0), (0, 3, 0), (0, 0, 3), (1, 1, 1), (0, 0, -1), (-1, 0, 0)]:
        with pytest.raises(DataError, match="has no row"):
            dataset.read_images([wrong])


def test_shards_of_older_versions_are_read_by_the_row_group(tmp_path):
    dataset = write(tmp_path / "a")
    order = places(dataset)
    rewrite(tmp_path / "a", None)
    older = PreparedDataset(dataset.uri, dataset.info)
    assert older.read_images(order) == SMALL  # one shard with ranges, one without
    older.check_images(0, 0, SMALL[:3])


@pytest.mark.parametrize(
    ("box_type", "box"), [("aligned", [1, 2, 15, 22.5]), ("rotated", [9, 9, 4, 2, 4])]
)
def test_images_of_a_source_have_their_boxes(tmp_path, box_type, box):
    """By hand: image 2 has a box and a crowd region, 3 none, 4 one box."""
    dataset = write(tmp_path / "a", box_type="rotated")
    source = StoredImages(dataset, dataset.index(), box_type=box_type)
    for _ in range(2):  # the second time from what was kept
        images = source.read([4, 2, 3, 2])
        assert sorted(images) == [2, 3, 4]
        assert [images[i].boxes.shape for i in (2, 3, 4)] == [(n, len(box)) for n in (1, 0, 1)]
        image = images[4]
        assert (image.data, image.file_name, image.damage) == (SMALL[4], "4.jpg", None)
        assert (image.image_id, image.size) == (104, (48, 68))
        assert (image.boxes.dtype, image.labels.dtype) == (np.float32, np.int32)
        assert (image.boxes.tolist(), image.labels.tolist()) == ([box], [0])
        with pytest.raises(ValueError, match="read-only"):
            image.boxes[0] = 0


def test_pickles_leave_everything_behind(tmp_path):
    dataset = write(tmp_path / "a")
    source = StoredImages(dataset, dataset.index())
    before = len(pickle.dumps(source))
    first = source.read(range(11))
    assert len(pickle.dumps(source)) == before
    again = pickle.loads(pickle.dumps(source)).read(range(11))
    assert [again[i].data for i in range(11)] == [first[i].data for i in range(11)]


# Damage


def test_a_damaged_image_is_named_and_the_others_are_read(tmp_path):
    dataset = write(tmp_path / "a")
    path = tmp_path / "a" / "shard-00000.parquet"
    content = bytearray(path.read_bytes())
    offset, length, _ = footer(path)[4].item()
    content[offset + length - 1] ^= 1
    path.write_bytes(content)
    assert dataset.read_images(places(dataset)) == [*SMALL[:4], None, *SMALL[5:]]
    images = StoredImages(dataset, dataset.index()).read([3, 4])
    assert (images[3].data, images[3].damage) == (SMALL[3], None)
    assert images[4].data == b""
    assert images[4].damage is not None
    assert "in shard-00000.parquet are not those that were written" in images[4].damage
    with pytest.raises(DataError, match=r"shard-00000\.parquet: image 4 is not what"):
        dataset.check_images(0, 1, dataset.read_row_group(0, 1)["image"].to_pylist())
    dataset.check_images(0, 0, SMALL[:3])


def test_a_shard_that_was_changed_is_no_damaged_image(tmp_path):
    """Its bytes have moved by one, its size and its footer are the same."""
    dataset = write(tmp_path / "a")
    path = tmp_path / "a" / "shard-00001.parquet"
    content = path.read_bytes()
    end = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    path.write_bytes(content[:4] + b"\0" + content[4 : end - 1] + content[end:])
    assert dataset.read_images([(0, 2, 0)]) == [SMALL[6]]
    with pytest.raises(DataError, match=r"shard-00001\.parquet: the image at .* prepare it again"):
        dataset.read_images([(0, 0, 0), (1, 0, 1)])
    with pytest.raises(DataError, match=r"image 0 is not what its footer says, or not there"):
        dataset.check_images(1, 0, SMALL[7:10])


def test_a_shard_that_is_cut_while_it_is_read(tmp_path):
    dataset = write(tmp_path / "a", LARGE)
    assert dataset.read_images([(0, 0, 0)]) == LARGE[:1]
    path = tmp_path / "a" / "shard-00000.parquet"
    with path.open("r+b") as file:
        file.truncate(2_000_000)
    assert dataset.read_images([(0, 0, 1)]) == LARGE[1:2]
    with pytest.raises(DataError, match=r"shard-00000\.parquet: it has no longer all of"):
        dataset.read_images([(0, 1, 1)])


def test_a_shard_that_is_gone(tmp_path):
    dataset = write(tmp_path / "a")
    (tmp_path / "a" / "shard-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"shard-00001\.parquet: cannot be read"):
        dataset.read_images([(1, 0, 0)])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no base64!", "footer does not say where the images lie"),
        ("", "0 bytes, expected 16 for each of 7 images"),
        (np.zeros(6, IMAGE_RANGE), "96 bytes, expected 16 for each of 7 images"),
        (np.zeros(7, IMAGE_RANGE), "image 0 at bytes 0 to 0 of a file"),
        (np.array([(10**6, 5, 0)] * 7, IMAGE_RANGE), "image 0 at bytes 1000000 to 1000005"),
        (np.array([(2**64 - 3, 5, 0)] * 7, IMAGE_RANGE), "image 0 at bytes"),
    ],
)
def test_a_footer_of_another_shard(tmp_path, value, message):
    dataset = write(tmp_path / "a")
    rewrite(tmp_path / "a", value)
    with pytest.raises(DataError, match=message) as caught:
        dataset.read_images([(0, 0, 0)])
    assert "shard-00000.parquet: " in str(caught.value)
    assert "copy or prepare it again" in str(caught.value)
    assert dataset.read_images([(1, 0, 0)]) == SMALL[7:8]


def test_a_footer_that_another_program_kept(tmp_path):
    """The images lie elsewhere now, within the file."""
    dataset = write(tmp_path / "a")
    rewrite(tmp_path / "a", footer(tmp_path / "a" / "shard-00000.parquet"))
    assert dataset.read_row_group(0, 1)["image"].to_pylist() == SMALL[3:6]
    with pytest.raises(DataError, match="changed after it was written"):
        dataset.read_images([(0, 1, 0)])


def test_columns_that_do_not_fit_each_other(tmp_path):
    dataset = write(tmp_path / "a")
    path = tmp_path / "a" / "shard-00000.parquet"
    table = pq.read_table(path)
    crowd = [[], [False, True], [False], [], [False], [False, True], []]
    pq.write_table(with_column(table, "iscrowd", crowd), path, row_group_size=3)
    source = StoredImages(dataset, dataset.index())
    with pytest.raises(DataError, match=r"shard-00000\.parquet: row group 0: columns of different"):
        source.read([0])


# From afar


def test_ranges_are_joined_where_little_lies_between():
    ranges = [(0, 100, 10), (1, 110, 10), (0, 130, 5), (0, 116, 10), (0, 110, 1), (0, 131, 2)]
    assert merge_ranges(ranges, max_gap=5, max_bytes=1000) == [
        Block(0, 100, 135, (0, 4, 3, 2, 5)),
        Block(1, 110, 120, (1,)),
    ]
    assert merge_ranges(ranges, max_gap=4, max_bytes=1000) == [
        Block(0, 100, 111, (0, 4)),
        Block(0, 116, 135, (3, 2, 5)),
        Block(1, 110, 120, (1,)),
    ]
    assert merge_ranges(ranges[:1] + ranges[2:], max_gap=5, max_bytes=26) == [
        Block(0, 100, 126, (0, 3, 2)),
        Block(0, 130, 135, (1, 4)),
    ]
    assert merge_ranges([], max_gap=5, max_bytes=10) == []


@pytest.fixture
def traffic(monkeypatch):
    """Numbers of bytes of all that is read through fsspec."""
    sizes: list[int] = []
    read = LocalFileOpener.read

    def counted(self, *args):
        content = read(self, *args)
        sizes.append(len(content))
        return content

    monkeypatch.setattr(LocalFileOpener, "read", counted)
    return sizes


NUM_FAR, FAR_BYTES = 64, 80_000


@pytest.fixture
def far(traffic, tmp_path) -> PreparedDataset:
    """Two row groups of 32 images of 80 000 bytes each."""
    images = [RNG.bytes(FAR_BYTES) for _ in range(NUM_FAR)]
    return write(f"fsspec+file://{tmp_path}/far", images, rows_per_group=32, rows_per_shard=64)


def test_a_batch_costs_its_own_bytes(far, traffic, monkeypatch):
    """Not those of its row groups, and not again the footer and the boxes."""
    monkeypatch.setattr(image_reader, "_MAX_KEPT_BYTES", 0)
    source = StoredImages(PreparedDataset.open(far.uri), far.index())
    traffic.clear()
    source.read([1, 9, 21, 40])
    assert 4 * FAR_BYTES < sum(traffic) < 4 * FAR_BYTES + 80_000
    traffic.clear()
    source.read([5, 13, 25, 44])
    assert sorted(traffic) == [FAR_BYTES] * 4
    traffic.clear()
    source.read(range(8, 20))  # neighbours come in one answer
    assert len(traffic) == 1
    assert 12 * FAR_BYTES < sum(traffic) < 12 * FAR_BYTES + 1000


def test_a_small_set_is_kept(far, traffic):
    source = StoredImages(PreparedDataset.open(far.uri), far.index())
    first = source.read(range(0, NUM_FAR, 2))
    traffic.clear()
    again = source.read(range(0, NUM_FAR, 2))
    assert [again[i].data for i in again] == [first[i].data for i in first]
    assert traffic == []


def test_bytes_that_are_spoilt_on_their_way_are_read_again(far, monkeypatch):
    dataset = PreparedDataset.open(far.uri)
    expected = far.read_images([(0, 0, 3), (0, 1, 3)])
    read, spoilt = LocalFileOpener.read, []

    def spoiling(self, *args):
        content: Any = read(self, *args)
        if len(content) == FAR_BYTES and not spoilt:
            spoilt.append(content)
            return content[:-1] + bytes([content[-1] ^ 1])
        return content

    monkeypatch.setattr(LocalFileOpener, "read", spoiling)
    assert dataset.read_images([(0, 0, 3), (0, 1, 3)]) == expected
    assert len(spoilt) == 1


def test_ranges_may_end_with_the_file():
    ranges = np.array([(4, 5, 1), (13, 0, 0)], IMAGE_RANGE)
    value = base64.b64encode(ranges.tobytes())
    assert decode_ranges(value, num_rows=2, num_bytes=13).tolist() == [(4, 5, 1), (13, 0, 0)]
    with pytest.raises(ValueError, match="image 1 at bytes 13 to 13 of a file of 12 bytes"):
        decode_ranges(value, num_rows=2, num_bytes=12)
