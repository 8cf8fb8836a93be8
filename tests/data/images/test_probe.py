import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from retina_ray.data.images.files import load_image
from retina_ray.data.images.headers import ImageHeader, read_header
from retina_ray.data.images.perceptual_hash import (
    MAX_HASH_BITS,
    MAX_THUMBNAIL_DISTANCE,
    perceptual_hash,
    thumbnail_distances,
)
from retina_ray.data.images.probe import probe_image
from retina_ray.errors import SourceFileError


def picture(height=48, width=64, seed=0) -> np.ndarray:
    """Smooth blobs: something to be hashed, unlike noise."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (6, 8, 3)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 255)


def jpeg(pixels: np.ndarray, quality=95) -> bytes:
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def turned(orientation: int, format="JPEG") -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    Image.fromarray(picture().astype(np.uint8)).save(file, format, exif=exif)
    return file.getvalue()


def png_header(height: int, width: int, bits=8, colour=2) -> bytes:
    """A PNG that is whole and says any size, with a single byte of pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        total = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", total)

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


# Headers


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_the_size_is_that_which_opencv_decodes(orientation, format):
    data = turned(orientation, format)
    header = read_header(data)
    assert header is not None
    assert (header.height, header.width) == (48, 64)
    if format == "WEBP":
        return  # its EXIF is not read, nor applied by OpenCV
    assert header.orientation == orientation
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert header.shown_size() == decoded.shape[:2] == ((64, 48) if orientation > 4 else (48, 64))


