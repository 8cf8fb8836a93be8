"""Overrides by dotted path, JSON, command-line assignments, and what their errors say."""

import pickle
import re

import pytest

from retina_ray.config import (
    AnchorConfig,
    ConfigError,
    ExperimentConfig,
    LossConfig,
    SyntheticConfig,
    TrainConfig,
    from_json,
    with_overrides,
)
from retina_ray.overrides import config_paths, parse_assignments

LEAVES = [path for path, section in config_paths(ExperimentConfig).items() if section is None]


def faults_for(overrides, config=None) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        with_overrides(config or ExperimentConfig(), overrides)
    paths = [path for path, _ in caught.value.faults]
    assert len(paths) == len(set(paths)), f"one fault reported twice: {paths}"
    return dict(caught.value.faults)


# Values that are taken


@pytest.mark.parametrize(
    ("path", "value", "stored"),
    [
        ("loss.focal_gamma", 1.5, 1.5),
        ("loss.focal_gamma", 1, 1.0),
        ("train.batch_size", 4, 4),
        ("loss.box_loss", "giou", "giou"),
        ("optimizer.nesterov", True, True),
        ("model.num_classes", None, None),
        ("model.anchors.sizes", [1, 2, 3, 4, 5], (1.0, 2.0, 3.0, 4.0, 5.0)),
        ("model.anchors.aspect_ratios", (1.0,), (1.0,)),
        ("schedule.milestones", [], ()),
        ("train.use_gpu", False, False),
        ("tracking.project", "123", "123"),
    ],
)
def test_a_value_replaces_exactly_its_own_path(path, value, stored):
    before = ExperimentConfig()
    after = with_overrides(before, {path: value})
    assert {p for p in LEAVES if _get(before, p) != _get(after, p)} <= {path}
    assert _get(after, path) == stored
    assert type(_get(after, path)) is type(stored)


def test_the_given_overrides_stay_as_they_are():
    section, sizes = {"epochs": 3}, [8, 16, 32, 64, 128]
    overrides = {"train": section, "train.seed": 4, "model.anchors.sizes": sizes}
    config = with_overrides(ExperimentConfig(), overrides)
    sizes.append(1)
    section["epochs"] = 99
    assert section == {"epochs": 99}, "train.seed was written into the caller's section"
    assert config.train == TrainConfig(epochs=3, seed=4)
    assert config.model.anchors.sizes == (8, 16, 32, 64, 128)


# Sections


def test_a_null_section_starts_from_its_defaults_and_can_be_null_again():
    config = with_overrides(ExperimentConfig(), {"data.synthetic.seed": 7})
    assert config.data.synthetic == SyntheticConfig(seed=7)
    assert with_overrides(config, {"data.synthetic": None}).data.synthetic is None


@pytest.mark.parametrize("value", [None, 5, "loss", [1]])
@pytest.mark.parametrize("path", ["loss", "model.anchors", "data"])
def test_a_needed_section_cannot_be_anything_else(path, value):
    faults = faults_for({path: value})
    assert list(faults) == [path]
    assert "section" in faults[path]
    assert repr(value) in faults[path]


@pytest.mark.parametrize("value", [{"focal_gamma": 1.0}, LossConfig(focal_gamma=1.0)])
def test_a_whole_section_is_replaced(value):
    config = ExperimentConfig(loss=LossConfig(box_loss="giou"))
    assert with_overrides(config, {"loss": value}).loss == LossConfig(focal_gamma=1.0)


def test_a_path_inside_a_replaced_section_counts_after_it_in_any_order():
    section, path = ("loss", {"focal_gamma": 1.0}), ("loss.box_loss", "giou")
    expected = LossConfig(focal_gamma=1.0, box_loss="giou")
    for order in ([section, path], [path, section]):
        assert with_overrides(ExperimentConfig(), dict(order)).loss == expected


def test_a_path_inside_a_section_that_is_no_section_blames_the_section():
    assert list(faults_for({"loss": 5, "loss.focal_gamma": 1.0})) == ["loss"]


