"""A checkpoint's predictions, over data sets and single images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import ONE_EPOCH, Harness, small_config

from retina_ray.config import ConfigError
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.synthetic.prepare import make_shapes
from retina_ray.errors import DataError
from retina_ray.inference.predict import Predictor
from retina_ray.train.checkpoint.load import load_checkpoint

SURE = {"model.prior_prob": 0.3, "train.ema_decay": 0.5, **ONE_EPOCH}
SURE |= {"inference.topk_per_level": 100}
"""Hardly trained, a model finds a hundred boxes at once."""


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    return run_once(tmp_path_factory.mktemp("aligned"))


@pytest.fixture(scope="module")
def rotated(tmp_path_factory):
    return run_once(tmp_path_factory.mktemp("rotated"), **{"model.box_type": "rotated"})


def run_once(folder, **overrides):
    """A predictor, its checkpoint, and its data."""
    data = str(folder / "train")
    make_shapes(data, num_images=8, size_px=64, seed=3, split="train", rotated=bool(overrides))
    harness = Harness(folder, data)
    harness.run(harness.spec(small_config(**SURE, **overrides)))
    uri = harness.reports[-1][1]
    return Predictor.from_checkpoint(uri, device="cpu"), uri, PreparedDataset.open(data)


def test_the_averaged_weights_predict(aligned, tmp_path):
    predictor, checkpoint = aligned[0], load_checkpoint(aligned[1])
    for name, tensor in predictor.model.state_dict().items():
        assert torch.equal(tensor, checkpoint.ema[name])
    assert any(not torch.equal(t, checkpoint.ema[name]) for name, t in checkpoint.model.items())
    assert not predictor.model.training
    assert list(predictor.class_names) == ["disc", "ring", "bar"]
    with pytest.raises(ConfigError, match="no checkpoint there"):
        Predictor.from_checkpoint(str(tmp_path))


def test_every_image_of_a_set_is_predicted_once(aligned):
    predictor, _, data = aligned
    seen = []
    found = predictor.over_dataset(data, num_samples=2, on_progress=seen.append)
    assert sorted(found.image_ids) == sorted(i["id"] for i in data.ground_truth()["images"])
    assert {one["image_id"] for one in found.results} <= set(found.image_ids)
    assert [sample.pixels.shape for sample in found.samples] == [(64, 64, 3)] * 2
    assert seen == [4, 8]
    assert found.bad_images == {}


@pytest.mark.parametrize("kind", ["aligned", "rotated"])
def test_an_image_of_any_size_gets_boxes_in_its_own_pixels(request, kind):
    predictor, _, _ = request.getfixturevalue(kind)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    found = predictor.predict_image(image)
    assert found.boxes.shape == (100, 4 if kind == "aligned" else 5)
    # Every pixel sixteen times: shrunk by areas to the evaluation's size, it is the same image.
    larger = predictor.predict_image(image.repeat(4, axis=0).repeat(4, axis=1))
    torch.testing.assert_close(larger.scores, found.scores)
    torch.testing.assert_close(larger.boxes[:, :4], 4 * found.boxes[:, :4])
    torch.testing.assert_close(larger.boxes[:, 4:], found.boxes[:, 4:], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)],
)
def test_what_is_no_image_is_refused(aligned, image):
    with pytest.raises(ValueError, match=r"expected an \(H, W, 3\) uint8 RGB image"):
        aligned[0].predict_image(image)


def test_a_set_of_other_classes_is_refused(aligned):
    predictor, _, data = aligned
    classes = data.info.categories[::-1]
    other = PreparedDataset(data.uri, replace(data.info, categories=classes))
    with pytest.raises(ConfigError, match=r"its classes \(bar, ring, disc\) are not those"):
        predictor.over_dataset(other)


def test_a_model_of_rotated_boxes_refuses_a_set_without_them(rotated):
    predictor, _, data = rotated
    other = PreparedDataset(data.uri, replace(data.info, box_type="aligned"))
    with pytest.raises(DataError, match="has no rotated boxes"):
        predictor.over_dataset(other)