@pytest.mark.parametrize(
    ("format", "options"),
    [("BMP", {}), ("GIF", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("PPM", {})],
)
def test_sizes_of_other_formats(format, options):
    file = io.BytesIO()
    Image.fromarray(picture(30, 50).astype(np.uint8)).save(file, format, **options)
    header = read_header(file.getvalue())
    assert header is not None
    assert header.format == {"PPM": "pnm"}.get(format, format.lower())
    assert (header.height, header.width, header.bits, header.orientation) == (30, 50, 8, 1)


@pytest.mark.parametrize(
    ("data", "bits", "channels"),
    [
        (b"P1\n3 2\n1 0 1 0 1 0\n", 1, 1),
        (b"P2 # grey\r# twice\n3\t2\n# of\n255\n1 2 3 4 5 6\n", 8, 1),
        (b"P3\n3 2\n65535\n" + 18 * b"7 ", 16, 3),
        (b"P4\n3 2\n\xa0\x40", 1, 1),
        (b"P5\n#\n#3 3\n 3 2 255\n" + bytes(6), 8, 1),
        (b"P6\r\n3 2\r\n65535\n" + bytes(36), 16, 3),
    ],
)
def test_a_pnm_says_what_opencv_decodes(data, bits, channels):
    assert read_header(data) == ImageHeader("pnm", 2, 3, bits, channels)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded.shape[:2] == (2, 3)
    assert decoded.dtype == (np.uint16 if bits == 16 else np.uint8)


@pytest.mark.parametrize(
    "data",
    [
        b"P6 #\r9 9\n3 2\n255\n",  # the comment ends at CR: 9 x 9
        b"P6 9#9 \n3 255\n",  # the # is swallowed with the number: 9 x 9
    ],
)
def test_a_pnm_whose_comments_hide_its_size_is_read_as_opencv_reads_it_or_not_at_all(data):
    decoded = cv2.imdecode(np.frombuffer(data + bytes(243), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (9, 9, 3)
    assert read_header(data + bytes(243)) in (None, ImageHeader("pnm", 9, 9))


def test_of_a_tag_that_stands_twice_the_first_counts():
    """As libtiff does: the other way round, a bomb could say a small size at last."""
    file = io.BytesIO()
    Image.fromarray(picture(30, 50).astype(np.uint8)).save(file, "TIFF")
    data = bytearray(file.getvalue())
    (at,) = struct.unpack_from("<I", data, 4)
    (num_entries,) = struct.unpack_from("<H", data, at)
    entries = [data[at + 2 + 12 * i :][:12] for i in range(num_entries)]
    (width,) = (entry for entry in entries if entry[:2] == b"\0\1")
    for kind in (4, 16):  # LONG, and one that is not read here
        small = struct.pack("<HHII", 256, 4, 1, 5)
        first = width[:2] + struct.pack("<H", kind) + width[4:] if kind == 16 else width
        others = [entry for entry in entries if entry is not width]
        struct.pack_into("<I", data, 4, len(data))
        data += struct.pack("<H", num_entries + 1) + first + small + b"".join(others) + bytes(4)
        header = read_header(bytes(data))
        assert header is not None
        assert (header.height, header.width) == (30, None if kind == 16 else 50)


def test_the_short_header_of_an_old_bitmap():
    pixels = bytes(52) * 3  # rows of 17 pixels of 3 bytes, padded to 4
    header = b"BM" + struct.pack("<IHHI", 26 + len(pixels), 0, 0, 26)
    data = header + struct.pack("<IHHHH", 12, 17, 3, 1, 24) + pixels
    assert Image.open(io.BytesIO(data)).size == (17, 3)
    assert read_header(data) == ImageHeader("bmp", 3, 17)


def test_depth_and_channels():
    pixels = picture()
    assert read_header(jpeg(pixels)) == ImageHeader("jpeg", 48, 64, 8, 3, 1)
    assert read_header(jpeg(pixels[..., 0])) == ImageHeader("jpeg", 48, 64, 8, 1, 1)
    assert read_header(png(pixels.astype(np.uint16))) == ImageHeader("png", 48, 64, 16, 3, 1)
    assert read_header(png(np.zeros((1, 1, 4), np.uint8))) == ImageHeader("png", 1, 1, 8, 4, 1)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert("CMYK").save(file, "JPEG")
    assert read_header(file.getvalue()) == ImageHeader("jpeg", 48, 64, 8, 4, 1)


def test_a_header_of_a_jpeg_after_fill_bytes_and_a_long_segment():
    data = jpeg(picture())
    segment = b"\xff\xe5" + struct.pack(">H", 40_002) + bytes(40_000)
    assert read_header(data[:2] + segment + b"\xff\xff\xff" + data[3:]) == read_header(data)


STRAY = [b"\x07", b"\xff\0", b"\xff\xff\0\xff", b"\xff\xd0\1", bytes(999)]


@pytest.mark.parametrize("stray", STRAY)
def test_stray_bytes_between_the_segments_of_a_jpeg_are_skipped(stray):
    data = jpeg(picture())
    odd = data[:20] + stray + data[20:]  # behind JFIF's segment
    assert data[20:22] == b"\xff\xdb"
    assert read_header(odd) == read_header(data) == ImageHeader("jpeg", 48, 64)
    assert probe_image(odd).problem is None
    image = load_image(odd)
    assert (image.height, image.width, image.data) == (48, 64, odd)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM"])
def test_a_header_cut_anywhere_is_none_or_right(format):
    file = io.BytesIO()
    Image.fromarray(picture().astype(np.uint8)).save(file, format)
    data = file.getvalue()
    for end in range(min(len(data), 800)):
        header = read_header(data[:end])
        if header is not None:
            assert header.height in (48, None)
            assert header.width in (64, None)


@pytest.mark.parametrize("tail", [b"", b"\xff", b"\xff\xc0\0\x05\x08", b"\xff\xe1\0\x02", b"abc"])
def test_damaged_headers_raise_nothing(tail):
    assert read_header(b"\xff\xd8" + tail) is None


def test_an_exif_that_points_outside_itself_is_upright():
    data = turned(6)
    at = data.index(b"Exif\0\0") + 6
    damaged = data[: at + 4] + b"\xff\xff\xff\xff" + data[at + 8 :]
    header = read_header(damaged)
    assert header is not None
    assert header.orientation == 1


# Probes


def test_a_sound_image():
    probe = probe_image(jpeg(picture()))
    assert probe.problem is None
    assert (probe.height, probe.width) == (48, 64)
    assert probe.perceptual_hash is not None
    assert probe.perceptual_hash.thumbnail.shape == (16, 16)
    assert len(probe.digest) == 16


def test_one_pixel():
    probe = probe_image(png(np.full((1, 1, 3), 7, np.uint8)))
    assert (probe.height, probe.width, probe.problem) == (1, 1, None)


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (b"", "unreadable image", "the file is empty"),
        (b"no image", "unreadable image", "no header of a JPEG, PNG, BMP, GIF, WebP, TIFF or PNM"),
        (b"BM" + bytes(30), "unreadable image", "not an image that OpenCV can decode"),
        (jpeg(picture())[:-200], "truncated image", "ends early"),
        (png(picture())[:-30], "truncated image", "ends early"),
        (
            png_header(100_000, 100_000),
            "enormous image",
            "100000 x 100000 pixels by its header, 10000000000 in all and more than the limit of "
            "180000000: it was not decoded",
        ),
    ],
)
def test_problems(data, kind, message):
    probe = probe_image(data)
    assert probe.problem is not None
    assert (probe.problem.kind, probe.perceptual_hash) == (kind, None)
    assert message in probe.problem.message


def jpeg_bomb() -> bytearray:
    data = bytearray(jpeg(picture()))
    at = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, at + 5, 50_000, 50_000)
    return data


