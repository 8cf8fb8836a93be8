"""What only the importer of YOLO does."""

import numpy as np
import pytest
from import_sources import CAT, DOG, Box, YoloSource, records

from retina_ray.checks.check import check_dataset
from retina_ray.data.importers.box_checks import (
    MALFORMED_BOX,
    OUTSIDE,
    UNKNOWN_CLASS,
    ImportLog,
)
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.importers.yolo import import_yolo, read_yolo
from retina_ray.data.importers.yolo_labels import labels_of
from retina_ray.errors import DataError

ORIENTATION_6 = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
NAMES = "names: [cat, dog]"
TRAIN, LISTED = "train: images/train", "train: train.txt"


def lines(*texts):
    """Label lines as they stand."""
    return [Box(raw=text) for text in texts]


@pytest.fixture
def source(tmp_path) -> YoloSource:
    """Splits that are folders: `train` with a (two boxes) and b (none), `val` with c (one)."""
    source = YoloSource(tmp_path)
    for stems in source.splits.values():
        stems.clear()
    source.put("train/a", *lines("0 0.5 0.5 0.25 0.5", "1 0.25 0.25 0.5 0.5"))
    source.put("train/b")
    source.put("val/c", *lines("1 0.5 0.5 1 1"), split="val")
    source.yaml = (TRAIN, "val: images/val", "nc: 2", NAMES)
    return source


def read(source):
    log = ImportLog()
    return read_yolo(source.write() / "data.yaml", split="train", log=log), log


def test_reading_looks_at_headers_only(source):
    path = source.image("train/a")
    path.write_bytes(path.read_bytes()[:700])  # cut off after its header
    raw, log = read(source)
    assert [(i.height, i.width, len(i.boxes)) for i in raw.images] == [(48, 64, 2), (48, 64, 0)]
    assert not log.faults
    assert source.kinds() == ["truncated image"]


def test_missing_and_empty_label_files_are_images_without_boxes(source):
    source.put("train/c")
    source.put("train/d", *lines("\n  \n"))
    root = source.write()
    source.labels("train/c").unlink()
    dataset = source.run(root=root)
    assert [len(r.labels) for r in records(dataset)] == [2, 0, 0, 0]
    assert dataset.report["images_without_label_file"] == 1


def test_labels_without_an_image_are_counted(source):
    assert "label_files_without_image" not in source.run().report
    source.labels("train/photo").write_text("0 0.5 0.5 0.1 0.1")
    source.labels("train/classes").write_text("cat dog")  # which labelImg writes
    dataset = source.run(overwrite=True)
    assert dataset.num_images == 2
    assert dataset.report["label_files_without_image"] == 1
    source.yaml = (LISTED, NAMES)
    assert "label_files_without_image" not in source.run(overwrite=True).report


def test_exif_turns_the_sides(source):
    path = source.image("train/a")
    data = path.read_bytes()
    size = (2 + 6 + len(ORIENTATION_6)).to_bytes(2, "big")
    path.write_bytes(data[:2] + b"\xff\xe1" + size + b"Exif\0\0" + ORIENTATION_6 + data[2:])
    first = records(source.run())[0]
    assert (first.height, first.width) == (64, 48)
    np.testing.assert_array_equal(first.boxes[0], [18, 16, 30, 48])


def test_header_behind_a_long_profile_is_found(source):
    path = source.image("train/a")
    data = path.read_bytes()
    segment = b"\xff\xe2" + (60_000).to_bytes(2, "big") + bytes(59_998)
    path.write_bytes(data[:2] + 2 * segment + data[2:])
    assert read(source)[0].images[0].height == 48


def test_polygons_become_the_box_around_them(source):
    source.put("train/a", *lines("1 0.375 0.5 0.75 0.25 0.5 0.75", "0 0.5 0.5 0.5 0.5"))
    dataset = source.run()
    first = records(dataset)[0]
    np.testing.assert_array_equal(first.boxes, [[24, 12, 48, 36], [16, 12, 48, 36]])
    assert first.labels.tolist() == [1, 0]
    assert dataset.report["polygons_made_boxes"] == 1


