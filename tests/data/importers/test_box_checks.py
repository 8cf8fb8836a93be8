import json

import numpy as np
import pytest

from retina_ray.data.importers.box_checks import BOX_FAULTS, ImportLog, check_boxes
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.importers.raw import RawBox, RawImage
from retina_ray.errors import DataError, Fault

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
