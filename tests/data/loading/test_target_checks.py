"""Bad boxes and labels are refused where the batch is made, each with its image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_ray.data.loading.target_checks import check_targets
from retina_ray.errors import DataError

NAN, INF = float("nan"), float("inf")
GOOD = [2.0, 3, 10, 12]
TURNED = [5.0, 5, 4, 2, 30]
SIZE = (48, 64)
"""Height and width: y ends at 48, x at 64."""


def arrays(*boxes: list[list[float]]) -> list[np.ndarray]:
    return [np.array(b, np.float32).reshape(len(b), -1 if b else 4) for b in boxes]


def labels(*values: list[int]) -> list[np.ndarray]:
    return [np.array(v, np.int32) for v in values]


def check(boxes, classes, *, num_classes=3, image_ids=None, size=SIZE) -> None:
    check_targets(boxes, classes, [size] * len(boxes), num_classes=num_classes, image_ids=image_ids)


def faults_of(*arguments, **options) -> list[tuple[str, str]]:
    with pytest.raises(DataError) as error:
        check(*arguments, **options)
    assert isinstance(error.value, ValueError)
    return [(fault.kind, fault.message) for fault in error.value.faults]


def test_good_targets_pass():
    edge = [0.0, 0, 64, 48]  # the whole picture
    sliver = [63.0, 47, 64, 48]
    check(arrays([GOOD, edge], [], [sliver]), labels([0, 2], [], [1]))
    check(arrays([GOOD]), [np.array([5], np.int64)], num_classes=None)
    check([], [])
    check(arrays([TURNED, [-20.0, 90, 50, 50, 400]]), labels([0, 1]))  # may lie outside
    check([np.zeros(0), np.zeros((0, 4))], [np.zeros(0), np.zeros(0, np.int32)])
    # Each image has its own size.
    check_targets(
        arrays([[0, 0, 9, 5]], [[0, 0, 5, 9]]), labels([0], [0]), [(5, 9), (9, 5)], num_classes=1
    )


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        ([NAN, 3, 10, 12], "box is not finite"),
        ([-INF, 3, 10, 12], "box is not finite"),
        ([2, 3, 2, 12], "box of zero or negative size"),
        ([2, 12, 10, 3], "box of zero or negative size"),
        ([2, -0.5, 10, 12], "box out of the image"),
        ([2, 3, 10, 48.01], "box out of the image"),
        ([90, 90, 99, 99], "box out of the image"),
        ([5, 5, 4, 2, NAN], "box is not finite"),
        ([5, 5, INF, 2, 0], "box is not finite"),
        ([5, 5, 0, 2, 0], "box of zero or negative size"),
        ([5, 5, 4, -2, 0], "box of zero or negative size"),
    ],
)
def test_each_fault_of_a_box_names_image_box_value_and_cure(bad, kind):
    good, form = (GOOD, "XYXY") if len(bad) == 4 else (TURNED, "(x, y, width, height, angle)")
    boxes = arrays([good], [good, good, bad])
    ((found, message),) = faults_of(boxes, labels([0], [0, 1, 2]), image_ids=[500, 501])
    assert found == kind
    assert message.startswith(f"image 1 of the batch (id 501), box 2: {form} (")
    assert ", ".join(str(np.float32(value)) for value in bad) in message
    assert "mend the annotation, or leave the box out" in message


@pytest.mark.parametrize(
    ("label", "num_classes", "expected"),
    [(-1, 3, "0 to 2"), (3, 3, "0 to 2"), (2**31 - 1, 3, "0 to 2"), (-1, None, "0 or more")],
)
def test_labels_out_of_range(label, num_classes, expected):
    boxes = arrays([], [GOOD, GOOD])
    ((kind, message),) = faults_of(boxes, labels([], [2, label]), num_classes=num_classes)
    assert kind == "label out of range"
    assert f"image 1 of the batch, box 1: label {label}, expected {expected}" in message


def test_all_faults_come_at_once_and_a_long_list_is_cut():
    boxes = arrays([[NAN, 0, 1, 1], GOOD], [], [[0, 0, 99, 9], [4, 4, 4, 9]])
    with pytest.raises(ValueError, match="4 faults") as error:
        check(boxes, labels([0, 3], [], [0, 1]), image_ids=[7, 8, 9])
    for part in (
        "label out of range (1):",
        "image 0 of the batch (id 7), box 1: label 3",
        "image 0 of the batch (id 7), box 0: XYXY (nan, 0.0, 1.0, 1.0)",
        "image 2 of the batch (id 9), box 0: XYXY (0.0, 0.0, 99.0, 9.0)",
        "image 2 of the batch (id 9), box 1: XYXY (4.0, 4.0, 4.0, 9.0)",
    ):
        assert part in str(error.value)
    # A box and its label can both be wrong.
    kinds = [kind for kind, _ in faults_of(arrays([[5, 5, 5, 5]]), labels([-2]))]
    assert kinds == ["label out of range", "box of zero or negative size"]
    with pytest.raises(DataError) as error:
        check(arrays([[9, 9, 1, 1]] * 300), labels([0] * 300))
    assert len(error.value.faults) == 300
    assert "and 250 more" in str(error.value)


@pytest.mark.parametrize(
    ("boxes", "classes", "message"),
    [
        (np.zeros((2, 3)), np.zeros(2, int), "boxes of shape (2, 3): expected (M, 4) XYXY"),
        (np.zeros(4), np.zeros(1, int), "boxes of shape (4,)"),
        (np.array([TURNED]), np.zeros(1, int), "boxes of 5 numbers beside images whose"),
        (np.array([GOOD]), np.zeros(2, int), "labels of shape (2,) for 1 boxes"),
        (np.array([GOOD]), np.zeros(0, int), "labels of shape (0,) for 1 boxes"),
        (np.array([GOOD]), np.zeros(1), "labels of type float64: expected whole numbers"),
        (np.array([GOOD]), np.zeros(1, bool), "labels of type bool"),
        (np.array([["a"] * 4]), np.zeros(1, int), "expected numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_named_beside_faulty_boxes(boxes, classes, message):
    good = np.array([GOOD], np.float32)
    found = faults_of([good, boxes, -good], [np.array([0]), classes, np.array([1])])
    assert [kind for kind, _ in found] == ["boxes and labels", "box of zero or negative size"]
    assert found[0][1].startswith("image 1 of the batch: ")
    assert message in found[0][1]
    assert found[1][1].startswith("image 2 of the batch, box 0: ")


def test_lists_of_different_lengths():
    with pytest.raises(ValueError, match=r"'boxes': 1, 'labels': 2.*give one for each"):
        check(arrays([GOOD]), labels([0], [0]))
    with pytest.raises(ValueError, match="'image_ids': 2"):
        check(arrays([GOOD]), labels([0]), image_ids=[1, 2])


def plainly_good(box: list[float], label: int) -> bool:
    """The rule, number by number."""
    finite = all(abs(value) < INF for value in box)
    return finite and 0 <= box[0] < box[2] <= 64 and 0 <= box[1] < box[3] <= 48 and 0 <= label <= 2


COORDINATE = st.one_of(
    st.sampled_from([0.0, -0.0, 48.0, 64.0, -1.0, 64.5, NAN, INF, -INF]),
    st.floats(-5, 70, width=32),
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.lists(COORDINATE, min_size=4, max_size=4), st.integers(-2, 4)), max_size=4
        ),
        max_size=4,
    )
)
def test_exactly_the_bad_boxes_are_found(batch):
    boxes = arrays(*[[box for box, _ in image] for image in batch])
    classes = labels(*[[label for _, label in image] for image in batch])
    expected = {
        f"image {i} of the batch, box {j}:"
        for i, image in enumerate(batch)
        for j, (box, label) in enumerate(image)
        if not plainly_good(box, label)
    }
    found = set()
    try:
        check(boxes, classes)
    except DataError as error:
        found = {fault.message[: fault.message.index(":") + 1] for fault in error.faults}
    assert found == expected
