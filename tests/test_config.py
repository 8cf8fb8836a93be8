"""The config classes: defaults, freezing, direct construction, and impossible combinations."""

import pickle
from operator import attrgetter

import pydantic
import pytest

from retina_ray.config import (
    AnchorConfig,
    ConfigError,
    ExperimentConfig,
    LossConfig,
    MatcherConfig,
    ModelConfig,
    TrainConfig,
    with_overrides,
)
from retina_ray.overrides import config_paths

# detectron2's RetinaNet R50-FPN 1x recipe (configs/Base-RetinaNet.yaml over config/defaults.py, and
# the constants of modeling/meta_arch/retinanet.py), in our units: the milestones are steps over
# 90 000 steps, colours are RGB.
DETECTRON2 = {
    "model.num_classes": 80,
    "model.backbone": "resnet50",
    "model.backbone_norm": "frozen_bn",
    "model.freeze_stages": 2,
    "model.min_level": 3,
    "model.max_level": 7,
    "model.fpn_channels": 256,
    "model.fpn_norm": "none",
    "model.fpn_fuse": "sum",
    "model.top_input": "c5",
    "model.head_num_convs": 4,
    "model.head_norm": "none",
    "model.prior_prob": 0.01,
    "model.anchors.sizes": (32, 64, 128, 256, 512),
    "model.anchors.octave_scales": (1, 2 ** (1 / 3), 2 ** (2 / 3)),
    "model.anchors.aspect_ratios": (0.5, 1, 2),
    "model.anchors.scale": 1,
    "model.box_weights": (1, 1, 1, 1),
    "model.pixel_mean": (123.675, 116.28, 103.53),
    "matcher.low": 0.4,
    "matcher.high": 0.5,
    "matcher.allow_low_quality": True,
    "loss.focal_alpha": 0.25,
    "loss.focal_gamma": 2,
    "loss.box_loss": "smooth_l1",
    "loss.box_loss_weight": 1,
    "loss.normalizer": "ema",
    "loss.normalizer_momentum": 0.9,
    "loss.normalizer_initial": 100,
    "input.train_sizes_px": (640, 672, 704, 736, 768, 800),
    "input.train_size_sampling": "choice",
    "input.train_max_size_px": 1333,
    "input.eval_size_px": 800,
    "input.eval_max_size_px": 1333,
    "input.flip": "horizontal",
    "input.group_by_aspect": True,
    "optimizer.name": "sgd",
    "optimizer.lr": 0.01,
    "optimizer.momentum": 0.9,
    "optimizer.nesterov": False,
    "optimizer.weight_decay": 1e-4,
    "optimizer.weight_decay_norm": 0,
    "optimizer.weight_decay_bias": None,
    "optimizer.bias_lr_factor": 1,
    "optimizer.clip_threshold": 1,
    "optimizer.clip_norm_type": 2,
    "schedule.name": "multistep",
    "schedule.milestones": (60_000 / 90_000, 80_000 / 90_000),
    "schedule.gamma": 0.1,
    "schedule.warmup": "linear",
    "schedule.warmup_steps": 1000,
    "schedule.warmup_factor": 0.001,
    "train.batch_size": 16,
    "train.precision": "fp32",
    "inference.score_threshold": 0.05,
    "inference.topk_per_level": 1000,
    "inference.nms_threshold": 0.5,
    "inference.max_detections": 100,
}


def faults_of(**sections) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        ExperimentConfig(**sections)
    return dict(caught.value.faults)


def test_the_defaults_are_detectron2s():
    config = ExperimentConfig()
    assert {path: attrgetter(path)(config) for path in DETECTRON2} == DETECTRON2


def test_defaults_differ_from_detectron2_where_the_docs_say_so():
    config = ExperimentConfig()
    assert config.model.anchors.offset == 0.5  # detectron2: 0.0
    assert config.model.pixel_std == (58.395, 57.12, 57.375)  # detectron2: 1, MSRA's weights
    assert config.loss.smooth_l1_beta == 0.1  # its defaults.py; its RetinaNet recipe: 0.0
    assert config.optimizer.clip == "value"  # detectron2: has it, switched off


def test_every_default_is_valid_by_itself():
    """Pydantic does not validate defaults; a config read back from JSON would be refused."""
    config = ExperimentConfig()
    assert ExperimentConfig(**config.model_dump()) == config


def test_every_section_is_explained():
    sections = [ExperimentConfig, *filter(None, config_paths(ExperimentConfig).values())]
    assert len(sections) >= 12
    assert [section.__name__ for section in sections if not section.__doc__] == []


def test_derived_values_of_the_model():
    model = ModelConfig()
    assert model.levels == (3, 4, 5, 6, 7)
    assert model.strides == (8, 16, 32, 64, 128)
    assert model.num_anchors == 9
    small = ModelConfig(
        min_level=4,
        max_level=5,
        anchors=AnchorConfig(sizes=(8, 16), octave_scales=(1.0,), aspect_ratios=(0.5, 1.0)),
    )
    assert (small.levels, small.strides, small.num_anchors) == ((4, 5), (16, 32), 2)


# A config is a value


@pytest.mark.parametrize("path", ["loss.focal_gamma", "model.anchors.scale", "loss"])
def test_nothing_can_be_set(path):
    config = ExperimentConfig()
    *parents, leaf = path.split(".")
    section = attrgetter(".".join(parents))(config) if parents else config
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        setattr(section, leaf, 1.0)
    assert config == ExperimentConfig()