def test_key_points_are_left_out(source):
    source.yaml = (TRAIN, NAMES, "kpt_shape: [2, 3]")
    points = "1 0.5 0.5 0.5 0.5 0.1 0.1 2 0.2 0.2 2"
    source.put("train/a", *lines(points, "0 0.5 0.5 0.5 0.5"))
    (fault,) = source.caught()
    assert fault.kind == MALFORMED_BOX
    assert "5 values; expected: class cx cy w h and 6 values of key points" in str(fault)
    np.testing.assert_array_equal(
        records(source.run(on_bad_box="drop"))[0].boxes, [[16, 12, 48, 36]]
    )


def test_lines_that_say_the_same_are_read_once(source):
    same = ("0 0.5 0.5 0.25 0.5", "0 .5 0.50 0.25 0.5", "1 0.5 0.5 0.25 0.5")
    source.put("train/a", *lines(*same))
    dataset = source.run()
    assert records(dataset)[0].labels.tolist() == [0, 1]
    assert dataset.report["repeated_label_lines"] == 1


# Lines with the kind of fault that each is; None: nothing is wrong.
LINES: list[tuple[str, str | None]] = [
    ("0 0.5 0.5 0.2 0.2", None),
    ("2 0.5 0.5 0.2 0.2", UNKNOWN_CLASS),
    ("0 0.5 0.5 0.2", MALFORMED_BOX),
    ("", None),
    ("0 0.9 0.5 0.4 0.5", OUTSIDE),
    ("0 1.5 0.5 0.4 0.5", OUTSIDE),
    ("0 -0.1 0.5 0.1 0.5", OUTSIDE),
    ("0 -0.1 0.5 0.4 0.5", OUTSIDE),
    ("0 0.25 0.25 1.25 0.5 0.5 0.75", OUTSIDE),  # a polygon whose second corner is outside
    ("0 0.5 0.5 1.002 0.5", None),
]


def test_bad_lines_are_named_with_their_file_and_number(source):
    source.put("train/a", *lines(*(line for line, _ in LINES)))
    faults = source.caught()
    expected = [
        (kind, f"labels/train/a.txt, line {number} ({line})")
        for number, (line, kind) in enumerate(LINES, start=1)
        if kind is not None
    ]
    assert [(f.kind, f.message.split(": ")[0]) for f in faults] == expected
    assert {(f.file, f.image_id) for f in faults} == {("images/train/a.jpg", 1)}
    assert [f.annotation_id for f in faults] == list(range(2, len(expected) + 2))
    for policy, kept, clipped in (("drop", 2, 0), ("clip", 5, 3)):
        dataset = source.run(on_bad_box=policy, out=policy)
        assert dataset.info.num_boxes == kept
        assert dataset.report["clipped_boxes"] == clipped
        assert dataset.report["rounded_boxes"] == 1  # the last line: 0.06 px on either side
        assert dataset.report["dropped_boxes"] == len(LINES) - 1 - kept  # one line is empty


def test_labels_that_are_no_text(source):
    root = source.write()
    source.labels("train/b").write_bytes(b"\xff\xfe\0")
    faults = source.faults(root=root, on_bad_box="drop", on_bad_image="drop")
    assert faults == [("unreadable labels", "labels/train/b.txt", 2, None)]


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("images/train/a.jpg", "labels/train/a.txt"),
        ("train/images/a.b.png", "train/labels/a.b.txt"),
        ("images/images/a.jpg", "images/labels/a.txt"),
        ("my_images/a.jpg", "my_images/a.txt"),
        ("a.jpg", "a.txt"),
        ("images.jpg", "images.txt"),
    ],
)
def test_place_of_the_labels(image, labels):
    assert labels_of(image) == labels


