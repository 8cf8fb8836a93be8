import json
import logging

import numpy as np
import pytest
from anchor_sets import simple_config, write_set

from retina_ray.anchors.search import fit_anchors
from retina_ray.config import ConfigError, with_overrides
from retina_ray.storage.files import write_text
from retina_ray.sweep.anchor_pruning import anchors_depend_on_trial, prune_anchors
from retina_ray.sweep.launch import prepare_sweep
from retina_ray.sweep.plan import SweepPlan
from retina_ray.sweep.space import Choice, LogUniform, Uniform, check_space
from retina_ray.sweep.trial import _config

GAMMA = {"loss.focal_gamma": Choice(1.0, 2.0)}
SQUARE, USUAL, FLAT = (1.0,), (0.5, 1.0, 2.0), (0.05,)
SCALE, RATIOS, SIZES = (f"model.anchors.{name}" for name in ("scale", "aspect_ratios", "sizes"))
FIT, TRAIN_SIZES = "model.anchors.fit", "input.train_sizes_px"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Squares of 30 to 100 px at random places of images of 256 px."""
    rng, images = np.random.default_rng(0), []
    for _ in range(40):
        side = rng.uniform(30, 100)
        x, y = rng.uniform(0, 256 - side, 2)
        images.append([(x, y, x + side, y + side)])
    return write_set(tmp_path_factory.mktemp("squares") / "set", images, size=(256, 256))


def base_config(dataset, **overrides):
    """Anchors of 16 to 203 px."""
    return simple_config(
        **{
            "model.anchors.octave_scales": (1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
            RATIOS: USUAL,
            TRAIN_SIZES: (256,),
            "data.train": dataset.uri,
            "data.val": dataset.uri,
            **overrides,
        }
    )


def prune(dataset, space, *, keep=False, **overrides):
    """What is left of a space, and the base config."""
    base = base_config(dataset, **overrides)
    left, after = prune_anchors(space, base, dataset, keep=keep)
    return left, after, base


def refused(dataset, space):
    """The fault of each parameter."""
    with pytest.raises(ConfigError) as caught:
        prune(dataset, space)
    return dict(caught.value.faults)


def test_choices_of_low_recall_are_left_out_with_a_warning(dataset, caplog):
    """Anchors 16 times as large are above 250 px: 100 x 100 / 256 / 256 = 0.15 at most."""
    left, after, base = prune(dataset, {**GAMMA, SCALE: Choice(0.75, 1.0, 16.0)})
    assert (left, after) == ({**GAMMA, SCALE: Choice(0.75, 1.0)}, base)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for part in (SCALE, "16 reaches 0.0 %", "best setting reaches 100.0 %"):
        assert part in record.message


def test_a_single_value_that_is_left_is_set(dataset, caplog):
    """The base config's own value is no exception."""
    left, after, _ = prune(dataset, {**GAMMA, RATIOS: Choice(SQUARE, FLAT)}, **{RATIOS: FLAT})
    assert left == GAMMA
    assert after.model.anchors.aspect_ratios == SQUARE
    assert "[1.0] alone is left" in caplog.text


def test_nothing_left_to_vary_is_refused(dataset):
    assert "[1.0]" in refused(dataset, {RATIOS: Choice(SQUARE, FLAT)})[RATIOS]


def test_a_range_with_an_end_of_low_recall_is_refused_with_the_rest_named(dataset):
    """Evenly spaced in the logarithm, 9 points from 1/2 to 128 are the powers of two.

    At 1/2 the largest anchors have 51 px, at 8 the smallest 128 px, and the squares 30 to 100.
    """
    message = refused(dataset, {**GAMMA, SCALE: LogUniform(0.5, 128.0)})[SCALE]
    for part in ("128 reaches 0.0 %", "make it 1 to 4", "--keep-low-recall-anchors"):
        assert part in message


def test_a_value_that_another_one_redeems_is_kept(dataset):
    """Sizes of 512 px and more are too large at scale 1, and good at scale 1/16."""
    sizes = Choice((16.0, 32.0, 64.0), (512.0, 1024.0, 2048.0))
    assert SIZES in refused(dataset, {SIZES: sizes})
    left, _, _ = prune(dataset, {SIZES: sizes, SCALE: Choice(1.0, 1 / 16)})
    assert left[SIZES] == sizes


def test_the_training_size_redeems_too(dataset):
    """At 1024 px the squares have 120 to 400 px: right for a scale of 8."""
    scales, limit = Choice(1.0, 8.0), {"input.train_max_size_px": 1333}
    space = {SCALE: scales, TRAIN_SIZES: Choice((256,), (1024,))}
    assert prune(dataset, space, **limit)[0] == space
    assert prune(dataset, {**GAMMA, SCALE: scales}, **limit)[0] == GAMMA


LOW = {SCALE: Choice(1.0, 64.0)}


@pytest.mark.parametrize(
    ("space", "options", "num_warnings"),
    [
        (GAMMA, {}, 0),
        ({SCALE: Uniform(0.75, 1.5), RATIOS: Choice(SQUARE, USUAL)}, {}, 0),
        ({RATIOS: Choice(SQUARE, FLAT), SCALE: LogUniform(0.5, 64.0)}, {"keep": True}, 2),
        # Where no threshold decides, nothing is left out.
        (LOW, {"matcher.method": "atss"}, 0),
        (LOW, {"matcher.method": "best"}, 0),
        (LOW, {"model.box_type": "rotated"}, 0),
        ({**LOW, "matcher.method": Choice("iou", "atss")}, {}, 0),
    ],
)
def test_a_space_stays_as_it_is(dataset, caplog, space, options, num_warnings):
    left, after, base = prune(dataset, space, **options)
    assert (left, after) == (space, base)
    assert len(caplog.messages) == num_warnings


