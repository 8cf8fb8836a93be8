"""Which checkpoints a run goes on from or starts from, and which it refuses before it starts."""

import logging
import os
import re
from dataclasses import replace

import pytest
import torch
from builders import save_checkpoint, small_config

from retina_ray.config import ConfigError, DataConfig, with_overrides
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.model import RetinaNet
from retina_ray.train.checkpoint.compatibility import class_differences, fitting_weights
from retina_ray.train.checkpoint.format import Checkpoint, CheckpointMeta
from retina_ray.train.checkpoint.store import CheckpointStore
from retina_ray.train.run.launch import prepare_run, resume_run

OWN = {"a": torch.zeros(2, 3), "b": torch.zeros(4), "c": torch.zeros(()), "d": torch.zeros(1)}
OTHER = {"a": torch.ones(2, 3), "b": torch.ones(5), "c": torch.ones(1), "e": torch.ones(1)}


def test_what_fits_is_found_and_the_rest_is_named():
    match = fitting_weights(OWN, OTHER)
    assert list(match.fitting) == ["a"]
    assert match.fitting["a"] is OTHER["a"]
    assert match.mismatched == (("b", (4,), (5,)), ("c", (), (1,)))
    assert match.missing == ("d",)
    assert match.unused == ("e",)
    assert not match.is_complete
    assert match.describe() == (
        "2 weights of another shape start afresh: b (4,), there (5,), c (), there (1,); "
        "1 weights that it lacks start afresh: d; 1 weights of it have no place in this model: e"
    )
    same = fitting_weights(OWN, OWN)
    assert same.is_complete
    assert same.describe() == "every weight fits"
    for nothing in ({}, {"e": torch.ones(1)}, {"b": torch.ones(5)}):
        with pytest.raises(ConfigError, match="no weight of that checkpoint fits this model"):
            fitting_weights(OWN, nothing)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (["cat", "dog"], None),
        (["cat", "dog", "cow"], None),
        ([], None),
        (["dog", "cat"], r"the same in another order \(label 0: 'cat', there 'dog'; 1: 'dog'"),
        (["cat", "cow"], r"are others \(label 1: 'dog', there 'cow'\)"),
    ],
)
def test_classes_of_the_same_number_are_compared(other, said):
    found = class_differences(["cat", "dog"], other)
    assert (found is None) == (said is None)
    if said is not None:
        assert re.search(said, found)


# Through the front door


@pytest.fixture
def config(eight_images):
    data = DataConfig(synthetic=None, train=eight_images, val=eight_images)
    return small_config(**{"model.freeze_stages": 0}).model_copy(update={"data": data})


def checkpoint_of(spec, step, **meta):
    info = PreparedDataset.open(spec.train_uri).info
    fields = {
        "categories": [(c.id, c.name) for c in info.categories],
        "dataset_fingerprint": info.fingerprint,
    }
    return Checkpoint(
        model={"weight": torch.full((3,), float(step))},
        state={},
        config=spec.config,
        meta=CheckpointMeta(step=step, epoch=1, **{**fields, **meta}),
    )


@pytest.fixture
def spec(config, tmp_path):
    config = with_overrides(config, {"train.keep_checkpoints": 3})
    spec = prepare_run(config, name="run", storage=str(tmp_path))
    for step in (2, 4):
        save_checkpoint(spec.checkpoints, checkpoint_of(spec, step))
    return spec


def test_a_run_is_carried_on_as_it_was(spec):
    assert resume_run(spec.run_uri) == spec
    assert spec.start_step() == 4


def test_a_run_is_carried_on_before_a_damaged_checkpoint(spec, caplog):
    os.truncate(f"{spec.checkpoints.last}/model.safetensors", 20)
    assert resume_run(spec.run_uri).start_step() == 2
    assert "step-00000002 instead" in caplog.text


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"dataset_fingerprint": "0123456789abcdef"}, r"trained on other data than .*0123456789ab"),
        ({"categories": [(1, "disc")]}, r"it has 1 classes, and .* has 3"),
        (
            {"categories": [(1, "disc"), (2, "bar"), (3, "ring")]},
            r"label 1 is \(2, 'bar'\) there and \(2, 'ring'\) here",
        ),
    ],
)
def test_a_checkpoint_of_other_data_or_classes_is_refused(spec, meta, said):
    uri = save_checkpoint(spec.checkpoints, checkpoint_of(spec, 6, **meta))
    with pytest.raises(ConfigError, match=said) as caught:
        resume_run(spec.run_uri)
    assert str(caught.value).startswith(f"{uri}: this checkpoint is not of this run: ")
    assert "--init-from" in str(caught.value)


def test_a_checkpoint_of_another_model_is_refused_with_all_that_differs(spec):
    changes = {"model.fpn_channels": 64, "model.anchors.offset": 0.0, "optimizer.lr": 0.5}
    other = with_overrides(spec.config, {**changes, "model.backbone_weights": "elsewhere.pt"})
    save_checkpoint(spec.checkpoints, replace(checkpoint_of(spec, 6), config=other))
    with pytest.raises(ConfigError) as caught:
        resume_run(spec.run_uri)
    message = str(caught.value)
    assert "model.fpn_channels is 64 there and 32 in the run's config.json" in message
    assert "model.anchors.offset is 0.0 there and 0.5" in message
    assert "backbone_weights" not in message, "where the first weights came from is past"


def test_what_a_run_does_not_take_over_is_named_before_it_starts(config, spec, tmp_path, caplog):
    weights = RetinaNet.from_config(spec.config.model).state_dict()
    start = f"{tmp_path}/start"
    names = [(1, "disc"), (2, "bar"), (3, "ring")]
    # Its average counts: the weights themselves fit nowhere.
    other = replace(checkpoint_of(spec, 8, categories=names), ema=weights)
    save_checkpoint(CheckpointStore(start), other)
    caplog.set_level(logging.WARNING, logger="retina_ray.train")
    prepare_run(config, name="same", storage=str(tmp_path), init_from=start)
    (message,) = caplog.messages
    assert "the same in another order (label 1: 'ring', there 'bar'; 2" in message
    caplog.clear()
    save_checkpoint(CheckpointStore(start), replace(checkpoint_of(spec, 9), ema=weights))
    wider = with_overrides(config, {"model.head_num_convs": 2})
    prepare_run(wider, name="wider", storage=str(tmp_path), init_from=start)
    (message,) = caplog.messages
    assert "that it lacks start afresh: head." in message
    with pytest.raises(ConfigError, match="no weight of that checkpoint fits"):
        prepare_run(config, name="none", storage=str(tmp_path), init_from=spec.run_uri)
    assert not os.path.exists(tmp_path / "none")