def test_names_as_a_mapping_and_places_as_a_list(source):
    source.put("more/d", *lines("2 0.5 0.5 0.5 0.5"))
    source.yaml = ("train: [images/train, images/more]", "names: {2: cow, 0: cat, 1: dog}")
    dataset = source.run()
    assert (dataset.class_names, dataset.category_ids) == ((CAT, DOG, "cow"), (0, 1, 2))
    assert dataset.index()["file_name"].to_pylist() == [
        "images/more/d.jpg",
        "images/train/a.jpg",
        "images/train/b.jpg",
    ]


def test_classes_without_names(source):
    source.yaml = (TRAIN, "nc: 2")
    assert source.run().class_names == ("class_0", "class_1")


def test_images_listed_in_a_text_file(source):
    root = source.root
    (root / "lists").mkdir()
    names = ["../images/train/b.jpg", "", f"{root}/images/train/a.jpg", "./../images/val/c.jpg"]
    (root / "lists" / "train.txt").write_text("\n".join(names))
    source.yaml = ("train: lists/train.txt", NAMES)
    assert source.run().index()["file_name"].to_pylist() == [
        "images/train/a.jpg",
        "images/train/b.jpg",
        "images/val/c.jpg",
    ]


def test_names_outside_of_the_data_set_are_never_read(source):
    outside = source.root.parent / "secret.jpg"
    outside.write_bytes(source.image("train/a").read_bytes())
    (source.root / "images/train/link.jpg").symlink_to(outside)
    names = ["images/train/a.jpg", "../secret.jpg", str(outside), "images/train/link.jpg"]
    names += ["s3://bucket/x.jpg", "images/train/a.jpg"]
    source.yaml = (LISTED, NAMES)
    root = source.write()
    (root / "train.txt").write_text("\n".join(names))
    faults = source.caught(root=root, on_bad_image="drop")
    leaves = "file name leaves the folder"
    assert [(f.kind, f.file) for f in faults] == [
        (leaves, "../secret.jpg"),
        (leaves, str(outside)),
        (leaves, "s3://bucket/x.jpg"),
        ("duplicate image", "images/train/a.jpg"),
        (leaves, "images/train/link.jpg"),
    ]


def test_labels_that_link_to_the_outside(source):
    root = source.write()
    secret = root.parent / "secret.txt"
    source.labels("train/b").rename(secret)
    source.labels("train/b").symlink_to(secret)
    assert source.kinds(root=root) == ["file name leaves the folder"]


def test_path_and_root(source, tmp_path):
    elsewhere = tmp_path / "descriptions"
    elsewhere.mkdir()
    text = (source.write() / "data.yaml").read_text()
    for path in ("../source", str(source.root)):
        (elsewhere / "data.yaml").write_text(f"path: {path}\n{text}")
        dataset = import_yolo(
            elsewhere / "data.yaml",
            tmp_path / "o",
            split="train",
            options=ImportOptions(overwrite=True),
        )
        assert dataset.num_images == 2
    (elsewhere / "data.yaml").write_text(f"path: /content/source\n{text}")
    with pytest.raises(DataError, match=r"/content/source does not exist.*--root"):
        import_yolo(elsewhere / "data.yaml", tmp_path / "o2", split="train")
    options = {"split": "train", "root": source.root}
    assert import_yolo(elsewhere / "data.yaml", tmp_path / "o2", **options).num_images == 2