def test_equal_values_are_equal_and_hash_alike():
    one = ExperimentConfig(loss=LossConfig(focal_gamma=1.0))
    two = with_overrides(ExperimentConfig(), {"loss.focal_gamma": 1})
    assert one == two
    assert len({hash(config) for config in (one, two, ExperimentConfig())}) == 2


def test_a_config_survives_the_way_to_another_process():
    config = with_overrides(ExperimentConfig(), {"data.synthetic.seed": 3})
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_copy_with_changes_is_checked_too():
    config = ExperimentConfig()
    changed = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 2})})
    assert changed == with_overrides(config, {"train.epochs": 2})
    assert config.model_copy() == config
    for update in ({"epoch": 2}, {"epochs": "2"}, {"epochs": 0}):
        with pytest.raises(ConfigError):
            config.train.model_copy(update=update)
    with pytest.raises(ConfigError, match="do not divide"):
        config.model_copy(update={"train": TrainConfig(batch_size=3, num_workers=2)})


# Direct construction


def test_direct_construction_raises_a_readable_config_error():
    with pytest.raises(ConfigError) as caught:
        LossConfig(focal_gama=1.0, focal_alpha="x")  # pyright: ignore
    assert dict(caught.value.faults) == {
        "focal_gama": "unknown setting; did you mean focal_gamma?",
        "focal_alpha": "input should be a valid number, got 'x'",
    }


def test_direct_construction_from_plain_values_names_whole_paths():
    faults = faults_of(
        loss={"focal_gama": 1.0}, model={"anchors": {"scale": -1}}, los={}, train={"seed": True}
    )
    assert set(faults) == {"loss.focal_gama", "model.anchors.scale", "los", "train.seed"}
    assert faults["loss.focal_gama"].endswith("did you mean loss.focal_gamma?")
    assert faults["los"].endswith("did you mean loss?")


def test_a_section_of_another_class_is_refused():
    assert set(faults_of(loss=MatcherConfig())) == {"loss"}


# Impossible combinations

NESTEROV = {"optimizer.nesterov": True}
RANGE = {"input.train_size_sampling": "range"}
TWO_SETS = {"data.train": "a", "data.val": "b"}


@pytest.mark.parametrize(
    ("overrides", "path", "says"),
    [
        ({"model.anchors.sizes": [32, 64]}, "model.anchors.sizes", "2 sizes for 5 pyramid levels"),
        ({"model.max_level": 6}, "model.anchors.sizes", "5 sizes for 4"),
        ({"matcher.low": 0.6}, "matcher.low", "0.6 is above matcher.high = 0.5"),
        ({"loss.focal_alpha": -0.5}, "loss.focal_alpha", "-1 for no weighting"),
        ({"train.num_workers": 3}, "train.batch_size", "16 images do not divide"),
        ({"schedule.milestones": [0.5, 0.5]}, "schedule.milestones", "must increase"),
        ({**NESTEROV, "optimizer.momentum": 0}, "optimizer.nesterov", "optimizer.momentum > 0"),
        ({"train.eval_every_epochs": 13}, "train.eval_every_epochs", "train.epochs = 12"),
        (RANGE, "input.train_sizes_px", "(shortest, longest)"),
        ({**RANGE, "input.train_sizes_px": [800, 640]}, "input.train_sizes_px", "(800, 640)"),
        ({"input.train_max_size_px": 799}, "input.train_max_size_px", "shorter side 800"),
        ({"input.eval_max_size_px": 799}, "input.eval_max_size_px", "input.eval_size_px = 800"),
        ({"model.fpn_norm": "gn", "model.fpn_channels": 48}, "model.fpn_channels", "48"),
        ({"model.head_norm": "gn", "model.fpn_channels": 48}, "model.head_channels", "48"),
        ({"model.head_norm": "gn", "model.head_channels": 40}, "model.head_channels", "40"),
        ({**TWO_SETS, "data.synthetic": {}}, "data.synthetic", "choose one"),
        ({"data.train": "a"}, "data", "needed together"),
        (
            {"model.box_type": "rotated", "inference.evaluation_backend": "faster-coco-eval"},
            *("inference.evaluation_backend", "aligned boxes"),
        ),
    ],
)
def test_an_impossible_combination_is_refused(overrides, path, says):
    with pytest.raises(ConfigError) as caught:
        with_overrides(ExperimentConfig(), overrides)
    assert [p for p, _ in caught.value.faults] == [path]
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.max_level": 6, "model.anchors.sizes": [8, 16, 32, 64]},
        {"matcher.low": 0.5},
        {"loss.focal_alpha": -1},
        {"loss.focal_alpha": 0},
        {"loss.focal_gamma": 0},
        {"loss.smooth_l1_beta": 0},
        {"train.num_workers": 16},
        {**NESTEROV, "optimizer.name": "adamw", "optimizer.momentum": 0},
        {"train.epochs": 1},
        {**RANGE, "input.train_sizes_px": [640, 640]},
        {"input.train_max_size_px": 800},
        {"input.eval_max_size_px": 800},
        {"model.fpn_norm": "gn", "model.head_norm": "gn"},
        {"model.head_norm": "gn", "model.fpn_channels": 48, "model.head_channels": 64},
        {"model.head_num_convs": 0},
        TWO_SETS,
        {"schedule.milestones": []},
        {"schedule.warmup_steps": 0},
    ],
)
def test_what_lies_at_the_border_is_possible(overrides):
    config = with_overrides(ExperimentConfig(), overrides)
    assert with_overrides(config, {}) == config
