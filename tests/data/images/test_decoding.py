"""From encoded bytes to pixels."""

import io
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from retina_ray.data.images.decoding import DecodeError, decode_image
from retina_ray.data.images.files import decode_upright
from retina_ray.data.images.headers import encoded_size
from retina_ray.errors import SourceFileError


def encode(rgb: np.ndarray, ext: str = ".png", *params: int) -> bytes:
    order = {2: None, 3: cv2.COLOR_RGB2BGR}.get(rgb.ndim)
    picture = rgb if order is None or rgb.shape[2] == 4 else cv2.cvtColor(rgb, order)
    return cv2.imencode(ext, picture, params)[1].tobytes()


def smooth_picture(height: int, width: int) -> np.ndarray:
    """A ramp in each direction: (H, W, 3), which no decoder may shift or mirror."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x / width, 255 * y / height
    return np.stack([red, green, np.full_like(red, 40)], axis=2).astype(np.uint8)


def exif(orientation: int) -> bytes:
    """The segment of a JPEG that says which way up it is."""
    # A TIFF directory of one entry: tag 0x0112 (orientation), SHORT, 1 value.
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + bytes(6)
    segment = b"Exif\0\0" + tiff
    return b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment


def test_decode_is_exact_for_png_and_in_rgb_order():
    picture = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    np.testing.assert_array_equal(decode_image(encode(picture)), picture)


def test_decode_grey_alpha_and_16_bit():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(decode_image(encode(grey)), np.stack([grey] * 3, 2))
    deep = np.array([[0, 257, 65535]], np.uint16)
    np.testing.assert_array_equal(decode_image(encode(deep))[0, :, 0], [0, 1, 255])
    bgra = np.zeros((2, 2, 4), np.uint8)
    bgra[..., 2], bgra[..., 3] = 200, 0  # red, transparent: the colour stays
    np.testing.assert_array_equal(decode_image(encode(bgra))[0, 0], [200, 0, 0])


def test_decode_ignores_exif_orientation():
    jpeg = encode(smooth_picture(40, 60), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 95)
    turned = jpeg[:2] + exif(6) + jpeg[2:]
    oriented = cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR)
    assert oriented is not None
    assert oriented.shape == (60, 40, 3), "the test's EXIF is not understood"
    np.testing.assert_array_equal(decode_image(turned), decode_image(jpeg))
    assert encoded_size(turned) == (40, 60)


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        ((80, 160), None, (80, 160)),
        ((80, 160), 81, (80, 160)),  # enlarging: nothing to save
        ((80, 160), 41, (80, 160)),
        ((80, 160), 40, (40, 80)),
        ((80, 160), 20, (20, 40)),
        ((80, 160), 10, (10, 20)),
        ((80, 160), 1, (10, 20)),  # 1/8 is the smallest there is
        ((81, 160), 41, (41, 80)),  # ceil(81 / 2)
        # ceil(81 / 4) * 4 = 84: three quarters of the last pixel would be outside
        ((81, 160), 20, (41, 80)),
        ((78, 160), 20, (20, 40)),  # half of it: allowed
    ],
)
def test_reduced_jpeg_decoding(size, target, expected):
    picture = smooth_picture(*size)
    reduced = decode_image(encode(picture, ".jpg"), min_shorter_side=target, expected_size=size)
    assert reduced.shape == (*expected, 3)
    # The same picture, not a corner of it.
    reference = cv2.resize(picture, expected[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(reduced.astype(int) - reference).max() <= 8


def test_png_is_never_reduced():
    assert decode_image(encode(smooth_picture(80, 160)), min_shorter_side=10).shape == (80, 160, 3)


def test_encoded_size_of_progressive_png_and_unknown():
    picture = smooth_picture(33, 47)
    progressive = encode(picture, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert encoded_size(progressive) == (33, 47)
    assert encoded_size(encode(picture)) == (33, 47)
    assert encoded_size(encode(picture, ".bmp")) is None
    assert encoded_size(b"") is None
    assert encoded_size(b"\xff\xd8\xff\xe0\0\x10") is None


@given(st.binary(max_size=200))
def test_encoded_size_never_fails(tail):
    for head in (b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n"):
        size = encoded_size(head + tail)
        assert size is None or len(size) == 2


def test_decode_faults_say_why():
    jpeg = encode(smooth_picture(80, 160), ".jpg")
    with pytest.raises(DecodeError, match="empty"):
        decode_image(b"")
    with pytest.raises(DecodeError, match="not an image"):
        decode_image(b"hello")
    with pytest.raises(DecodeError, match="truncated"):
        decode_image(jpeg[: len(jpeg) // 2])
    with pytest.raises(DecodeError):
        decode_image(encode(smooth_picture(80, 160))[:-200])
    with pytest.raises(DecodeError, match="160 x 80 pixels, its annotation says 160 x 81"):
        decode_image(jpeg, expected_size=(81, 160), min_shorter_side=20)
    with pytest.raises(DecodeError, match="annotation says"):
        decode_image(encode(smooth_picture(8, 16), ".bmp"), expected_size=(16, 8))


JPEG_KINDS = {
    "4:2:0": {"subsampling": 2},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 3},
    "stored as RGB": {"keep_rgb": True},
    "grey": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
}


def jpeg_of(size: tuple[int, int], mode: str = "RGB", **options) -> bytes:
    """A JPEG of a smooth picture with some noise: edges that decoders treat each in its own way."""
    noise = np.random.default_rng(0).integers(0, 40, (*size, 3), np.uint8)
    file = io.BytesIO()
    picture = Image.fromarray(smooth_picture(*size) // 2 + noise).convert(mode)
    picture.save(file, "JPEG", quality=85, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", JPEG_KINDS)
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (8, 8), (15, 17), (40, 57), (104, 64)])
def test_jpegs_decode_as_opencv_does(kind, size):
    jpeg = jpeg_of(size, **JPEG_KINDS[kind])
    flags = [
        cv2.IMREAD_COLOR,
        cv2.IMREAD_REDUCED_COLOR_2,
        cv2.IMREAD_REDUCED_COLOR_4,
        cv2.IMREAD_REDUCED_COLOR_8,
    ]
    by_opencv = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), flag) for flag in flags]
    sizes = set()
    for target in range(1, min(size) + 1):
        decoded = decode_image(jpeg, min_shorter_side=target, expected_size=size)
        # Of the smallest pictures, two reductions may have the same size.
        assert any(np.array_equal(decoded[..., ::-1], other) for other in by_opencv)
        sizes.add(decoded.shape)
    assert len(sizes) == 4 or min(size) < 64


def test_files_that_were_not_imported_are_turned_upright_and_judged():
    jpeg = jpeg_of((40, 57))
    turned = jpeg[:2] + exif(6) + jpeg[2:]
    np.testing.assert_array_equal(decode_upright(turned), np.rot90(decode_image(jpeg), k=-1))
    np.testing.assert_array_equal(decode_upright(jpeg), decode_image(jpeg))
    with pytest.raises(SourceFileError, match="57 x 40 pixels by its header"):
        decode_upright(jpeg, max_pixels=40 * 57 - 1)
    with pytest.raises(SourceFileError, match="ends early"):
        decode_upright(jpeg[:-200])


def test_a_truncated_jpeg_is_found_behind_the_end_of_its_thumbnail():
    jpeg, thumbnail = jpeg_of((64, 64)), jpeg_of((16, 16))
    segment = b"\xff\xe2" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = jpeg[:2] + segment + jpeg[2:]
    np.testing.assert_array_equal(decode_image(whole), decode_image(jpeg))
    with pytest.raises(DecodeError, match="truncated: the file ends early"):
        decode_image(whole[:-100])


def test_of_a_jpeg_with_spoilt_data_opencv_decides():
    whole = jpeg_of((64, 64))
    # Without half of its data, but with a marker for the end.
    spoilt = whole[: len(whole) // 2] + b"\xff\xd9"
    expected = cv2.imdecode(np.frombuffer(spoilt, np.uint8), cv2.IMREAD_COLOR)
    assert expected is not None
    np.testing.assert_array_equal(decode_image(spoilt), expected[..., ::-1])


def test_stray_bytes_between_segments_are_no_fault():
    jpeg = jpeg_of((40, 57))
    first = 4 + int.from_bytes(jpeg[4:6], "big")  # the end of the first segment
    stray = jpeg[:first] + b"\0\0" + jpeg[first:]
    np.testing.assert_array_equal(decode_image(stray), decode_image(jpeg))


def test_more_pixels_than_opencv_takes_are_refused_by_the_header():
    jpeg = bytearray(jpeg_of((40, 57)))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = (65500).to_bytes(2, "big") * 2
    with pytest.raises(DecodeError, match="OpenCV refuses it"):
        decode_image(bytes(jpeg))


def test_threads_decode_side_by_side():
    jpegs = [jpeg_of((40 + i, 57)) for i in range(32)]
    with ThreadPoolExecutor(8) as pool:
        for alone, together in zip(
            map(decode_image, jpegs), pool.map(decode_image, jpegs), strict=True
        ):
            np.testing.assert_array_equal(alone, together)
