import json
import logging

import numpy as np
import pytest
from anchor_sets import simple_config, squares, write_set
from builders import BCCD

from retina_ray.anchors.clusters import cluster_shapes, shape_iou
from retina_ray.anchors.coverage import describe_anchors
from retina_ray.anchors.search import (
    TOLERANCE,
    AnchorJudge,
    assignments,
    fit_anchors,
    propose_anchors,
    ratio_sets,
)
from retina_ray.anchors.study import study_anchors
from retina_ray.anchors.tables import study_tables
from retina_ray.anchors.training_boxes import TrainingBoxes
from retina_ray.config import AnchorConfig, ConfigError, ExperimentConfig, from_json, with_overrides
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.importers.voc import import_voc
from retina_ray.train.run.launch import prepare_run, resume_run
from retina_ray.train.run.resolve import resolve

needs_bccd = pytest.mark.skipif(not BCCD.is_dir(), reason=f"{BCCD} is absent")

LARGE = {"input.train_sizes_px": (256,), "input.eval_size_px": 256}


def usual_config(**overrides):
    """Nine anchors a cell of 32 to 203 px."""
    anchors = AnchorConfig(sizes=(32.0, 64.0, 128.0))
    return simple_config(**{**LARGE, "model.anchors": anchors, **overrides})


def fitting(how, **overrides):
    return usual_config(**{"model.anchors.fit": how, **overrides})


def said(study):
    """The sentences of a study's tables."""
    return [part for part in study_tables(study) if isinstance(part, str)]