# Faults


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("loss.focal_gama", "loss.focal_gamma"),
        ("loss.gamma", "loss.focal_gamma"),
        ("los.focal_gamma", "loss.focal_gamma"),
        ("optimiser.lr", "optimizer.lr"),
        ("train.lr", "optimizer.lr"),
        ("lr", "optimizer.lr"),
        ("data.synthetc.seed", "data.synthetic.seed"),
        ("anchors.scale", "model.anchors.scale"),
        ("model.anchors.scale.x", "model.anchors.scale"),
        ("modle", "model"),
    ],
)
def test_an_unknown_path_names_the_nearest(path, meant):
    faults = faults_for({path: 1.0})
    assert list(faults) == [path]
    assert faults[path].endswith(f"did you mean {meant}?")


@pytest.mark.parametrize("path", ["zzzzzz", "", 3])
def test_an_unknown_path_without_likeness_is_refused_without_a_hint(path):
    assert faults_for({path: 1}) == {str(path): "unknown setting"}


def test_an_unknown_name_inside_a_section_is_named_by_its_whole_path():
    faults = faults_for({"data.synthetic": {"num_trian": 4}, "loss": {"lr": 1.0}})
    assert faults["data.synthetic.num_trian"].endswith("did you mean data.synthetic.num_train?")
    assert faults["loss.lr"].endswith("did you mean optimizer.lr?")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.batch_size", 2.5),
        ("train.batch_size", 16.0),
        ("train.batch_size", "16"),
        ("train.batch_size", True),
        ("train.batch_size", None),
        ("train.batch_size", 0),
        ("loss.focal_gamma", "1.5"),
        ("loss.focal_gamma", True),
        ("loss.focal_gamma", -0.1),
        ("loss.focal_gamma", [2.0]),
        ("optimizer.nesterov", 1),
        ("optimizer.nesterov", "true"),
        ("loss.box_loss", "iou"),
        ("model.anchors.sizes", "32"),
        ("model.anchors.sizes", 32),
        ("model.anchors.octave_scales", []),
        ("model.pixel_mean", [1.0, 2.0]),
        ("model.backbone_weights", 5),
        ("data.train", ""),
        ("train.seed", -1),
        ("train.seed", 2**63),
    ],
)
def test_a_wrong_value_is_named_with_its_path(path, value):
    faults = faults_for({path: value})
    (named,) = faults
    assert named == path or named.startswith(f"{path}.")
    assert "got" in faults[named]


def test_the_faulty_entry_of_a_list_is_named():
    faults = faults_for({"model.anchors.sizes": [1, -2, "x", 4, True]})
    assert set(faults) == {f"model.anchors.sizes.{i}" for i in (1, 2, 4)}
    assert faults["model.anchors.sizes.1"].endswith("got -2")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_number_of_any_path_may_be_nan_or_infinite(value):
    values = {path: _get(ExperimentConfig(), path) for path in LEAVES}
    faults = faults_for(
        {p: [value] * len(old) if isinstance(old, tuple) else value for p, old in values.items()}
    )
    refused = {re.sub(r"\.\d+$", "", path) for path in faults}  # an entry of a list by its place
    assert refused == set(LEAVES)


def test_all_faults_come_at_once():
    faults = {
        "loss.focal_gama": 1.5,  # unknown
        "train.batch_size": "16",
        "model.anchors.offset": 1.0,
        "input.flip": "left",
    }
    assert set(faults_for({**faults, "train.seed": 3})) == set(faults)


def test_an_unknown_path_and_impossible_combinations_come_at_once():
    faults = {
        "loss.focal_gama": 1.5,
        "matcher.low": 0.9,
        "schedule.milestones": [0.9, 0.1],
        "input.eval_size_px": 2000,
    }
    assert len(faults_for(faults)) == len(faults)


# ConfigError itself


