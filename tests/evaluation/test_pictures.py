"""Pictures: sizes, what is drawn where, and what is left out."""

import numpy as np
import pytest
import torch

from retina_ray.evaluation import Picture, contact_sheet, draw_boxes
from retina_ray.structures import Detections

NAMES = ("cat", "dog")


def grey(height=400, width=500):
    return np.full((height, width, 3), 128, np.uint8)


def detected(boxes, scores, labels):
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
    )


def changed(picture, image):
    """Which pixels were drawn on."""
    return (picture != image).any(axis=2)


def test_nothing_to_draw_leaves_the_image_alone():
    image = grey()
    picture = draw_boxes(image, class_names=NAMES, detections=detected([], [], []))
    assert (picture == image).all()
    assert not np.shares_memory(picture, image)


def test_a_predicted_box_is_framed_where_it_is():
    image = grey()
    found = detected([[100, 100, 300, 250]], [0.9], [1])
    drawn = changed(draw_boxes(image, class_names=NAMES, detections=found), image)
    assert drawn[101:249, 100].all()  # left edge
    assert drawn[249, 100:299].all()  # bottom edge, the last pixel inside
    assert not drawn[110:240, 110:290].any()  # not filled
    assert drawn[80:99, 102:130].any()  # label above
    assert not drawn[:, 310:].any()
    assert not drawn[260:].any()


def test_true_boxes_are_dashed():
    image = grey()
    picture = draw_boxes(
        image, class_names=NAMES, truth_boxes=[[100, 100, 300, 250]], truth_labels=[0]
    )
    edge = picture[100, 100:300].mean(axis=1)
    assert (edge > 240).sum() > 50
    assert (edge < 40).sum() > 50
    assert changed(picture, image)[252:262, 100:130].any()  # label below


def test_detections_below_the_threshold_are_left_out():
    image = grey()
    found = detected([[10, 50, 60, 90], [200, 200, 250, 260]], [0.5, 0.29], [0, 0])
    drawn = changed(
        draw_boxes(image, class_names=NAMES, detections=found, score_threshold=0.3), image
    )
    assert drawn[:, :100].any()
    assert not drawn[150:, 150:].any()


@pytest.mark.parametrize(
    ("size", "expected"),
    [((128, 96), (384, 288)), ((96, 128), (288, 384)), ((1, 1), (384, 384)), ((384, 2), (384, 2))],
)
def test_small_images_are_enlarged_by_a_whole_factor(size, expected):
    picture = draw_boxes(grey(*size), class_names=NAMES)
    assert picture.shape == (*expected, 3)
    assert picture.dtype == np.uint8


def test_boxes_follow_the_enlargement():
    image = grey(128, 128)
    found = detected([[40, 40, 80, 80]], [0.9], [0])
    drawn = draw_boxes(image, class_names=NAMES, detections=found) != 128
    assert drawn[125:235, 120].any(axis=1).all()
    assert not drawn[:, 250:].any()


def test_odd_boxes_and_labels_do_not_fail():
    image = grey(64, 64)
    nan, inf = float("nan"), float("inf")
    boxes = [
        [nan, 0, 10, 10],
        [0, 0, inf, 10],
        [-50, -50, 1e9, 1e9],
        [5, 5, 5, 5],
        [63, 63, 64, 64],
    ]
    picture = draw_boxes(
        image,
        class_names=("кошка", "chaise à bascule"),
        truth_boxes=np.array(boxes),
        truth_labels=np.array([0, 1, 2, -1, 0]),
        detections=detected(boxes, [0.9] * 5, [0, 1, 99, 1, 0]),
        legend=True,
    )
    assert picture.shape[1] == 384


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8"):
        draw_boxes(np.zeros((4, 4), np.uint8), class_names=NAMES)
    with pytest.raises(ValueError, match="float32"):
        draw_boxes(np.zeros((4, 4, 3), np.float32), class_names=NAMES)
    with pytest.raises(ValueError, match="2 true boxes, but 1 labels"):
        draw_boxes(grey(), class_names=NAMES, truth_boxes=np.zeros((2, 4)), truth_labels=[0])


def test_a_picture_draws_itself_with_a_legend():
    image = grey()
    picture = Picture(
        image=image,
        truth_boxes=torch.tensor([[10.0, 10, 50, 50]]),
        truth_labels=torch.tensor([0]),
        detections=detected([[100, 100, 200, 200]], [0.9], [1]),
        class_names=NAMES,
    ).draw()
    assert picture.shape[0] > 400
    assert picture.shape[1] == 500
    assert changed(picture[:400], image).any()
    assert (picture[400:] < 100).any()  # text


def test_contact_sheet_holds_every_picture():
    colours = [np.full((h, w, 3), i + 1, np.uint8) for i, (h, w) in enumerate([(40, 60), (60, 40)])]
    sheet = contact_sheet([*colours, grey(1000, 2000)], num_columns=2, cell_px=100)
    assert (sheet == 1).all(axis=2).sum() == 40 * 60
    assert (sheet == 2).all(axis=2).sum() == 60 * 40
    assert (sheet == 128).all(axis=2).sum() == 50 * 100  # shrunk to the cell
    assert sheet.shape[1] < 250
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
