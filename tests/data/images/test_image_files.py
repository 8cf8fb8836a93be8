"""Image files as they are imported: whole or refused, and changed where a decoder would err."""

import cv2
import numpy as np
import pytest

from retina_ray.data.images.files import encode_jpeg, load_image, read_image_file
from retina_ray.errors import SourceFileError
from retina_ray.storage.source_folder import SourceFolder


def picture(height=30, width=50) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def save(path, pixels, *options):
    assert cv2.imwrite(str(path), pixels, list(options))
    return path


def load(path, **options):
    """As an import does it: the bytes from their folder, then the decoder."""
    return load_image(read_image_file(SourceFolder(path.parent), path.name), **options)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.progressive.jpg"])
def test_whole_files_keep_their_bytes(tmp_path, name):
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if "progressive" in name else []
    path = save(tmp_path / name, picture(), *options)
    image = load(path, max_size_px=50)
    assert image.data == path.read_bytes()
    assert (image.height, image.width, image.changes) == (30, 50, ())
    path.write_bytes(path.read_bytes() + b"\0trailing")  # what some cameras append
    assert load(path).height == 30


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.progressive.jpg"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_cut_files_are_refused(tmp_path, name, share):
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if "progressive" in name else []
    path = save(tmp_path / name, picture(), *options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SourceFileError) as caught:
        load(path)
    assert caught.value.kind == "truncated image"


def test_damaged_png_is_refused(tmp_path):
    path = save(tmp_path / "a.png", picture())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(SourceFileError, match="damaged"):
        load(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (None, "missing image"),
        (b"", "unreadable image"),
        (b"hello", "unreadable image"),
        (b"\xff\xd8\xff\xd9", "unreadable image"),
    ],
)
def test_files_that_are_no_image(tmp_path, content, kind):
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceFileError) as caught:
        load(path)
    assert caught.value.kind == kind


def test_folder_is_not_an_image(tmp_path):
    with pytest.raises(SourceFileError) as caught:
        load(tmp_path)
    assert caught.value.kind == "unreadable image"


def test_large_images_are_shrunk(tmp_path):
    pixels = np.full((30, 50, 3), 77, np.uint8)
    image = load(save(tmp_path / "a.png", pixels), max_size_px=25)
    assert (image.height, image.width) == (15, 25)
    assert (image.original_height, image.original_width) == (30, 50)
    assert image.changes == ("resized",)
    assert image.data.startswith(b"\xff\xd8\xff")
    decoded = cv2.imdecode(np.frombuffer(image.data, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(decoded.astype(int) - 77).max() <= 2
    assert load(save(tmp_path / "b.png", picture(1, 50)), max_size_px=20).height == 1


def test_exif_orientation_is_applied_for_every_decoder(tmp_path):
    pixels = np.zeros((30, 50, 3), np.uint8)
    pixels[:, :25] = 255  # left half white; turned clockwise, the top half is
    exif = bytes.fromhex("4d4d002a00000008000101120003000000010006000000000000")
    body = b"Exif\0\0" + exif
    segment = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    data = encode_jpeg(pixels)
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:2] + segment + data[2:])
    image = load(path)
    assert (image.height, image.width) == (50, 30)
    assert image.changes == ("orientation applied",)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    stored = cv2.imdecode(np.frombuffer(image.data, np.uint8), flags)
    assert stored.shape == (50, 30, 3)
    assert stored[:20].min() > 240
    assert stored[30:].max() < 15


def test_encode_jpeg_takes_rgb():
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[..., 0] = 200
    decoded = cv2.imdecode(np.frombuffer(encode_jpeg(pixels), np.uint8), cv2.IMREAD_COLOR)
    assert decoded[8, 8, 2] > 190  # red comes last in OpenCV's order
    assert decoded[8, 8, 0] < 10


@pytest.mark.parametrize("suffix", [".bmp", ".ppm", ".webp", ".tif", ".gif"])
def test_other_formats_become_png_without_loss(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", picture())
    image = load(path)
    assert (image.height, image.width, image.changes) == (30, 50, ("format changed",))
    assert image.data.startswith(b"\x89PNG")
    encoded = cv2.imdecode(np.frombuffer(image.data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(encoded, cv2.imread(str(path)))
