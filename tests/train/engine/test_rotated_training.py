"""Rotated boxes: a model of aligned ones learns of them, and they are drawn."""

import numpy as np
import torch
from builders import ONE_EPOCH, Harness, small_config

from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.synthetic.prepare import make_shapes
from retina_ray.inference.predict import Predictor
from retina_ray.ops.rotated.boxes import paired_rotated_iou
from retina_ray.structures import Detections
from retina_ray.train.engine.validation import Sample
from retina_ray.train.tracking.samples import to_pictures


def test_a_model_of_aligned_boxes_trains_on_a_set_of_rotated_ones(tmp_path):
    folder = str(tmp_path / "train")
    make_shapes(folder, num_images=8, size_px=64, seed=3, split="train", rotated=True)
    rotated = Harness(tmp_path, folder)
    rotated.run(rotated.spec(small_config(**ONE_EPOCH)))
    metrics, uri = rotated.reports[-1]
    assert metrics["val/AP50"] >= 0
    data = PreparedDataset.open(rotated.data)
    found = Predictor.from_checkpoint(uri, device="cpu").over_dataset(data).results
    assert {len(one["bbox"]) for one in found} <= {4}


def sample(image_id=1):
    """A picture of 20 x 40 pixels as the model saw it, with one detection."""
    found = Detections(torch.tensor([[20.0, 10, 8, 4, 30]]), torch.tensor([0.9]), torch.tensor([0]))
    return Sample(image_id, np.zeros((20, 40, 3), np.uint8), found)


def truth_of(boxes):
    """Ground truth of one picture of 40 x 80 pixels."""
    return {
        "images": [{"id": 1, "width": 80, "height": 40, "file_name": "a.jpg"}],
        "categories": [{"id": 7, "name": "bar"}],
        "annotations": [
            {"image_id": 1, "category_id": 7, "iscrowd": 0, "bbox": list(box)} for box in boxes
        ],
    }


def test_true_boxes_shrink_with_their_picture():
    (picture,) = to_pictures([sample()], truth_of([(40, 20, 16, 8, 30), (8, 8, 4, 4, 0)]), ["bar"])
    expected = [[20, 10, 8, 4, 30], [4, 4, 2, 2, 0]]
    np.testing.assert_allclose(picture.truth_boxes, expected, atol=1e-5)
    assert picture.draw().shape[2] == 3
    # Half as high, and as wide: a box at a right angle stays exact.
    whole = truth_of([(40, 20, 16, 8, 90)])
    whole["images"][0]["width"] = 40
    (picture,) = to_pictures([sample()], whole, ["bar"])
    exact = torch.tensor([[40.0, 10, 8, 8, 90]])
    iou = paired_rotated_iou(torch.from_numpy(picture.truth_boxes), exact)
    torch.testing.assert_close(iou, torch.ones(1))


def test_a_picture_without_true_boxes_is_drawn():
    (picture,) = to_pictures([sample()], truth_of([]), ["bar"])
    assert len(picture.truth_boxes) == 0
    assert picture.draw().any()