def test_an_error_has_a_line_for_each_fault_and_survives_the_way_to_another_process():
    error = ConfigError([("a.b", "too large"), ("", "bad")])
    again = pickle.loads(pickle.dumps(error))
    assert str(error) == str(again) == "a.b: too large\nbad"
    assert again.faults == error.faults
    assert isinstance(error, ValueError)
    assert str(ConfigError("no JSON")) == "no JSON"


# JSON


def test_json_round_trip_is_equal():
    config = with_overrides(
        ExperimentConfig(),
        {
            "model.anchors.scale": 1 / 3,
            "model.num_classes": None,
            "optimizer.lr": 0.1 + 0.2,
            "data.synthetic.seed": 2**53 + 1,
            "schedule.milestones": [],
            "train.use_gpu": False,
        },
    )
    for one in (config, ExperimentConfig()):
        again = from_json(ExperimentConfig, one.model_dump_json())
        assert again == one
        assert hash(again) == hash(one)


def test_missing_parts_of_json_take_their_defaults():
    assert from_json(ExperimentConfig, "{}") == ExperimentConfig()
    assert from_json(ExperimentConfig, '{"train": {"epochs": 3}}').train == TrainConfig(epochs=3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("{'loss': 1}", "not valid JSON"),
        ("[1]", "expected a JSON object, got list"),
        ("null", "expected a JSON object, got NoneType"),
        ('{"loss": {"focal_gamma": NaN}}', "loss.focal_gamma: "),
        ('{"loss": {"focal_gama": 1}}', "did you mean loss.focal_gamma?"),
        ('{"loss": {"focal_gamma": "2"}}', "loss.focal_gamma: "),
    ],
)
def test_json_that_is_no_config_is_refused(text, says):
    with pytest.raises(ConfigError) as caught:
        from_json(ExperimentConfig, text)
    assert says in str(caught.value)


# Command-line assignments


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("loss.focal_gamma=1.5", "loss.focal_gamma", 1.5),
        ("optimizer.lr=1e-4", "optimizer.lr", 1e-4),
        ("loss.box_loss=giou", "loss.box_loss", "giou"),
        ('tracking.project="123"', "tracking.project", "123"),
        ("model.anchors.sizes=[8, 16]", "model.anchors.sizes", [8, 16]),
        ("model.num_classes=null", "model.num_classes", None),
        ("model.num_classes=None", "model.num_classes", None),
        ("optimizer.nesterov=true", "optimizer.nesterov", True),
        ("optimizer.nesterov=False", "optimizer.nesterov", False),
        ("data.synthetic={}", "data.synthetic", {}),
        ("data.train=s3://bucket/a=b", "data.train", "s3://bucket/a=b"),
        (" loss.focal_gamma = 1 ", "loss.focal_gamma", 1),
        ("tracking.entity=", "tracking.entity", ""),
        ("optimizer.lr=Infinity", "optimizer.lr", float("inf")),
    ],
)
def test_an_assignment_is_read(assignment, path, value):
    overrides = parse_assignments([assignment])
    assert overrides == {path: value}
    assert type(overrides[path]) is type(value)


def test_of_two_assignments_of_one_path_the_last_counts():
    assert parse_assignments(["a=1", "b=2", "a=3"]) == {"a": 3, "b": 2}
    assert parse_assignments([]) == {}


def test_all_bad_assignments_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_assignments(["loss.focal_gamma", "=3", "train.epochs=3", ""])
    assert len(caught.value.faults) == 3
    for text in ("'loss.focal_gamma'", "'=3'", "''", "path=value"):
        assert text in str(caught.value)


# Paths


def test_config_paths_hold_every_setting_and_section():
    paths = config_paths(ExperimentConfig)
    assert paths["loss"] is LossConfig
    assert paths["model.anchors"] is AnchorConfig
    assert paths["data.synthetic"] is SyntheticConfig
    assert paths["data.synthetic.seed"] is None
    assert paths["model.anchors.sizes"] is None
    dumped = ExperimentConfig().model_dump()
    assert {f"{s}.{name}" for s, values in dumped.items() for name in values} <= set(paths)


def _get(config, path):
    value = config
    for name in path.split("."):
        value = getattr(value, name, None)
    return value