def test_fitting_is_no_excuse_for_a_scale_that_it_ignores(dataset):
    fit = {FIT: Choice("none", "scale")}
    left, after, _ = prune(dataset, {**GAMMA, SCALE: Choice(1.0, 64.0), **fit})
    assert left == {**GAMMA, **fit}
    assert after.model.anchors.scale == 1.0


def test_a_large_space_is_sampled_and_repeatable(dataset, caplog):
    space = {
        SCALE: Choice(*(1 + i / 10 for i in range(12)), 64.0),
        RATIOS: Choice(*((1 + i / 10,) for i in range(12)), FLAT),
        "matcher.high": Choice(0.5, 0.55, 0.6),
    }
    left, _, _ = prune(dataset, space)
    assert 64.0 not in left[SCALE].values
    assert FLAT not in left[RATIOS].values
    assert len(left[SCALE].values) == 12
    first = list(caplog.messages)
    caplog.clear()
    assert prune(dataset, space)[0] == left
    assert caplog.messages == first


# Fitted anchors in a space


def test_fitting_changes_what_is_built(dataset):
    base = base_config(dataset)
    check_space({FIT: Choice("none", "scale", "all")}, base)
    ratios, others = {RATIOS: Choice(SQUARE, USUAL)}, {RATIOS: Choice(SQUARE, FLAT)}
    for fit, read, idle in (
        ("scale", ratios, {SCALE: Choice(0.5, 1.0)}),
        ("all", ratios, others),  # of the ratios only the number
    ):
        fitted = with_overrides(base, {FIT: fit})
        check_space(read, fitted)
        with pytest.raises(ConfigError, match="no effect"):
            check_space(idle, fitted)


def prepare(dataset, tmp_path, space, **overrides):
    config = base_config(dataset, **overrides)
    return prepare_sweep(config, space, name="sweep", storage=str(tmp_path), num_samples=2)


def test_a_sweep_prunes_before_it_is_written(dataset, tmp_path):
    plan = prepare(dataset, tmp_path, {**GAMMA, SCALE: Choice(0.75, 1.0, 16.0)})
    assert plan.space[SCALE] == Choice(0.75, 1.0)
    assert SweepPlan.load(plan.uri).space == plan.space


ASYNC = "train.async_validation"


@pytest.mark.parametrize(
    ("space", "overrides", "said"),
    [
        ({SCALE: Uniform(1.0, 64.0)}, {}, SCALE),
        # Trials validate themselves.
        (GAMMA, {ASYNC: True}, f"{ASYNC}.*steer the sweep"),
        ({**GAMMA, ASYNC: Choice(False, True)}, {}, f"{ASYNC}.*steer the sweep"),
    ],
)
def test_a_refused_sweep_leaves_nothing(dataset, tmp_path, space, overrides, said):
    with pytest.raises(ConfigError, match=said):
        prepare(dataset, tmp_path, space, **overrides)
    assert list(tmp_path.iterdir()) == []


def test_anchors_are_fitted_once_where_no_trial_changes_them(dataset, tmp_path):
    plan = prepare(dataset, tmp_path, GAMMA, **{FIT: "all"})
    assert not anchors_depend_on_trial(GAMMA)
    assert plan.config.model.anchors.fit == "none"
    expected = fit_anchors(base_config(dataset, **{FIT: "all"}), dataset)
    assert plan.config.model.anchors == expected.model.anchors


def test_a_trial_fits_its_own_anchors_where_they_differ(dataset, tmp_path):
    space = {FIT: Choice("none", "scale"), TRAIN_SIZES: Choice((256,), (64,))}
    plan = prepare(dataset, tmp_path, space)
    assert plan.config.model.anchors.fit == "none"

    def trial(fit, size, name):
        drawn = {FIT: fit, TRAIN_SIZES: [size]}
        config = _config(plan, name, {path: json.dumps(value) for path, value in drawn.items()})
        assert config.model.anchors.fit == "none"
        return config

    assert trial("none", 64, "trial_00").model.anchors == plan.config.model.anchors
    large, small = trial("scale", 256, "trial_01"), trial("scale", 64, "trial_02")
    assert small.model.anchors.scale < large.model.anchors.scale

    # Started again, a trial has what it was started with.
    stored = with_overrides(small, {SCALE: 0.123})
    write_text(f"{plan.trial_uri('trial_02')}/config.json", stored.model_dump_json())
    assert trial("scale", 64, "trial_02") == stored


def test_a_base_that_is_fitted_stays_so_for_trials_that_differ(dataset, tmp_path):
    plan = prepare(dataset, tmp_path, {TRAIN_SIZES: Choice((256,), (64,))}, **{FIT: "scale"})
    assert plan.config.model.anchors.fit == "scale"
    assert _config(plan, "trial_00", {TRAIN_SIZES: "[64]"}).model.anchors.fit == "none"