SIZE = "50000 x 50000 pixels by its header"
NO_HEADER = "no header of a JPEG, PNG, BMP, GIF, WebP, TIFF or PNM image"
BOMBS = {
    "png": (png_header(50_000, 50_000), SIZE),
    "jpeg": (bytes(jpeg_bomb()), SIZE),
    "jpeg with a stray byte": (bytes(jpeg_bomb()[:20] + b"\x07" + jpeg_bomb()[20:]), SIZE),
    "bmp": (b"BM" + bytes(12) + struct.pack("<Iii", 40, 50_000, -50_000) + bytes(99), SIZE),
    "gif": (b"GIF89a" + struct.pack("<HH", 50_000, 50_000) + bytes(9), SIZE),
    "webp": (b"RIFF\0\0\0\0WEBPVP8X\n" + bytes(7) + 2 * (49_999).to_bytes(3, "little"), SIZE),
    "tiff": (
        b"II*\0\x08\0\0\0\x02\0"
        + struct.pack("<HHIIHHIII", 256, 4, 1, 50_000, 257, 4, 1, 50_000, 0),
        SIZE,
    ),
    "pnm": (b"P5 # grey\n50000 50000 255\n" + bytes(99), SIZE),
    "pnm of ten digits": (b"P5 0000050000 0000050000 255\n" + bytes(99), NO_HEADER),
    "pam": (b"P7\nWIDTH 50000\nHEIGHT 50000\nDEPTH 1\nMAXVAL 255\nENDHDR\n", NO_HEADER),
    "avif": (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(99), NO_HEADER),
    "jpeg 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), NO_HEADER),
    "hdr": (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 50000 +X 50000\n" + bytes(99), NO_HEADER),
}


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("name", BOMBS)
def test_what_importing_refuses_is_refused_in_its_words_and_not_decoded(monkeypatch, name, decode):
    data, message = BOMBS[name]
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    probe = probe_image(data, decode=decode)
    assert probe.problem is not None
    assert message in probe.problem.message
    assert probe.perceptual_hash is None
    is_known = message != NO_HEADER
    assert (probe.height, probe.width) == ((50_000, 50_000) if is_known else (None, None))
    with pytest.raises(SourceFileError) as refused:
        load_image(data)
    assert (probe.problem.kind, probe.problem.message) == refused.value.args
    assert probe.problem.kind == ("enormous image" if is_known else "unreadable image")


def test_the_limit_can_be_set():
    data = jpeg(picture())
    assert probe_image(data, max_pixels=48 * 64).problem is None
    probe = probe_image(data, max_pixels=48 * 64 - 1)
    assert probe.problem is not None
    assert "64 x 48 pixels by its header, 3072 in all" in probe.problem.message
    assert load_image(data, max_pixels=48 * 64).width == 64
    with pytest.raises(SourceFileError, match="3072 in all and more than the limit of 3071"):
        load_image(data, max_pixels=48 * 64 - 1)


def test_without_decoding_only_headers_and_ends_are_read(monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("it was decoded"))
    whole = probe_image(jpeg(picture()), decode=False)
    assert (whole.problem, whole.perceptual_hash, whole.height) == (None, None, 48)
    cut = probe_image(jpeg(picture())[:-200], decode=False)
    assert cut.problem is not None


@pytest.mark.parametrize("shape", [(48, 64), (640, 1000), (129, 1030)])
def test_the_orientation_is_applied_or_not(shape):
    exif = Image.Exif()
    exif[274] = 6
    file = io.BytesIO()
    Image.fromarray(picture(*shape).astype(np.uint8)).save(file, "JPEG", exif=exif)
    upright = probe_image(file.getvalue())
    stored = probe_image(file.getvalue(), apply_orientation=False)
    assert (upright.height, upright.width) == shape[::-1]
    assert (stored.height, stored.width) == shape
    assert upright.perceptual_hash is not None
    assert stored.perceptual_hash is not None
    side = np.rot90(stored.perceptual_hash.thumbnail, -1)
    assert np.abs(upright.perceptual_hash.thumbnail.astype(int) - side).max() <= 8


# DuplicateFinder


def grey(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(np.clip(pixels, 0, 255).astype(np.uint8), cv2.COLOR_BGR2GRAY)


def compare(one: np.ndarray, other: np.ndarray) -> tuple[int, float]:
    a, b = perceptual_hash(one), perceptual_hash(other)
    distance = thumbnail_distances(a.thumbnail[None], b.thumbnail[None])[0]
    return (a.bits ^ b.bits).bit_count(), float(distance)


def test_bits_of_the_hash_are_signs_of_frequencies():
    """One wave along x: its own bit, and only that, changes with its sign."""
    x = np.cos(np.pi * (np.arange(32) + 0.5) * 2 / 32)
    wave = np.tile(100 * x, (32, 1))
    positive, negative = (perceptual_hash((128 + sign * wave).astype(np.uint8)) for sign in (1, -1))
    differing = positive.bits ^ negative.bits
    # (y, x) = (0, 2) is the third of the lowest frequencies: the first of them is dealt to the
    # first band, so it is bit 0 of band 2, counted from the highest bit.
    assert differing >> (63 - 32) & 1


def test_distances_by_hand():
    ramp = np.tile(np.arange(16, dtype=np.uint8) * 4, (16, 1))
    alike = thumbnail_distances(
        np.stack([ramp, ramp, ramp]), np.stack([ramp, 2 * ramp + 50, ramp.max() - ramp])
    )
    np.testing.assert_allclose(alike, [0, 0, 2], atol=1e-6)
    black, grey_, white = (np.full((16, 16), v, np.uint8) for v in (0, 2, 255))
    flat = thumbnail_distances(np.stack([black, black, black]), np.stack([black, grey_, white]))
    np.testing.assert_allclose(flat, [0, 0.1, 2])
    none = np.empty((0, 16, 16), np.uint8)
    assert thumbnail_distances(none, none).shape == (0,)


def test_altered_copies_are_near_and_others_far():
    original = picture(480, 640)
    height, width = original.shape[:2]
    copies = {
        "half": cv2.resize(original, (320, 240), interpolation=cv2.INTER_AREA),
        "brighter": original + 20,
        "darker": original - 20,
        "cut": original[5 : height - 5, 6 : width - 6],
        "coarse": cv2.imdecode(np.frombuffer(jpeg(original, 50), np.uint8), 1),
    }
    for name, copy in copies.items():
        bits, distance = compare(grey(original), grey(copy))
        assert bits <= MAX_HASH_BITS, name
        assert distance <= MAX_THUMBNAIL_DISTANCE, name
    for other in (picture(480, 640, seed=1), original[:, ::-1]):
        bits, distance = compare(grey(original), grey(other))
        assert bits > MAX_HASH_BITS
        assert distance > MAX_THUMBNAIL_DISTANCE
