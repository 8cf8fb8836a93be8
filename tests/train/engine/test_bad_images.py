"""Images that cannot be decoded in a run: replaced, counted, named, and an error where too many."""

import json
from concurrent.futures import Future

import pytest
from builders import Killed, small_config

from retina_ray.reports.run.head import bad_image_list
from retina_ray.reports.run.record import read_run
from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.engine import loop
from retina_ray.train.engine.bad_images import add_new, named_in_run
from retina_ray.train.errors import TooManyBadImagesError
from retina_ray.train.recovery.failures import HOPELESS
from retina_ray.train.run.async_validation import AsyncValidation, validate
from retina_ray.train.tracking.metrics_file import read_metrics

ONE_IN_EACH_STEP = 2  # the seed of a run over `damaged_pictures`


def counts(harness):
    """`data/bad_images` of each line of the record that has figures."""
    records = read_metrics(harness.root / "run" / "metrics.jsonl")
    return [r["metrics"].get("data/bad_images", 0) for r in records if r["metrics"]]


def of_set(kind, names):
    return {f"{name} ({kind})" for name in names}


def at_once(spec):
    """Rounds beside the training that are over when they are asked for."""

    def submit(uri):
        round_ = Future()
        round_.set_result(validate(spec, uri))
        return round_

    return AsyncValidation(submit, timeout_s=60)


def test_bad_images_are_counted_and_named(harness, damaged_pictures):
    folder, names = damaged_pictures
    config = small_config(**{"input.max_bad_fraction": 0.25})
    harness.run(harness.spec(config, train_uri=folder))
    assert max(counts(harness)) == 2
    assert counts(harness)[-1] == 2, "the last evaluation says it"
    named = json.loads((harness.root / "run" / "bad_images.json").read_text())
    assert set(named) == of_set("train", names)
    assert all("not an image" in reason for reason in named.values())
    assert harness.reports[-1][0]["data/bad_images"] == 2


@pytest.mark.parametrize("is_async", [False, True])
def test_images_of_one_name_in_both_sets_are_two(harness, damaged_pictures, is_async):
    folder, names = damaged_pictures
    config = small_config(
        **{"input.max_bad_fraction": 0.5, "train.async_validation": is_async, "train.epochs": 1},
        **{"schedule.warmup_steps": 1},
    )
    spec = harness.spec(config, train_uri=folder, val_uri=folder)
    harness.run(spec, validation=at_once(spec) if is_async else None)
    named = of_set("train", names) | of_set("val", names)
    assert set(json.loads((harness.root / "run" / "bad_images.json").read_text())) == named
    (harness.root / "run" / "run.json").write_text("{}")  # the scripts write it
    html = bad_image_list(read_run(harness.root / "run"))
    assert "4 images could not be decoded" in html
    assert all(name in html for name in named)
    if not is_async:
        assert counts(harness)[1:] == [2, 4]


def test_too_many_bad_images_end_the_run_with_their_names(harness, damaged_pictures):
    folder, names = damaged_pictures
    config = small_config(**{"input.max_bad_fraction": 0.2})
    with pytest.raises(TooManyBadImagesError, match=r"0\.2 of 8 allows") as caught:
        harness.run(harness.spec(config, train_uri=folder))
    assert isinstance(caught.value, HOPELESS), "a restart would meet them again"
    assert all(f"{name} (train): " in str(caught.value) for name in names)


def test_a_bad_image_of_the_other_set_counts_though_its_name_is_known(harness, damaged_pictures):
    folder, names = damaged_pictures
    config = small_config(**{"input.max_bad_fraction": 0.4})  # 3 of the 8 training images
    with pytest.raises(TooManyBadImagesError, match=r"^4 images could not be decoded") as caught:
        harness.run(harness.spec(config, train_uri=folder, val_uri=folder))
    everyone = of_set("train", names) | of_set("val", names)
    assert all(name in str(caught.value) for name in everyone)


# A run that goes on


def started_over(harness, folder):
    """A run over damaged pictures that was killed after its first step and the checkpoint there."""
    config = small_config(
        **{
            "input.max_bad_fraction": 0.25,
            "train.checkpoint_every_steps": 1,
            "train.seed": ONE_IN_EACH_STEP,
        }
    )
    spec = harness.spec(config, train_uri=folder)
    with pytest.raises(Killed):
        harness.run(spec, stop_after_rows=1)
    return spec


def test_images_that_were_bad_before_a_restart_still_count(harness, damaged_pictures):
    folder, names = damaged_pictures
    spec = started_over(harness, folder)
    met = set(load_checkpoint(spec.run_uri).state["bad_images"])
    assert len(met) == 1
    assert met < of_set("train", names)
    harness.run(spec)
    assert counts(harness)[1:] == [2] * (len(counts(harness)) - 1)


def test_a_run_goes_on_from_a_checkpoint_of_bare_file_names(harness, damaged_pictures, monkeypatch):
    """As earlier versions wrote them: the image that comes again is the one that was meant."""
    folder, names = damaged_pictures
    with monkeypatch.context() as patch:
        patch.setattr(loop, "named_in_run", lambda kind, bad: dict(bad))
        spec = started_over(harness, folder)
    met = set(load_checkpoint(spec.run_uri).state["bad_images"])
    assert met < names
    harness.run(spec)
    assert counts(harness)[-1] == 2
    assert set(load_checkpoint(spec.run_uri).state["bad_images"]) == of_set("train", names)
    named = set(json.loads((harness.root / "run" / "bad_images.json").read_text()))
    assert named == met | of_set("train", names - met), "each is there once"


def test_what_is_known_is_not_new():
    known = {"a.jpg": "old", "b.jpg (val)": "cut"}
    met = named_in_run("train", [("a.jpg", "cut"), ("b.jpg", "empty")])
    assert add_new(known, met) == {"b.jpg (train)": "empty"}
    assert add_new(known, named_in_run("val", [("a.jpg", "noise"), ("b.jpg", "noise")])) == {
        "a.jpg (val)": "noise"
    }
    assert known == {
        "a.jpg (train)": "cut",
        "a.jpg (val)": "noise",
        "b.jpg (train)": "empty",
        "b.jpg (val)": "cut",
    }
