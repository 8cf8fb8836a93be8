"""Sizes, decoding and boxes."""

import math
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2.functional import resize

from retina_ray.data.image_headers import encoded_size
from retina_ray.data.transforms import (
    DecodeError,
    decode_image,
    flip_boxes,
    place_boxes,
    resize_image,
    shortest_edge_size,
)


def encode(rgb: np.ndarray, ext: str = ".png", *params: int) -> bytes:
    order = {2: None, 3: cv2.COLOR_RGB2BGR}.get(rgb.ndim)
    picture = rgb if order is None or rgb.shape[2] == 4 else cv2.cvtColor(rgb, order)
    return cv2.imencode(ext, picture, params)[1].tobytes()


def smooth_picture(height: int, width: int) -> np.ndarray:
    """A ramp in each direction: (H, W, 3), which no decoder may shift or mirror."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x / width, 255 * y / height
    return np.stack([red, green, np.full_like(red, 40)], axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        ((480, 640), (800, 1333), (800, 1067)),  # 640 * 800 / 480 = 1066.67
        ((640, 480), (800, 1333), (1067, 800)),
        ((427, 640), (800, 1333), (800, 1199)),  # 1199.06
        ((200, 600), (800, 1333), (444, 1333)),  # 2400 is cut to 1333, 800 * 1333 / 2400 = 444.3
        ((100, 100), (800, 1333), (800, 800)),
        ((4, 6), (3, 100), (3, 5)),  # 4.5 rounds half up
        ((1, 10000), (800, 1333), (1, 1333)),  # 0.13, where detectron2 gives 0
        ((1, 1), (1, 1), (1, 1)),
        # Halves by floating point, as there: 672 / 960 * 1405 is 983.4999999999999, and
        # 800 * (1000 / (800 / 363 * 528)) is 687.4999999999999.
        ((960, 1405), (672, 1333), (672, 983)),
        ((528, 363), (800, 1000), (1000, 687)),
    ],
)
def test_shortest_edge_size(size, target, expected):
    assert shortest_edge_size(*size, *target) == expected


@given(st.integers(1, 1500), st.integers(1, 1500), st.integers(1, 900), st.integers(0, 800))
def test_shortest_edge_size_in_fractions(height, width, size, extra):
    scale = Fraction(size, min(height, width))
    scale = min(scale, Fraction(size + extra, max(height, width)))
    exact = [scale * height, scale * width]
    found = shortest_edge_size(height, width, size, size + extra)
    for side, value in zip(found, exact, strict=True):
        if (value + Fraction(1, 2)).denominator > 1:  # else the rounding of floats decides
            assert side == max(1, math.floor(value + Fraction(1, 2)))
        else:
            assert side in (value - Fraction(1, 2), value + Fraction(1, 2), 1)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1200), st.integers(0, 800))
def test_shortest_edge_size_keeps_limits(height, width, size, extra):
    longest = size + extra
    new_height, new_width = shortest_edge_size(height, width, size, longest)
    assert 1 <= min(new_height, new_width) <= size
    assert max(new_height, new_width) <= longest
    assert min(new_height, new_width) == size or max(new_height, new_width) == longest
    assert (new_height <= new_width) if height <= width else (new_height >= new_width)


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
    # APP1 with a TIFF directory of one entry: tag 0x0112 (orientation), SHORT, 1 value: 6.
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"Exif\0\0" + tiff
    turned = jpeg[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + jpeg[2:]
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


@pytest.mark.parametrize("factor", [2, 4])
def test_shrinking_does_not_alias(factor):
    stripes = np.zeros((8, 16, 3), np.uint8)
    stripes[:, ::2] = 200
    small = resize_image(stripes, 8 // factor, 16 // factor)
    np.testing.assert_array_equal(small, np.full((8 // factor, 16 // factor, 3), 100))
    assert resize_image(stripes, 8, 16) is stripes
    assert resize_image(stripes, 9, 17).shape == (9, 17, 3)


@pytest.mark.parametrize("size", [(60, 80), (41, 55), (50, 41), (40, 79), (31, 41), (39, 39)])
def test_shrinking_is_near_to_antialiased_resizing(size):
    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.integers(0, 256, (60, 80, 3), np.uint8), (3, 3), 1.0)
    expected = resize(
        torch.from_numpy(picture).permute(2, 0, 1).double(), list(size), antialias=True
    )
    apart = np.abs(resize_image(picture, *size) - expected.permute(1, 2, 0).numpy())
    plain = np.abs(
        cv2.resize(picture, size[::-1], interpolation=cv2.INTER_LINEAR)
        - expected.permute(1, 2, 0).numpy()
    )
    assert apart.mean() < 3
    if min(60 / size[0], 80 / size[1]) > 1.4:
        assert apart.mean() < 0.5 * plain.mean()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 1), (5, 40)])
def test_a_flat_picture_stays_flat(size):
    for source in ((1, 1), (1, 60), (9, 1), (9, 60)):
        flat = np.full((*source, 3), 77, np.uint8)
        np.testing.assert_array_equal(resize_image(flat, *size), np.full((*size, 3), 77))


def test_flip_boxes_by_hand():
    boxes = np.array([[1, 2, 4, 8]], np.float32)
    flip = lambda h, v: flip_boxes(boxes, 10, 20, horizontal=h, vertical=v).tolist()  # noqa: E731
    assert flip(False, False) == [[1, 2, 4, 8]]
    assert flip(True, False) == [[16, 2, 19, 8]]
    assert flip(False, True) == [[1, 2, 4, 8]]  # 10 - 8 = 2, 10 - 2 = 8
    assert flip(True, True) == [[16, 2, 19, 8]]
    nothing = np.zeros((0, 4), np.float32)
    assert flip_boxes(nothing, 10, 20, horizontal=True, vertical=True).shape == (0, 4)


def test_place_boxes_by_hand():
    boxes = np.array([[1, 2, 4, 8], [0, 0, 20, 10]], np.float32)
    placed = place_boxes(boxes, (10, 20), (25, 40))
    assert placed.tolist() == [[2, 5, 8, 20], [0, 0, 40, 25]]
    outside = place_boxes(np.array([[-1, 0, 20.5, 11]], np.float32), (10, 20), (10, 20))
    assert outside.tolist() == [[0, 0, 20, 10]]
