"""What only the importer of Pascal VOC does."""

import pytest
from builders import BCCD
from import_sources import CAT, DOG, Box, VocSource, records

from retina_ray.checks.check import check_dataset
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.importers.voc import import_voc, voc_class_names
from retina_ray.errors import DataError

BOX = (4, 4, 12, 12)


@pytest.fixture
def source(tmp_path) -> VocSource:
    return VocSource(tmp_path)


def test_classes_are_those_of_all_splits_or_as_given(source):
    source.put("e", Box(BOX, "ant"), split="val")
    found = source.run(class_names=None)
    assert (found.class_names, found.category_ids) == (("ant", CAT, DOG), (1, 2, 3))
    given = source.run(class_names=[DOG, CAT], out="given")
    assert given.class_names == (DOG, CAT)
    assert records(given)[0].labels.tolist() == [1, 0]


def test_images_may_lie_in_folders(source):
    source.splits["train"].clear()
    source.suffix = ".png"
    source.put("day/one", Box(BOX))
    assert source.run().index()["file_name"].to_pylist() == ["day/one.png"]


@pytest.mark.parametrize(
    ("policy", "num_boxes", "num_crowd"), [("keep", 4, 0), ("crowd", 3, 1), ("drop", 3, 0)]
)
def test_difficult_objects(source, policy, num_boxes, num_crowd):
    marked = [Box(BOX, more={"difficult": number}) for number in (1, 0)]
    source.put("a", *marked, Box(BOX, CAT))
    dataset = source.run(difficult=policy)
    assert (dataset.info.num_boxes, dataset.info.num_crowd) == (num_boxes, num_crowd)
    assert dataset.report["difficult_objects"] == 1
    with pytest.raises(ValueError, match="difficult = 'some'"):
        source.run(difficult="some")


def test_parts_are_not_objects(source):
    part = "<name>head</name><bndbox><xmin>1</xmin></bndbox>"
    source.add("b", Box(BOX, more={"part": part}))
    dataset = source.run(class_names=None)
    assert dataset.class_names == (CAT, DOG)
    assert records(dataset)[1].boxes.tolist() == [list(BOX)]


BOMB = """<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa">
<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><annotation><object><name>&b;</name></object>
</annotation>"""
OUTSIDE = """<!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/hostname">]>
<annotation><object><name>&x;</name></object></annotation>"""


@pytest.mark.parametrize(
    "content",
    [
        BOMB.encode(),
        OUTSIDE.encode(),
        BOMB.replace("?>", ' encoding="utf-16"?>').encode("utf-16"),
    ],
)
def test_document_types_are_refused(source, content):
    root = source.write()
    source.xml("b").write_bytes(content)
    (fault,) = source.caught(root=root, on_bad_box="drop", on_bad_image="drop")
    assert (fault.kind, fault.file, fault.image_id) == ("annotation with a DOCTYPE", "b.xml", 2)
    assert fault.message == "document types are refused; remove the DOCTYPE"
    assert voc_class_names(root) == [CAT, DOG]


def test_faults_of_files_are_named_together(source):
    source.put("f", Box(raw=(5, 5, 5, 5)))
    source.sizes["f"] = (64, 48)
    root = source.write()
    names = "a\nb\na\nd2\ne\n../../x\nf\ng"
    (root / "ImageSets/Main/train.txt").write_text(names)
    source.xml("b").write_text("<annotation><object>")
    source.xml("e").write_text("<other/>")
    source.xml("g").write_text("<annotation/>")
    assert source.faults(root=root) == [
        ("duplicate image id", "a", "a", None),
        ("malformed annotation", "b.xml", 2, None),
        ("missing annotation", "d2.xml", 3, None),
        ("malformed annotation", "e.xml", 4, None),
        ("file name leaves the folder", "../../x.xml", 5, None),
        ("annotated size differs from the image", "f.jpg", 6, None),
        ("box of zero or negative size", "f.jpg", 6, 3),
        ("missing image", "g.jpg", 7, None),
    ]


def test_deeply_nested_annotation(source):
    root = source.write()
    objects = "<object>" * 100_000 + "</object>" * 100_000
    source.xml("b").write_text(f"<annotation>{objects}</annotation>")
    assert source.kinds(root=root) == ["class is not in the list"]


def test_what_is_not_voc(source, tmp_path):
    root = source.write()
    with pytest.raises(DataError, match="not a VOC data set: it has no folder Annotations"):
        source.run(root=tmp_path)
    with pytest.raises(DataError, match=r"no such image set; there are: train, val"):
        import_voc(root, tmp_path / "o", split="s", image_set="test")
    (root / "ImageSets/Main/train.txt").write_text("")
    with pytest.raises(DataError, match="names no image"):
        source.run(root=root)
    for boxes in (boxes for stems in source.splits.values() for boxes in stems.values()):
        boxes.clear()
    assert source.kinds(class_names=None) == ["no classes"]


def test_links_that_lead_back_to_themselves(source):
    root = source.write()

    def link(path):
        path.unlink()
        path.symlink_to(path)

    link(source.xml("b"))
    (fault,) = source.caught(root=root)
    assert (fault.kind, fault.file) == ("malformed annotation", "b.xml")
    assert "a link that leads back to itself; put the file in its place" in fault.message
    assert "malformed annotation" in {one.kind.name for one in check_dataset(root).findings}
    link(root / "ImageSets/Main/train.txt")
    with pytest.raises(DataError, match=r"train\.txt: cannot be read as text .*back to itself"):
        source.run(root=root)


@pytest.mark.skipif(not BCCD.is_dir(), reason=f"{BCCD} is absent")
def test_bccd_has_two_boxes_of_zero_size(tmp_path):
    found, sets = [], []
    for split in ("train", "val", "test"):
        try:
            sets.append(import_voc(BCCD, tmp_path / split, split=split))
        except DataError as error:
            found += [(f.kind, f.file) for f in error.faults]
            options = ImportOptions(on_bad_box="drop")
            sets.append(import_voc(BCCD, tmp_path / split, split=split, options=options))
    assert found == [
        ("box of zero or negative size", "BloodImage_00343.jpg"),
        ("box of zero or negative size", "BloodImage_00338.jpg"),
    ]
    assert [s.num_images for s in sets] == [205, 87, 72]
    assert sum(s.report["dropped_boxes"] for s in sets) == 2
    assert sum(s.report["rounded_boxes"] + s.report["clipped_boxes"] for s in sets) == 0
    totals = {name: sum(s.info.class_counts[name] for s in sets) for name in sets[0].class_names}
    assert totals == {"Platelets": 361, "RBC": 4155 - 2, "WBC": 372}
