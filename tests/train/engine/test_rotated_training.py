"""Rotated boxes through a whole run: they are learned, scored, predicted, drawn, or refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import Harness, Killed, small_config

from retina_ray.config import ConfigError, with_overrides
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.synthetic.prepare import make_shapes
from retina_ray.errors import DataError
from retina_ray.evaluation.coco import evaluate_coco
from retina_ray.inference.predict import Predictor
from retina_ray.ops.rotated.boxes import paired_rotated_iou
from retina_ray.structures import Detections
from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.engine.validation import Sample
from retina_ray.train.run.resolve import resolve
from retina_ray.train.tracking.samples import to_pictures


@pytest.fixture(scope="module")
def turned_pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("turned") / "train"
    make_shapes(str(folder), num_images=8, size_px=64, seed=3, split="train", rotated=True)
    return str(folder)


@pytest.fixture
def turned(tmp_path, turned_pictures):
    """A harness over rotated boxes."""
    torch.set_num_threads(1)
    return Harness(tmp_path, turned_pictures)


def rotated_config(**overrides):
    return small_config(**{"model.box_type": "rotated", **overrides})


ONE_EPOCH = {"train.epochs": 1, "schedule.warmup_steps": 1}


def test_turned_shapes_are_learned_by_heart(turned):
    config = rotated_config(
        **{
            "model.backbone_norm": "bn",
            "model.fpn_channels": 64,
            "input.flip": "none",
            "train.epochs": 40,
            "train.eval_every_epochs": 40,
            "train.batch_size": 8,
        }
    )
    turned.run(turned.spec(config))
    metrics, uri = turned.reports[-1]
    assert metrics["val/AP50"] >= 0.7
    # Boxes along the axes, or turned the other way, would not do: the angles are learned.
    predictor = Predictor.from_checkpoint(uri, device="cpu")
    data = PreparedDataset.open(turned.data)
    truth = data.ground_truth(box_type="rotated")
    found = predictor.over_dataset(data).results
    assert evaluate_coco(truth, found).AP == pytest.approx(metrics["val/AP"])
    for change in (0, -1):
        wrong = [one | {"bbox": [*one["bbox"][:4], change * one["bbox"][4]]} for one in found]
        assert evaluate_coco(truth, wrong).AP < 0.7 * metrics["val/AP"]


def test_a_picture_of_any_size_gets_boxes_in_its_own_pixels(turned):
    config = rotated_config(**ONE_EPOCH, **{"model.prior_prob": 0.3})
    turned.run(turned.spec(config))
    predictor = Predictor.from_checkpoint(turned.reports[-1][1], device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    found = predictor.predict_image(image)
    assert found.boxes.shape == (100, 5)
    # Every pixel sixteen times: shrunk by areas to the evaluation's size, it is the same picture.
    larger = predictor.predict_image(image.repeat(4, axis=0).repeat(4, axis=1))
    torch.testing.assert_close(larger.scores, found.scores)
    torch.testing.assert_close(larger.boxes[:, :4], 4 * found.boxes[:, :4])
    torch.testing.assert_close(larger.boxes[:, 4], found.boxes[:, 4], atol=1e-3, rtol=0)


def test_a_model_of_aligned_boxes_trains_on_a_set_of_rotated_ones(turned):
    turned.run(turned.spec(small_config(**ONE_EPOCH)))
    metrics, uri = turned.reports[-1]
    assert metrics["val/AP50"] >= 0
    data = PreparedDataset.open(turned.data)
    found = Predictor.from_checkpoint(uri, device="cpu").over_dataset(data).results
    assert {len(one["bbox"]) for one in found} <= {4}


def test_a_set_without_rotated_boxes_is_refused(turned, eight_pictures):
    data = {"data.train": eight_pictures, "data.val": turned.data}
    config = with_overrides(rotated_config(), {**data, "model.num_classes": None})
    with pytest.raises(ConfigError) as caught:
        resolve(config, str(turned.root))
    faults = dict(caught.value.faults)
    assert f"{eight_pictures} has no rotated boxes" in faults["data.train"]
    assert 'set model.box_type to "aligned"' in faults["data.train"]
    assert "rotated" not in faults["data.val"]  # only that its classes differ


def test_a_trained_model_refuses_a_set_without_rotated_boxes(turned):
    turned.run(turned.spec(rotated_config(**ONE_EPOCH)))
    predictor = Predictor.from_checkpoint(turned.reports[-1][1], device="cpu")
    data = PreparedDataset.open(turned.data)
    aligned = PreparedDataset(data.uri, replace(data.info, box_type="aligned"))
    with pytest.raises(DataError, match="has no rotated boxes"):
        predictor.over_dataset(aligned)


def test_a_killed_run_ends_where_the_uninterrupted_one_ends(turned):
    config = rotated_config()
    turned.run(turned.spec(config, "whole"))
    broken = turned.spec(config, "broken")
    with pytest.raises(Killed):  # an epoch is 2 training rows and 2 validation rows
        turned.run(broken, stop_after_rows=5)
    turned.run(broken)
    whole, resumed = (load_checkpoint(str(turned.root / name)) for name in ("whole", "broken"))
    assert whole.meta.step == resumed.meta.step == 4
    for name, tensor in whole.model.items():
        assert torch.equal(tensor, resumed.model[name]), name


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
