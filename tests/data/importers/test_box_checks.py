import json
import struct
import zlib

import cv2
import numpy as np
import pytest

from retina_ray.data.images.files import encode_jpeg, load_image, read_image_file
from retina_ray.data.importers.box_checks import BOX_FAULTS, ImportLog, check_boxes
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.importers.raw import RawBox, RawImage
from retina_ray.data.prepared.record_checks import record_faults
from retina_ray.data.prepared.schema import Record
from retina_ray.errors import DataError, Fault, SourceFileError
from retina_ray.storage.source_folder import SourceFolder, resolve_inside

NAN, INF = float("nan"), float("inf")
DROP = ImportOptions(on_bad_box="drop", on_bad_image="drop")


def check(*boxes, policy="error", height=48, width=64):
    """Check XYXY boxes of one image; returns what is left and the log."""
    raw = [
        RawBox(i, 0, box, (box[0], box[1], box[2] - box[0], box[3] - box[1]), 100.0)
        for i, box in enumerate(boxes, start=1)
    ]
    log = ImportLog(ImportOptions(on_bad_box=policy))
    checked = check_boxes(
        RawImage(5, "a.jpg", None, None, raw), height=height, width=width, log=log
    )
    return checked, log


BAD = {
    "zero width": ((3, 4, 3, 9), "box of zero or negative size"),
    "zero height": ((3, 4, 5, 4), "box of zero or negative size"),
    "negative": ((9, 4, 3, 9), "box of zero or negative size"),
    "nan": ((3, NAN, 5, 9), "box is not finite"),
    "inf": ((3, 4, INF, 9), "box is not finite"),
    "outside": ((70, 4, 80, 9), "box out of the image"),
    "touches from outside": ((64, 4, 65, 9), "box out of the image"),
    "empty in float32": ((60, 4, 60 + 1e-9, 9), "box of zero or negative size"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_mended(name):
    box, kind = BAD[name]
    checked, log = check(box, (1, 1, 2, 2))
    assert [(f.kind, f.file, f.image_id, f.annotation_id) for f in log.faults] == [
        (kind, "a.jpg", 5, 1)
    ]
    for policy in ("drop", "clip"):
        checked, log = check(box, (1, 1, 2, 2), policy=policy)
        assert log.faults == []
        assert checked.annotation_id.tolist() == [2]
        assert log.report()["dropped_boxes_by_kind"] == {kind: 1}


def test_all_faults_are_collected():
    _, log = check(*(box for box, _ in BAD.values()))
    assert [f.annotation_id for f in log.faults] == list(range(1, len(BAD) + 1))
    assert {f.kind for f in log.faults} <= BOX_FAULTS
    with pytest.raises(DataError) as caught:
        log.raise_if_faulty()
    assert len(caught.value.faults) == len(BAD)


def test_box_that_sticks_out_is_an_error_dropped_or_clipped():
    out = (-2, 10, 30, 60)
    assert [f.kind for f in check(out)[1].faults] == ["box out of the image"]
    checked, log = check(out, policy="drop")
    assert checked.boxes.shape == (0, 4)
    assert log.report()["dropped_boxes"] == 1
    checked, log = check(out, policy="clip")
    np.testing.assert_array_equal(checked.boxes, [[0, 10, 30, 48]])
    np.testing.assert_array_equal(checked.bbox, [[0, 10, 30, 38]])
    np.testing.assert_allclose(checked.area, [100 * (30 * 38) / (32 * 50)])
    assert (log.report()["clipped_boxes"], log.report()["dropped_boxes"]) == (1, 0)


@pytest.mark.parametrize("policy", ["error", "drop", "clip"])
def test_border_is_fine_and_rounding_is_cut_silently(policy):
    checked, log = check((0, 0, 64, 48), (-1, 0.5, 64.003, 48.9), policy=policy)
    np.testing.assert_array_equal(checked.boxes, [[0, 0, 64, 48], [0, 0.5, 64, 48]])
    np.testing.assert_allclose(checked.bbox[1], [-1, 0.5, 65.003, 48.4])  # as annotated
    assert log.faults == []
    report = log.report()
    assert (report["rounded_boxes"], report["clipped_boxes"], report["dropped_boxes"]) == (1, 0, 0)


def test_just_over_a_pixel_is_not_rounding():
    assert check((0, 0, 65, 48))[1].faults == []
    assert len(check((0, 0, 65.01, 48))[1].faults) == 1


def test_no_boxes():
    checked, log = check()
    assert checked.boxes.shape == (0, 4)
    assert checked.labels.shape == (0,)
    assert log.faults == []


@pytest.mark.parametrize(
    "name", ["../a.jpg", "sub/../../a.jpg", "/etc/hosts", "C:\\a.jpg", "..\\a.jpg", "", "a\0b"]
)
def test_names_that_leave_the_folder(tmp_path, name):
    with pytest.raises(SourceFileError) as caught:
        resolve_inside(tmp_path, name)
    assert caught.value.kind == "file name leaves the folder"


def test_links(tmp_path):
    inside, outside = tmp_path / "images", tmp_path / "other"
    inside.mkdir()
    outside.mkdir()
    (outside / "a.jpg").write_bytes(b"x")
    (inside / "real.jpg").write_bytes(b"x")
    (inside / "out.jpg").symlink_to(outside / "a.jpg")
    (inside / "folder").symlink_to(outside)
    (inside / "in.jpg").symlink_to(inside / "real.jpg")
    for name in ("out.jpg", "folder/a.jpg"):
        with pytest.raises(SourceFileError, match="is a link to"):
            resolve_inside(inside, name)
    assert resolve_inside(inside, "in.jpg") == (inside / "real.jpg").resolve()
    (tmp_path / "link").symlink_to(inside)
    assert resolve_inside(tmp_path / "link", "sub/new.jpg") == inside.resolve() / "sub/new.jpg"


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


def test_other_formats_become_png_without_loss(tmp_path):
    pixels = picture()
    image = load(save(tmp_path / "a.bmp", pixels))
    assert image.changes == ("format changed",)
    assert image.data.startswith(b"\x89PNG")
    back = cv2.imdecode(np.frombuffer(image.data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(back, pixels)


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


def png_header(width: int, height: int) -> bytes:
    """A whole PNG of a few bytes that claims to be of this size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        content = kind + body
        return struct.pack(">I", len(body)) + content + struct.pack(">I", zlib.crc32(content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bombs() -> dict[str, bytes]:
    """Small files of 50 000 x 50 000 pixels: 7.5 GB each, once decoded."""
    side = 50_000
    jpeg = bytearray(encode_jpeg(picture()))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    _, bmp = cv2.imencode(".bmp", picture())
    bmp[18:26] = np.frombuffer(struct.pack("<ii", side, -side), np.uint8)
    return {
        "png": png_header(side, side),
        "jpeg": bytes(jpeg),
        "bmp": bmp.tobytes(),
        "pnm": b"P6 # a comment\n50000 50000\n255\n" + bytes(99),
        "gif": b"GIF89a" + struct.pack("<HH", side, side) + bytes(9),
        "webp": b"RIFF\0\0\0\0WEBPVP8X\n\0\0\0\0\0\0\0" + 2 * (side - 1).to_bytes(3, "little"),
        "tiff": b"II*\0\x08\0\0\0\x02\0"
        + struct.pack("<HHIIHHIII", 256, 4, 1, side, 257, 4, 1, side, 0),
    }


@pytest.mark.parametrize("name", ["png", "jpeg", "bmp", "pnm", "gif", "webp", "tiff"])
def test_decompression_bombs_are_refused_by_their_header(monkeypatch, name):
    monkeypatch.setattr(cv2, "imdecode", None)  # it is never asked
    with pytest.raises(SourceFileError, match="50000 x 50000 pixels by its header") as caught:
        load_image(bombs()[name])
    assert caught.value.kind == "enormous image"
    assert "limit of 180000000" in caught.value.message


def test_limit_of_pixels_can_be_set():
    data = encode_jpeg(picture())  # 50 x 30
    assert load_image(data, max_pixels=1500).width == 50
    with pytest.raises(SourceFileError, match="1500 in all and more than the limit of 1499"):
        load_image(data, max_pixels=1499)


def test_formats_of_unknown_size_are_not_decoded(monkeypatch):
    _, avif_like = cv2.imencode(".hdr", picture().astype(np.float32))
    monkeypatch.setattr(cv2, "imdecode", None)
    for data in (avif_like.tobytes(), b"no image at all"):
        with pytest.raises(SourceFileError, match="no header of a JPEG, PNG") as caught:
            load_image(data)
        assert caught.value.kind == "unreadable image"


@pytest.mark.parametrize("extension", [".bmp", ".ppm", ".webp", ".tif", ".gif"])
def test_formats_that_become_png(extension):
    _, data = cv2.imencode(extension, picture())
    image = load_image(data.tobytes())
    assert (image.height, image.width, image.changes) == (30, 50, ("format changed",))


def test_parts_of_a_log_add_up_to_the_whole():
    """As tasks note it and the driver sums it up, through JSON where a shard was kept."""
    whole, first, second = (ImportLog(DROP) for _ in range(3))
    for i in range(30):
        part = first if i < 12 else second
        for log in (whole, part):
            log.bad_box(Fault("kind a" if i % 2 else "kind b", f"box {i}"))
            log.counts["rounded_boxes"] += 1
    for log in (whole, second):
        log.bad_image(Fault("missing image", "gone"))
    total = ImportLog(DROP)
    total.absorb_counts(json.loads(json.dumps(first.to_dict())))
    total.absorb(second)
    assert json.dumps(total.report()) == json.dumps(whole.report())
    assert total.report()["dropped_boxes"] == 30
    assert len(total.report()["examples"]) == 20


@pytest.mark.parametrize(("changes", "bad"), [({"image_id": 2**63}, 2**63), ({}, -(2**63) - 1)])
def test_ids_that_no_column_can_hold_are_faults_of_the_record(changes, bad):
    ids = [7, bad] if not changes else [7, 8]
    values = {"image_id": 2**63 - 1, **changes}
    record = Record(
        image=b"",
        file_name="a.jpg",
        height=48,
        width=64,
        boxes=np.array([[1, 1, 2, 2]] * 2, np.float32),
        labels=np.array([0, 0]),
        iscrowd=np.zeros(2, np.bool_),
        area=np.ones(2),
        annotation_id=np.array(ids, object),
        **values,
    )
    rest = {"num_classes": 1, "box_type": "aligned", "image_ids": set(), "annotation_ids": set()}
    faults = list(record_faults(record, **rest))
    assert [f.kind for f in faults] == ["id out of range"]
    assert f"id {bad} needs more than 64 bits" in faults[0].message
