"""What every importer does, whatever the format."""

import logging
from collections import Counter

import numpy as np
import pytest
from import_sources import (
    CAT,
    DOG,
    HEIGHT,
    OVERHANGING_BOX,
    SOURCES,
    WIDTH,
    Box,
    Source,
    contents,
    records,
)

from retina_ray.checks.check import check_dataset
from retina_ray.data.importers.box_checks import OUTSIDE, ZERO_SIZE
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.errors import ConfigError, DataError

LEAVES = "file name leaves the folder"


@pytest.fixture(params=SOURCES)
def source(request, tmp_path) -> Source:
    return SOURCES[request.param](tmp_path)


def spoil_images(source: Source) -> dict[str, str]:
    """By image, the kind of fault that it is now."""
    source.put("e", Box((1, 1, 9, 9)))
    cut = source.image("a")
    cut.write_bytes(cut.read_bytes()[:-300])
    source.image("b").unlink()
    source.image("e").write_text("no image")
    return {"a": "truncated image", "b": "missing image", "e": "unreadable image"}


def test_import_by_hand(source):
    calls = []
    dataset = source.run(on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert dataset.class_names == (CAT, DOG)
    assert dataset.info.class_counts == {CAT: 1, DOG: 2}
    assert (dataset.info.name, dataset.info.split) == (source.format, "train")
    first, second, third = records(dataset)
    np.testing.assert_allclose(first.boxes, [[1.5, 3, 11.5, 21], [0, 0, WIDTH, HEIGHT]])
    np.testing.assert_allclose(first.xywh, [[1.5, 3, 10, 18], [0, 0, WIDTH, HEIGHT]])
    np.testing.assert_allclose(first.area, [180, WIDTH * HEIGHT])
    assert first.labels.tolist() == [0, 1]
    assert first.iscrowd.tolist() == [False, False]
    assert first.annotation_id.tolist() == [1, 2]
    assert first.image == source.image("a").read_bytes()
    assert (first.image_id, first.file_name) == (1, source.file_name("a"))
    assert (first.height, first.width) == (HEIGHT, WIDTH)
    assert second.boxes.shape == (0, 4)  # an image without boxes stays
    np.testing.assert_allclose(third.boxes, [[5, 6, 12, 12]], rtol=1e-6)
    assert not any(dataset.report[f"{what}_boxes"] for what in ("dropped", "clipped", "rounded"))
    assert source.run("val", out="val").class_names == dataset.class_names
    assert source.run(name="mine", out="named").info.name == "mine"


@pytest.mark.parametrize("policy", ["error", "drop", "clip"])
def test_bad_boxes(source, policy):
    """All are named with their place, or left out and counted; what can be cut is by `clip`."""
    cuts = not isinstance(source, SOURCES["rotated"])  # a rotated one may reach beyond the image
    bad = dict(source.bad_boxes)
    if cuts:
        bad["overhanging"] = (Box(OVERHANGING_BOX), OUTSIDE)
    source.add("c", *(box for box, _ in bad.values()), Box((60, 4, 64.5, 9)))  # the last: rounding
    kinds = [kind for _, kind in bad.values()]
    if policy == "error":
        assert source.faults() == [
            (kind, source.file_name("c"), 3, number) for number, kind in enumerate(kinds, start=4)
        ]
        return
    dataset = source.run(on_bad_box=policy)
    clipped = int(cuts and policy == "clip")
    report = dataset.report
    assert report["clipped_boxes"] == clipped
    assert report["rounded_boxes"] == int(cuts)
    assert report["dropped_boxes"] == len(bad) - clipped
    assert report["dropped_boxes_by_kind"] == Counter(kinds) - Counter({OUTSIDE: clipped})
    assert f"{source.file_name('c')}, image 3, annotation 4: " in report["examples"][0]
    expected = [[5, 6, 12, 12], *([[54, 4, 64, 9]] if clipped else []), [60, 4, 64, 9]]
    np.testing.assert_allclose(records(dataset)[2].boxes, expected, rtol=1e-6)


def test_bad_images_are_named_together_with_bad_boxes(source):
    kinds = spoil_images(source)
    source.add("c", source.bad_boxes["zero"][0])
    found = {
        (kind, file, id_)
        for kind, file, id_, annotation in source.faults()
        if annotation is None or kind == ZERO_SIZE
    }
    ids = {"a": 1, "b": 2, "e": 4}
    expected = {(kind, source.file_name(stem), ids[stem]) for stem, kind in kinds.items()}
    assert found == {*expected, (ZERO_SIZE, source.file_name("c"), 3)}


def test_bad_images_are_dropped_and_counted(source):
    kinds = spoil_images(source)
    dataset = source.run(on_bad_image="drop")
    assert dataset.index()["image_id"].to_pylist() == [3]
    assert dataset.report["dropped_images"] == 3
    assert dataset.report["dropped_images_by_kind"] == Counter(kinds.values())
    source.image("c").unlink()
    with pytest.raises(DataError, match="no image was left"):
        source.run(out="none", on_bad_image="drop")


def test_enormous_images_are_refused_and_can_be_dropped(source):
    limit = HEIGHT * WIDTH
    assert source.run(max_pixels=limit).num_images == 3
    with pytest.raises(DataError) as caught:
        source.run(out="b", max_pixels=limit - 1)
    assert {fault.kind for fault in caught.value.faults} == {"enormous image"}


def test_annotated_size_that_is_another(source):
    if source.format == "yolo":
        pytest.skip("YOLO's labels name no size")
    source.sizes["b"] = (WIDTH, HEIGHT)
    fault = source.caught()[0]
    assert (fault.kind, fault.file) == ("annotated size differs from the image", "b.jpg")
    assert "EXIF" in fault.message  # the sides are exchanged
    source.sizes["b"] = None
    assert source.run().num_images == 3


def test_links_that_leave_the_folder_are_never_read(source):
    outside = source.root.parent / "outside.jpg"
    source.image("b").rename(outside)
    source.image("b").symlink_to(outside)
    for policy in ("error", "drop"):
        faults = source.faults(on_bad_image=policy)
        assert faults == [(LEAVES, source.file_name("b"), 2, None)]


def test_links_that_lead_back_to_themselves(source):
    source.image("b").unlink()
    source.image("b").symlink_to(source.image("b"))
    fault = source.caught()[0]
    assert (fault.kind, fault.file) == ("unreadable image", source.file_name("b"))
    assert "a link that leads back to itself" in fault.message
    assert source.run(on_bad_image="drop").num_images == 2
    loop = source.root.parent / "loop"
    loop.symlink_to(loop)
    with pytest.raises(DataError):
        source.run(root=loop, out="none")


def test_an_image_named_twice_is_an_error_under_every_policy(source):
    source.twice.append("b")
    assert source.kinds(on_bad_box="drop", on_bad_image="drop") == [source.repeated]


def test_png_images(source):
    old = {stem: source.image(stem) for stem in "abc"}
    source.suffix = ".png"
    for stem, path in old.items():
        path.unlink()
        source.put(stem, *source.splits["train"][stem])
    assert records(source.run())[0].image == source.image("a").read_bytes()


def test_max_size_scales_boxes_and_areas(source):
    first = records(source.run(max_size_px=32))[0]
    assert (first.height, first.width) == (24, 32)
    np.testing.assert_allclose(first.boxes, [[0.75, 1.5, 5.75, 10.5], [0, 0, 32, 24]])
    np.testing.assert_allclose(first.area, [45, 32 * 24])
    dataset = source.run(out="odd", max_size_px=37)  # 37 x 28: the two scales differ
    assert records(dataset)[0].boxes[1].tolist() == [0, 0, 37, 28]
    assert dataset.report["images_resized"] == 3
    assert dataset.report["max_size_px"] == 37
    assert dataset.report["largest_original_size"] == [HEIGHT, WIDTH]


def test_sets_without_a_box_are_refused(source):
    for boxes in source.splits["train"].values():
        boxes.clear()
    assert "none of the 3 images has a box" in str(source.caught()[0])


def test_places_that_do_not_exist(source):
    with pytest.raises(DataError):
        source.run(root=source.root.parent / "nowhere")


def test_a_uri_gives_the_same_set(source):
    local = source.run()
    remote = source.run(root=f"file://{source.root}", out="b")
    assert remote.fingerprint == local.fingerprint


def test_an_interrupted_import_resumes(source):
    class StopError(Exception):
        pass

    def stop(done, total):
        if done == 2:
            raise StopError

    with pytest.raises(StopError):
        source.run(rows_per_shard=1, on_progress=stop)
    with pytest.raises(DataError, match="interrupted"):
        PreparedDataset.open(source.root.parent / "out")
    calls = []
    source.run(rows_per_shard=1, on_progress=lambda done, _: calls.append(done))
    assert calls == [1, 2, 3]  # the first was kept
    source.run(rows_per_shard=1, out="whole")
    assert contents(source.root.parent / "out") == contents(source.root.parent / "whole")


def test_a_complete_set_is_kept_or_replaced_as_asked(source, caplog):
    source.run()
    before = contents(source.root.parent / "out")
    with caplog.at_level(logging.INFO):
        source.run()
    assert "complete already" in caplog.text
    with pytest.raises(DataError, match="complete data set already"):
        source.run(name="other")
    source.add("b", source.bad_boxes["zero"][0])
    with pytest.raises(DataError):
        source.run(overwrite=True)
    assert contents(source.root.parent / "out") == before
    assert source.run(overwrite=True, on_bad_box="drop").report["dropped_boxes"] == 1


def test_the_check_names_what_the_import_names(source):
    source.add("c", *(box for box, _ in source.bad_boxes.values()))
    source.image("b").unlink()
    source.image("b").symlink_to(source.image("b"))
    if source.format == "voc":  # its classes are not given to a check
        del source.splits["train"]["c"][-1]
    kinds = set(source.kinds())
    report = check_dataset(source.write())
    assert kinds <= {finding.kind.name for finding in report.findings}


def test_options_that_cannot_be_are_named_at_once():
    values = {"on_bad_box": "fix", "on_bad_image": "clip", "max_size_px": 0, "max_pixels": 0}
    values |= {"rows_per_group": 0, "rows_per_shard": -1, "num_workers": -1, "name": ""}
    with pytest.raises(ConfigError) as caught:
        ImportOptions(**values)
    assert {option for option, _ in caught.value.faults} == set(values)
