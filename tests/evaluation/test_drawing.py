"""Drawn boxes: sizes, what is drawn where, and what is left out."""

import math

import cv2
import numpy as np
import pytest
import torch

from retina_ray.evaluation import AnnotatedImage, contact_sheet
from retina_ray.evaluation.drawing import write_png
from retina_ray.structures import Detections

NAMES = ("cat", "dog")
NAN, INF = float("nan"), float("inf")


def grey(height=400, width=500):
    return np.full((height, width, 3), 128, np.uint8)


def detected(boxes, scores, labels):
    boxes = torch.tensor(boxes, dtype=torch.float32)
    return Detections(
        boxes if boxes.numel() else boxes.reshape(0, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
    )


def draw_boxes(image, **boxes):
    return AnnotatedImage(image, NAMES, **boxes).draw(legend=False)


def drawn_on(image, **options):
    """Which pixels of an image are drawn on."""
    return (draw_boxes(image, **options) != image).any(axis=2)


def test_nothing_to_draw_leaves_the_image_alone():
    image = grey()
    drawing = draw_boxes(image, detections=detected([], [], []))
    assert (drawing == image).all()
    assert not np.shares_memory(drawing, image)


def test_a_predicted_box_is_framed_where_it_is():
    drawn = drawn_on(grey(), detections=detected([[100, 100, 300, 250]], [0.9], [1]))
    assert drawn[101:249, 100].all()  # left edge
    assert drawn[249, 100:299].all()  # bottom edge, the last pixel inside
    assert not drawn[110:240, 110:290].any()  # not filled
    assert drawn[80:99, 102:130].any()  # label above
    assert not drawn[:, 310:].any()
    assert not drawn[260:].any()


def test_true_boxes_are_dashed():
    truth = {"truth_boxes": [[100, 100, 300, 250]], "truth_labels": [0]}
    edge = draw_boxes(grey(), **truth)[100, 100:300].mean(axis=1)
    assert (edge > 240).sum() > 50
    assert (edge < 40).sum() > 50
    assert drawn_on(grey(), **truth)[252:262, 100:130].any()  # label below


def test_detections_below_the_threshold_are_left_out():
    found = detected([[10, 50, 60, 90], [200, 200, 250, 260]], [0.5, 0.29], [0, 0])
    drawn = drawn_on(grey(), detections=found, score_threshold=0.3)
    assert drawn[:, :100].any()
    assert not drawn[150:, 150:].any()


@pytest.mark.parametrize(
    ("size", "expected"),
    [((128, 96), (384, 288)), ((96, 128), (288, 384)), ((1, 1), (384, 384)), ((384, 2), (384, 2))],
)
def test_small_images_are_enlarged_by_a_whole_factor(size, expected):
    drawing = draw_boxes(grey(*size))
    assert drawing.shape == (*expected, 3)
    assert drawing.dtype == np.uint8


def test_boxes_follow_the_enlargement():
    found = detected([[40, 40, 80, 80]], [0.9], [0])
    drawn = draw_boxes(grey(128, 128), detections=found) != 128
    assert drawn[125:235, 120].any(axis=1).all()
    assert not drawn[:, 250:].any()


ODD = [[NAN, 0, 10, 10], [0, 0, INF, 10], [-50, -50, 1e9, 1e9], [5, 5, 5, 5], [63, 63, 64, 64]]
ODD_ROTATED = [[NAN, 0, 9, 9, 0], [0, 0, 1e12, 9, INF], [0, 0, 1e12, 9, 20], [30, 30, 0, 0, 720]]


@pytest.mark.parametrize("boxes", [ODD, [*ODD_ROTATED, [63, 1, 40, 10, 45]]])
def test_odd_boxes_and_labels_do_not_fail(boxes):
    drawing = AnnotatedImage(
        image=grey(64, 64),
        truth_boxes=np.array(boxes),
        truth_labels=np.array([0, 1, 2, -1, 0]),
        detections=detected(boxes, [0.9] * 5, [0, 1, 99, 1, 0]),
        class_names=("кошка", "chaise à bascule"),
    ).draw()
    assert drawing.shape[1] == 384


def test_rotated_boxes_are_drawn_as_they_lie():
    box = [250, 200, 200, 60, 30]
    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    for drawn in (
        drawn_on(grey(), detections=detected([box], [0.9], [0])),
        drawn_on(grey(), truth_boxes=[box], truth_labels=[0]),
    ):
        for right, down in ((100, 0), (-100, 0), (0, 30), (0, -30), (60, 30), (-60, -30)):
            x, y = 250 + right * cos + down * sin, 200 - right * sin + down * cos
            assert drawn[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3].any()
        assert not drawn[190:210, 240:260].any()  # not filled
        # The corners of an aligned box of these sides, and of the enclosing box, stay free.
        for x, y in ((150, 170), (350, 230), (149, 124), (351, 276)):
            assert not drawn[y - 4 : y + 5, x - 4 : x + 5].any()


def test_wrong_arguments_are_refused():
    for image in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(ValueError, match=r"image: expected \(H, W, 3\) uint8"):
            draw_boxes(image)
    with pytest.raises(ValueError, match="2 true boxes, but 1 labels"):
        draw_boxes(grey(), truth_boxes=np.zeros((2, 4)), truth_labels=[0])


def test_an_annotated_image_is_drawn_with_a_legend():
    drawing = AnnotatedImage(
        image=grey(),
        truth_boxes=torch.tensor([[10.0, 10, 50, 50]]),
        truth_labels=torch.tensor([0]),
        detections=detected([[100, 100, 200, 200]], [0.9], [1]),
        class_names=NAMES,
    ).draw()
    assert drawing.shape[0] > 400
    assert drawing.shape[1] == 500
    assert (drawing[:400] != grey()).any()
    assert (drawing[400:] < 100).any()  # text


def test_a_contact_sheet_holds_every_image(tmp_path):
    sizes = [(40, 60), (60, 40), (1280, 640)]
    sheet = contact_sheet([np.full((*s, 3), i + 1, np.uint8) for i, s in enumerate(sizes)])
    shown = [int((sheet == i + 1).all(axis=2).sum()) for i in range(3)]
    assert shown == [40 * 60, 60 * 40, 640 * 320]  # the last one is shrunk
    assert sheet.shape[1] < 2 * 320 + 30
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
    path = write_png(tmp_path / "new" / "sheet.png", sheet)
    assert (cv2.imread(str(path))[..., ::-1] == sheet).all()
