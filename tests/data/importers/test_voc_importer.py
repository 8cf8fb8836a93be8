from pathlib import Path

import cv2
import numpy as np
import pytest
from builders import BCCD

from retina_ray.checks.check import check_dataset
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.importers.voc import import_voc, voc_class_names
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import record_from_row
from retina_ray.errors import DataError

needs_bccd = pytest.mark.skipif(not BCCD.is_dir(), reason=f"{BCCD} is absent")


def an_object(name: str, *corners, more: str = "") -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{k}>{v}</{k}>" for k, v in zip(keys, corners, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


class Source:
    """A VOC data set of two images of 64 x 48 pixels to train on, and one to validate."""

    def __init__(self, root: Path) -> None:
        self.root = root / "voc"
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (self.root / folder).mkdir(parents=True)
        self.image_set("train", "a", "b")
        self.image_set("val", "c")
        self.image("a", an_object("dog", 1, 1, 64, 48), an_object("cat", 11, 6, 20, 25))
        self.image("b")
        self.image("c", an_object("ant", 2, 3, 4, 5))

    def image_set(self, name: str, *stems: str) -> None:
        path = self.root / "ImageSets" / "Main" / f"{name}.txt"
        path.write_text("".join(f"{stem}\n" for stem in stems))

    def image(self, stem: str, *objects: str, size: tuple[int, int] | None = (48, 64)) -> None:
        pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(self.root / "JPEGImages" / f"{stem}.jpg"), pixels)
        height, width = size or (0, 0)
        shape = f"<size><width>{width}</width><height>{height}</height></size>" if size else ""
        self.xml(stem, f"<annotation>{shape}{''.join(objects)}</annotation>")

    def xml(self, stem: str, text: str) -> None:
        (self.root / "Annotations" / f"{stem}.xml").write_text(text)

    def run(self, split: str = "train", **options) -> PreparedDataset:
        out = self.root.parent / f"out-{split}"
        own = {k: options.pop(k) for k in ("class_names", "difficult") if k in options}
        return import_voc(self.root, out, split=split, options=ImportOptions(**options), **own)

    def faults(self, **options):
        with pytest.raises(DataError) as caught:
            self.run(**options)
        assert not list((self.root.parent / "out-train").glob("*"))
        return [(f.kind, f.file, f.image_id, f.annotation_id) for f in caught.value.faults]


@pytest.fixture
def source(tmp_path) -> Source:
    return Source(tmp_path)


def records(dataset: PreparedDataset):
    return [record_from_row(row) for row in dataset.read_row_group(0, 0).to_pylist()]


def test_import_by_hand(source):
    dataset = source.run()
    assert dataset.class_names == ("ant", "cat", "dog")  # "ant" is in val only
    assert dataset.category_ids == (1, 2, 3)
    assert source.run("val").class_names == dataset.class_names
    first, second = records(dataset)
    # 1-based inclusive pixels: 1..64 are all columns of the image, 11..20 are ten of them.
    np.testing.assert_array_equal(first.boxes, [[0, 0, 64, 48], [10, 5, 20, 25]])
    assert first.labels.tolist() == [2, 1]
    assert first.area.tolist() == [64 * 48, 200]
    assert first.annotation_id.tolist() == [1, 2]
    assert first.iscrowd.tolist() == [False, False]
    assert (first.image_id, first.file_name, first.height, first.width) == (1, "a.jpg", 48, 64)
    assert second.boxes.shape == (0, 4)
    assert dataset.ground_truth()["annotations"][1]["bbox"] == [10, 5, 10, 20]


def test_given_classes_keep_their_order(source):
    dataset = source.run(class_names=["dog", "cat"])
    assert dataset.class_names == ("dog", "cat")
    assert records(dataset)[0].labels.tolist() == [0, 1]


def test_object_of_another_class_is_a_bad_box(source):
    kind = "class is not in the list"
    assert source.faults(class_names=["dog"]) == [(kind, "a.jpg", 1, 2)]
    dataset = source.run(class_names=["dog"], on_bad_box="drop")
    assert dataset.info.class_counts == {"dog": 1}
    assert dataset.report["dropped_boxes_by_kind"] == {kind: 1}


@pytest.mark.parametrize(
    ("policy", "num_boxes", "num_crowd"), [("keep", 3, 0), ("crowd", 2, 1), ("drop", 2, 0)]
)
def test_difficult_objects(source, policy, num_boxes, num_crowd):
    difficult = an_object("cat", 1, 1, 9, 9, more="<difficult>1</difficult>")
    easy = an_object("dog", 1, 1, 9, 9, more="<difficult>0</difficult>")
    source.image("a", difficult, easy, an_object("cat", 2, 2, 8, 8))
    dataset = source.run(difficult=policy)
    assert (dataset.info.num_boxes, dataset.info.num_crowd) == (num_boxes, num_crowd)
    assert dataset.report["difficult_objects"] == 1
    with pytest.raises(ValueError, match="difficult = 'some'"):
        source.run(difficult="some")


def test_parts_are_not_objects(source):
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    source.image("b", an_object("dog", 3, 3, 9, 9).replace("</object>", part + "</object>"))
    dataset = source.run()
    assert dataset.class_names == ("ant", "cat", "dog")
    assert dataset.info.num_boxes == 3