def test_places_one_folder_too_high_are_meant_within(source):
    source.yaml = ("train: ../images/train", NAMES)
    assert source.run().num_images == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: !!python/object/apply:os.system ['touch {marker}']", "no Python objects"),
        ("train: !!python/name:os.system", "no Python objects"),
        ("names: !Whatever [a]", "no Python objects"),
        ("a: &a [x, x]\nnames: [*a, *a]", r"aliases \(\*name\) are refused"),
        ("names: [", "cannot be read as YAML"),
        ("- a", "not a YOLO description"),
        ("train: images/train", "names is missing"),
        ("train: images/train\nnames: []", "names is missing"),
        ("train: images/train\nnames: {1: a, 2: b}", r"keys \[1, 2\], expected 0 to 1"),
        ("train: images/train\nnames: [a, a]", "'a' is used more than once"),
        ("train: images/train\nnames: [a, [b]]", "what is no name"),
        ("train: images/train\nnames: [a, b]\nnc: 3", "nc is 3, but there are 2 names"),
        ("train: 3\nnames: [a]", "train is 3, expected a folder"),
        ("path: 3\ntrain: x\nnames: [a]", "path is 3, expected the folder"),
        ("train: nowhere\nnames: [a]", "train: nowhere in .*: no such folder"),
        ("train: no.txt\nnames: [a]", r"train: no.txt in .*: no such list"),
        ("train: /etc\nnames: [a]", "lies outside"),
        ("train: ../../x\nnames: [a]", "lies outside"),
        ("train: labels\nnames: [a]", r"split train \(labels\) holds no image"),
        ("val: images/val\nnames: [a]", "describes no split 'train'; there are: val"),
    ],
)
def test_descriptions_that_cannot_be_used(source, tmp_path, text, message):
    marker = tmp_path / "marker"
    source.yaml = (text.replace("{marker}", str(marker)),)
    with pytest.raises(DataError, match=message):
        source.run()
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_all_faults_of_a_description_at_once(source):
    source.yaml = ("train: 3", "names: [a, a]", "nc: 9", "kpt_shape: many")
    assert len(source.caught()) == 4


def test_missing_description(tmp_path):
    with pytest.raises(DataError, match=r"no\.yaml: no such file"):
        import_yolo(tmp_path / "no.yaml", tmp_path / "o", split="train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x: " + "[" * 100_000,
            "lists within lists, hundreds deep, which no description needs; mend",
        ),
        (
            "x: " + "{a: " * 100_000,
            "lists within lists, hundreds deep, which no description needs; mend",
        ),
        ("nc: 0x" + "f" * 5000, "integers of more than 64 bits are refused"),
        ("nc: 9223372036854775808", "integers of more than 64 bits are refused"),
        ("nc: " + "9" * 5000, "limit"),
        (f"nc: 1{':10' * 300}.5", "too large to convert to float"),
    ],
)
def test_descriptions_that_no_loader_expects(source, text, message):
    source.yaml = (TRAIN, "names: [a]", text)
    with pytest.raises(DataError, match=rf"data\.yaml: cannot be read as YAML: [^\0]*{message}"):
        source.run()
    with pytest.raises(DataError, match=message):
        check_dataset(source.root)


def test_more_classes_than_anybody_has(source):
    source.yaml = (TRAIN, "nc: 1000000000000")
    with pytest.raises(DataError, match="names is missing"):
        source.run()


def link_to_itself(path):
    path.unlink()
    path.symlink_to(path)


def test_links_that_lead_back_to_themselves(source, tmp_path):
    source.yaml = (LISTED, NAMES)
    root = source.write()
    link_to_itself(source.labels("train/b"))
    (fault,) = source.caught(root=root)
    assert (fault.kind, fault.file) == ("unreadable labels", "labels/train/b.txt")
    assert "a link that leads back to itself; put the file in its place" in fault.message
    link_to_itself(root / "train.txt")
    with pytest.raises(DataError, match=r"train\.txt in .*cannot be read.*back to itself"):
        source.run(root=root)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match="loop does not exist"):
        source.run(root=root, yolo_root=tmp_path / "loop")
    link_to_itself(root / "data.yaml")
    with pytest.raises(DataError, match=r"data\.yaml: cannot be read as YAML"):
        source.run(root=root)


def test_link_to_itself_in_a_folder_of_images(source):
    """It is found as no file, so it is no image either; the others are read."""
    link_to_itself(source.image("train/a"))
    source.put("train/b", *lines("0 0.5 0.5 0.5 0.5"))
    assert source.run().index()["file_name"].to_pylist() == ["images/train/b.jpg"]
