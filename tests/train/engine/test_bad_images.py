"""Images that cannot be decoded in a run: replaced, counted, named, and an error where too many."""

import json
from concurrent.futures import Future

import pytest
from builders import ONE_EPOCH, Killed, logged, small_config

from retina_ray.reports.run.record import read_run
from retina_ray.train.checkpoint.load import load_checkpoint
from retina_ray.train.errors import TooManyBadImagesError
from retina_ray.train.recovery.failures import NON_RETRYABLE
from retina_ray.train.run.async_validation import AsyncValidation, validate

COUNT = "data/bad_images"
ONE_IN_EACH_STEP = 2  # the seed of a run over `damaged_images`


def of_set(kind, names):
    return {f"{name} ({kind})" for name in names}


def at_once(spec):
    """Asynchronous validations that are over when they are asked for."""

    def submit(uri):
        done = Future()
        done.set_result(validate(spec, uri))
        return done

    return AsyncValidation(submit, timeout_s=60)


def named(spec):
    with open(f"{spec.run_uri}/bad_images.json") as file:
        return json.load(file)


def test_bad_images_are_counted_and_named_also_after_a_restart(harness, damaged_images):
    folder, names = damaged_images
    changes = {
        "input.max_bad_fraction": 0.25,
        "train.checkpoint_every_steps": 1,
        "train.seed": ONE_IN_EACH_STEP,
    }
    spec = harness.spec(small_config(**changes), train_uri=folder)
    with pytest.raises(Killed):
        harness.run(spec, stop_after_rows=1)
    met = set(load_checkpoint(spec.run_uri).state["bad_images"])
    assert len(met) == 1
    assert met < of_set("train", names)
    harness.run(spec)
    assert [count for _, count in logged(spec, COUNT)] == [1] + [2] * 5
    assert set(named(spec)) == of_set("train", names)
    assert all("not an image" in reason for reason in named(spec).values())
    assert harness.reports[-1][0][COUNT] == 2, "the last validation says it"


@pytest.mark.parametrize("is_async", [False, True])
def test_images_of_one_name_in_both_sets_are_two(harness, damaged_images, is_async):
    folder, names = damaged_images
    changes = {"input.max_bad_fraction": 0.5, "train.async_validation": is_async, **ONE_EPOCH}
    spec = harness.spec(small_config(**changes), train_uri=folder, val_uri=folder)
    harness.run(spec, validation=at_once(spec) if is_async else None)
    everyone = of_set("train", names) | of_set("val", names)
    assert set(named(spec)) == everyone
    (harness.root / "run" / "run.json").write_text("{}")  # the scripts write it
    assert set(read_run(harness.root / "run").bad_images) == everyone
    if not is_async:
        assert logged(spec, COUNT)[-2:] == [(2, 2), (2, 4)]


@pytest.mark.parametrize(
    ("limit", "kinds", "said"),
    [(0.2, ("train",), r"0\.2 of 8 allows"), (0.4, ("train", "val"), "^4 images could not be")],
)
def test_too_many_bad_images_of_both_sets_end_the_run_with_their_names(
    harness, damaged_images, limit, kinds, said
):
    folder, names = damaged_images
    val = folder if "val" in kinds else harness.data
    config = small_config(**{"input.max_bad_fraction": limit})
    with pytest.raises(TooManyBadImagesError, match=said) as caught:
        harness.run(harness.spec(config, train_uri=folder, val_uri=val))
    assert isinstance(caught.value, NON_RETRYABLE), "a restart would meet them again"
    for kind in kinds:
        assert all(name in str(caught.value) for name in of_set(kind, names))
