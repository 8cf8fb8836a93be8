"""The fast backend gives pycocotools' metrics, and is taken where it can be."""

import copy
import importlib.util
import math

import pytest
from evaluation_scenes import random_case

from retina_ray.config import ConfigError
from retina_ray.evaluation import backends
from retina_ray.evaluation.backends import require_backend, resolve_backend
from retina_ray.evaluation.coco import evaluate_coco

needs_fast = pytest.mark.skipif(
    importlib.util.find_spec("faster_coco_eval") is None, reason="faster-coco-eval is missing"
)
LIMITS = (1, 100, 300)


def assert_same(ground_truth, results, max_detections=100):
    slow = evaluate_coco(ground_truth, results, max_detections=max_detections)
    fast = evaluate_coco(
        ground_truth, results, max_detections=max_detections, backend="faster-coco-eval"
    )
    slow, fast = slow.as_metrics(), fast.as_metrics()
    assert len(slow) == 12 + len(ground_truth["categories"])
    assert fast == pytest.approx(slow, abs=1e-9, rel=0, nan_ok=True)
    return slow


@needs_fast
def test_all_metrics_agree_on_random_detections(capfd):
    for seed in range(4):
        ground_truth, results = random_case(seed)
        before = copy.deepcopy((ground_truth, results))
        for max_detections in LIMITS:
            metrics = assert_same(ground_truth, results, max_detections)
        assert any(math.isnan(value) for value in metrics.values())  # the class without boxes
        assert (ground_truth, results) == before
    assert assert_same(ground_truth, [])["val/AP"] == 0
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


# Which one is taken


def without_fast(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        backends.importlib.util,
        "find_spec",
        lambda name: None if name == "faster_coco_eval" else find_spec(name),
    )


@needs_fast
def test_auto_takes_the_fast_one_for_aligned_boxes():
    assert resolve_backend("auto", rotated=False) == "faster-coco-eval"
    assert resolve_backend("auto", rotated=True) == "pycocotools"
    assert resolve_backend("pycocotools", rotated=False) == "pycocotools"


def test_auto_does_without_the_fast_one(monkeypatch):
    without_fast(monkeypatch)
    assert resolve_backend("auto", rotated=False) == "pycocotools"
    ground_truth, results = random_case(0)
    auto = evaluate_coco(ground_truth, results, backend="auto")
    assert auto.AP == evaluate_coco(ground_truth, results).AP


def test_a_missing_backend_is_refused_and_says_what_to_install(monkeypatch):
    without_fast(monkeypatch)
    ground_truth, results = random_case(0)
    for refuse in (
        lambda: require_backend("faster-coco-eval"),
        lambda: evaluate_coco(ground_truth, results, backend="faster-coco-eval"),
    ):
        with pytest.raises(ConfigError, match="pip install") as error:
            refuse()
        assert error.value.faults[0][0] == "inference.evaluation_backend"


def test_an_unknown_backend_is_refused():
    ground_truth, results = random_case(0)
    with pytest.raises(ValueError, match=r"backend: .* got 'numpy'"):
        evaluate_coco(ground_truth, results, backend="numpy")