BOMB = """<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa">
<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><annotation><object><name>&b;</name></object>
</annotation>"""
OUTSIDE = """<!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/hostname">]>
<annotation><object><name>&x;</name></object></annotation>"""


@pytest.mark.parametrize("text", [BOMB, OUTSIDE])
def test_document_types_are_refused(source, text):
    source.xml("b", text)
    assert source.faults(on_bad_box="drop", on_bad_image="drop") == [
        ("annotation with a DOCTYPE", "b.xml", 2, None)
    ]
    with pytest.raises(DataError) as caught:
        source.run()
    message = "b.xml, image 2: document types are refused; remove the DOCTYPE"
    assert str(caught.value) == message
    assert voc_class_names(source.root) == ["ant", "cat", "dog"]


def test_document_type_in_another_encoding_is_refused(source):
    path = source.root / "Annotations" / "b.xml"
    path.write_bytes(BOMB.replace("?>", ' encoding="utf-16"?>').encode("utf-16"))
    assert source.faults() == [("annotation with a DOCTYPE", "b.xml", 2, None)]
    with pytest.raises(DataError, match="document types are refused; remove the DOCTYPE"):
        source.run()


def test_faults_of_files_are_named_together(source):
    source.image_set("train", "a", "b", "a", "d", "e", "../../x", "f", "g")
    source.xml("b", "<annotation><object>")
    source.xml("e", "<other/>")
    source.image("f", an_object("dog", 5, 5, 5, 5), size=(64, 48))
    source.xml("g", "<annotation/>")
    assert source.faults() == [
        ("duplicate image id", "a", "a", None),
        ("malformed annotation", "b.xml", 2, None),
        ("missing annotation", "d.xml", 3, None),
        ("malformed annotation", "e.xml", 4, None),
        ("file name leaves the folder", "../../x.xml", 5, None),
        ("annotated size differs from the image", "f.jpg", 6, None),
        ("box of zero or negative size", "f.jpg", 6, 3),
        ("missing image", "g.jpg", 7, None),
    ]


def test_what_is_not_voc(source, tmp_path):
    with pytest.raises(DataError, match="not a VOC data set: it has no folder Annotations"):
        import_voc(tmp_path, tmp_path / "o", split="train")
    with pytest.raises(DataError, match=r"no such image set; there are: train, val"):
        import_voc(source.root, tmp_path / "o", split="s", image_set="test")
    source.image_set("train")
    with pytest.raises(DataError, match="names no image"):
        source.run()


def test_set_without_any_box_is_refused(source):
    source.image_set("train", "b")
    with pytest.raises(DataError, match="none of the 1 images has a box"):
        source.run()
    for stem in ("a", "c"):
        source.image(stem)
    assert [kind for kind, *_ in source.faults()] == ["no classes"]


@needs_bccd
def test_bccd_error_names_both_boxes_of_zero_size(tmp_path):
    messages = []
    for split in ("train", "val", "test"):
        try:
            import_voc(BCCD, tmp_path / split, split=split, image_set=split)
        except DataError as error:
            messages += [(f.kind, f.file) for f in error.faults]
    assert messages == [
        ("box of zero or negative size", "BloodImage_00343.jpg"),
        ("box of zero or negative size", "BloodImage_00338.jpg"),
    ]


@needs_bccd
def test_bccd_drop_counts_two_and_keeps_the_rest(tmp_path):
    sets = [
        import_voc(BCCD, tmp_path / s, split=s, options=ImportOptions(on_bad_box="drop"))
        for s in ("train", "val", "test")
    ]
    assert [s.num_images for s in sets] == [205, 87, 72]
    assert sum(s.report["dropped_boxes"] for s in sets) == 2
    assert sum(s.report["rounded_boxes"] + s.report["clipped_boxes"] for s in sets) == 0
    totals = {name: sum(s.info.class_counts[name] for s in sets) for name in sets[0].class_names}
    assert totals == {"Platelets": 361, "RBC": 4155 - 2, "WBC": 372}


def test_deeply_nested_annotation(source):
    source.xml("b", "<annotation>" + "<object>" * 100_000 + "</object>" * 100_000 + "</annotation>")
    assert [kind for kind, *_ in source.faults()] == ["class is not in the list"]


def test_links_that_lead_back_to_themselves(source, tmp_path):
    for name in ("JPEGImages/a.jpg", "Annotations/b.xml"):
        path = source.root / name
        path.unlink()
        path.symlink_to(path)
    with pytest.raises(DataError) as caught:
        source.run()
    assert [(f.kind, f.file) for f in caught.value.faults] == [
        ("malformed annotation", "b.xml"),
        ("unreadable image", "a.jpg"),
    ]
    for fault in caught.value.faults:
        assert "a link that leads back to itself; put the file in its place" in fault.message
    report = check_dataset(source.root)
    kinds = {finding.kind.name for finding in report.findings}
    assert {"malformed annotation", "unreadable image"} <= kinds
    path = source.root / "ImageSets/Main/train.txt"
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(DataError, match=r"train\.txt: cannot be read as text .*back to itself"):
        source.run()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match="loop: not a VOC data set"):
        import_voc(tmp_path / "loop", tmp_path / "o", split="train")