def boxes_of(dataset, config):
    return TrainingBoxes.from_dataset(dataset, config.input, max_images=1000)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Squares of 8 to 11 px."""
    images = [image for i, s in enumerate((8, 9, 10, 11)) for image in squares(s, 10, seed=i)]
    return write_set(tmp_path_factory.mktemp("tiny") / "set", images, size=(256, 256))


@pytest.fixture(scope="module")
def thin(tmp_path_factory):
    """150 x 15, and standing ones of a rare class: 14 x 120."""
    images = squares(150, 40, height=15) + squares(14, 5, height=120, label=1)
    return write_set(tmp_path_factory.mktemp("thin") / "set", images, size=(256, 256))


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """Squares of 40 and 100 px, which the usual anchors fit."""
    images = squares(40, 20) + squares(100, 20, seed=1)
    return write_set(tmp_path_factory.mktemp("usual") / "set", images, size=(256, 256))


# Clusters


def test_iou_of_shapes():
    a, b = np.array([[10.0, 10.0], [20.0, 5.0]]), np.array([[10.0, 10.0], [5.0, 20.0]])
    np.testing.assert_allclose(shape_iou(a, b), [[1, 50 / 150], [50 / 150, 25 / 175]])


def test_clusters_are_found_whatever_their_size():
    """By pixels, the two small shapes would be one cluster and the large ones several."""
    rng = np.random.default_rng(0)
    centers = np.array([[6, 18], [18, 6], [300, 310]])
    counts = (10, 30, 60)
    shapes = np.concatenate(
        [c * rng.uniform(0.93, 1.07, (n, 2)) for c, n in zip(centers, counts, strict=True)]
    )
    found, again = (cluster_shapes(shapes, 3, seed=1) for _ in range(2))
    np.testing.assert_array_equal(found.shapes, again.shapes)
    assert (np.diff(found.shapes.prod(1)) > 0).all()
    np.testing.assert_allclose(found.shapes[np.argsort(found.share)], centers, rtol=0.05)
    np.testing.assert_allclose(np.sort(found.share), [0.1, 0.3, 0.6])
    assert 0.9 < found.mean_iou < 1


def test_more_clusters_than_shapes():
    shapes = np.array([[4.0, 4.0], [4.0, 4.0], [9.0, 3.0]])
    found = cluster_shapes(shapes, 6, seed=0)
    assert found.shapes.tolist() == [[4, 4], [9, 3]]
    np.testing.assert_allclose(found.share, [2 / 3, 1 / 3])
    assert found.mean_iou == 1
    assert cluster_shapes(shapes[:1], 3, seed=0).shapes.tolist() == [[4, 4]]


def test_ratios_are_those_of_the_boxes(thin):
    sets = ratio_sets(boxes_of(thin, usual_config()), seed=0)
    assert (0.1, 8.6) in sets  # 15 / 150 and 120 / 14, to two digits
    assert {(1.0,), (0.5, 1.0, 2.0), (0.1,)} <= set(sets)
    assert len(set(sets)) == len(sets)


# Proposals


@pytest.mark.parametrize(("name", "reached"), [("tiny", 0.4), ("thin", 0.8)])
def test_where_the_usual_anchors_are_bad_better_ones_are_proposed(name, reached, request):
    """At a stride of 8 px, squares of 8 to 11 px lie too far from most centres."""
    dataset, config = request.getfixturevalue(name), usual_config()
    study = study_anchors(config, dataset, max_images=100)
    assert not study.proposals.keep
    assert study.current.overall.recall < 0.1
    assert study.proposed.overall.recall > reached
    assert any("anchors lie 8 px apart" in line for line in said(study)) == (name == "tiny")
    changed = with_overrides(
        config,
        {p: json.loads(v) for p, v in (change.split("=") for change in study.changes)},
    )
    boxes = boxes_of(dataset, config)
    assert describe_anchors(changed, boxes).overall == study.proposed.overall


def test_where_they_are_good_they_are_kept(usual):
    study = study_anchors(usual_config(), usual, max_images=100)
    assert study.proposals.keep
    assert study.current.overall.recall == 1
    assert study.proposed == study.current
    assert study.changes == []
    assert "keep them" in said(study)[-1]


def test_a_proposal_has_the_fewest_anchors_of_equals(tmp_path):
    """Squares of one size need one anchor, and nine near 90 px would be no better by half a %."""
    dataset = write_set(tmp_path / "set", squares(20, 40), size=(256, 256))
    config = usual_config(**{"model.anchors.scale": 2.0})
    found = propose_anchors(config, boxes_of(dataset, config))
    most = max(fit.recall for fit in found.by_num_anchors)
    assert found.proposed.recall >= most - TOLERANCE
    assert found.proposed.num_anchors == 1
    assert [fit.num_anchors for fit in found.by_num_anchors] == sorted(
        {fit.num_anchors for fit in found.by_num_anchors}
    )


def test_classes_count_alike(thin):
    """The anchors fit the 40 boxes of one class and none of the 5 of the other: a half."""
    shape = {"model.anchors.scale": 1.5, "model.anchors.aspect_ratios": (0.1, 0.11)}
    config = usual_config(**shape)
    boxes = boxes_of(thin, config)
    fit = AnchorJudge(config, boxes)(config.model.anchors)
    report = describe_anchors(config, boxes)
    assert report.by_class["dog"].recall == 0
    assert report.by_class["cat"].recall > 0.8
    assert fit.recall == pytest.approx(report.by_class["cat"].recall / 2)
    assert report.overall.recall == pytest.approx(report.by_class["cat"].recall * 40 / 45)


def test_a_study_is_repeatable_and_json(thin):
    trees = [
        study_anchors(usual_config(), thin, max_images=20, seed=s).as_tree() for s in (1, 1, 2)
    ]
    texts = [json.dumps(tree, allow_nan=False) for tree in trees]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert trees[0]["current"]["by_size"]["large"]["mean_iou"] is None
    assert trees[0]["sample"]["num_images"] == 20


def test_a_study_of_fitted_anchors_is_of_what_a_run_gets(thin):
    config = fitting("all")
    study = study_anchors(config, thin, max_images=100)
    assert study.fitted
    assert study.current.anchors == fit_anchors(config, thin).model.anchors
    assert study.current.overall.recall > 0.8
    assert "model.anchors.fit" in said(study)[0]


def test_only_what_differs_is_set():
    before = AnchorConfig()
    after = AnchorConfig(scale=0.5, aspect_ratios=(0.5, 1.0), fit="all")
    assert assignments(before, after) == [
        "model.anchors.aspect_ratios=[0.5,1.0]",
        "model.anchors.scale=0.5",
    ]
    assert assignments(before, before) == []


# Fitting at the start of a run


@pytest.mark.parametrize(
    ("name", "fit", "gain"), [("tiny", "scale", 0.4), ("tiny", "all", 0.4), ("thin", "all", 0.8)]
)
def test_fitted_anchors_reach_more(name, fit, gain, request):
    dataset, config = request.getfixturevalue(name), fitting(fit)
    fitted = fit_anchors(config, dataset)
    boxes = boxes_of(dataset, config)
    before, after = (describe_anchors(c, boxes).overall for c in (config, fitted))
    assert after.recall >= before.recall + gain
    anchors = fitted.model.anchors
    assert fitted.model.num_anchors == config.model.num_anchors
    assert anchors.fit == "none"
    assert (anchors.aspect_ratios == config.model.anchors.aspect_ratios) == (fit == "scale")
    assert with_overrides(config, {"model.anchors": anchors}) == fitted  # and nothing else


def test_a_scale_that_changes_nothing_is_1(thin):
    """At a ratio of 1/10 the anchors of 1/2 are as far off at every size."""
    fitted = fit_anchors(fitting("scale"), thin)
    assert fitted.model.anchors.scale == 1.0
    assert fit_anchors(fitting("scale", **{"model.anchors.scale": 1.5}), thin) == fitted


def test_a_fit_does_not_depend_on_what_it_replaces(thin):
    other = {"model.anchors.scale": 3.0, "model.anchors.aspect_ratios": (0.3, 0.9, 1.1)}
    assert fit_anchors(fitting("all"), thin) == fit_anchors(fitting("all", **other), thin)


def test_as_many_ratios_as_were_given(thin):
    for given in ((1.0,), (0.5, 2.0), (0.5, 0.8, 1.2, 2.0)):
        fitted = fit_anchors(fitting("all", **{"model.anchors.aspect_ratios": given}), thin)
        assert len(fitted.model.anchors.aspect_ratios) == len(given)
        assert fit_anchors(fitted, thin) is fitted
    assert from_json(ExperimentConfig, fitted.model_dump_json()) == fitted


def test_fitting_rotated_anchors_is_refused():
    with pytest.raises(ConfigError, match=r"model\.anchors\.fit: .*for aligned boxes"):
        fitting("scale", **{"model.box_type": "rotated"})


def test_a_run_starts_with_fitted_anchors_and_keeps_them(thin, tmp_path, caplog):
    sets = {"data.train": str(thin.uri), "data.val": str(thin.uri)}
    config = fitting("all", **{"model.num_classes": None}, **sets)
    with caplog.at_level(logging.INFO):
        complete, *_ = resolve(config, str(tmp_path))
    assert "anchors fitted to 45 boxes" in caplog.text
    assert complete.model.anchors == fit_anchors(config, thin).model.anchors
    assert complete.model.num_classes == 3
    unfitted, *_ = resolve(config, str(tmp_path), with_anchors=False)
    assert unfitted.model.anchors == config.model.anchors

    spec = prepare_run(config, name="run", storage=str(tmp_path))
    assert spec.config == complete
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["model"]["anchors"]["fit"] == "none"
    assert stored["model"]["anchors"]["scale"] == complete.model.anchors.scale
    assert resume_run(f"{tmp_path}/run").config == complete


@needs_bccd
def test_blood_cells_get_better_anchors(tmp_path):
    """Platelets are smaller than what the recipe for two cores has anchors for."""
    dataset = import_voc(
        BCCD, tmp_path / "set", split="train", options=ImportOptions(on_bad_box="drop")
    )
    config = simple_config(
        **{
            "model.max_level": 6,
            "model.anchors": AnchorConfig(sizes=(20.0, 40.0, 80.0, 160.0)),
            "input.train_sizes_px": (208,),
            "input.train_max_size_px": 288,
        }
    )
    study = study_anchors(config, dataset, max_images=30)
    assert study.current.by_class["Platelets"].recall < 0.9
    assert study.proposed.by_class["Platelets"].recall > 0.92
    assert study.proposed.overall.recall > study.current.overall.recall
