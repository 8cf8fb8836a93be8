"""One training step: micro-batches, workers, gradients that are not finite, and no waiting."""

import copy
import math

import pytest
import torch
import two_processes
from builders import small_config

from retina_ray.structures import Batch, ImageBatch, Targets
from retina_ray.train.engine import distributed
from retina_ray.train.engine.learner import Learner
from retina_ray.train.engine.meters import StepMeter, StepMetrics
from retina_ray.train.engine.step import TrainingStep, grid_sizes
from retina_ray.train.engine.stopping import agree_on_stop
from retina_ray.train.errors import NonFiniteLossError

CPU = torch.device("cpu")
BOXES = [  # of the images 0 to 3; image 1 shows nothing
    ([[2, 2, 14, 13], [10, 5, 30, 28]], [0, 2]),
    ([], []),
    ([[4, 4, 24, 25]], [1]),
    ([[0, 0, 32, 32], [2, 18, 12, 30], [20, 20, 31, 32]], [2, 1, 0]),
]
SIDE = 32


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def make_batch(image_ids, side=SIDE):
    """Images of noise, each the same in any batch."""
    pixels = [
        torch.randint(256, (side, side, 3), generator=torch.Generator().manual_seed(i))
        for i in image_ids
    ]
    if not image_ids:
        pixels = torch.zeros(0, 3, 0, 0, dtype=torch.uint8)  # as the plan's fill arrives
    else:
        pixels = torch.stack(pixels).to(torch.uint8).permute(0, 3, 1, 2)
    targets = Targets.from_lists(
        [torch.tensor(BOXES[i][0], dtype=torch.float32).view(-1, 4) for i in image_ids],
        [torch.tensor(BOXES[i][1], dtype=torch.int64) for i in image_ids],
    )
    sizes = torch.tensor([[side, side]] * len(image_ids), dtype=torch.int64).view(-1, 2)
    images = ImageBatch(pixels, sizes)
    return Batch(images, targets, list(image_ids), [(side, side)] * len(image_ids), plan_index=0)


def make_learner(**overrides):
    defaults = {"optimizer.name": "sgd", "optimizer.lr": 0.01, "optimizer.clip": "none"}
    # On a map of one cell, group norm makes zeros of rounding, on either side of the ReLU's bend.
    defaults["model.head_norm"] = "none"
    config = small_config(**{**defaults, "schedule.warmup_steps": 0, **overrides})
    learner = Learner(config, device=CPU, num_steps=100, is_new=True)
    learner.model.train()
    return learner, TrainingStep(config, learner, CPU)


def gradients(learner):
    return {n: p.grad.clone() for n, p in learner.model.named_parameters() if p.grad is not None}


def assert_close(actual, expected, tolerance=1e-4):
    """Compare tensors by name, each on the scale of its largest value.

    A bias before a norm has no gradient but rounding: hence a floor for the scale.
    """
    assert actual.keys() == expected.keys()
    floor = 1e-3 * max(float(tensor.abs().max()) for tensor in expected.values())
    for name, tensor in expected.items():
        scale = max(float(tensor.abs().max()), floor)
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=tolerance * scale, msg=name)


def test_the_grid_of_any_image_size_is_known_before_the_model_sees_it():
    learner, _ = make_learner()
    for height, width in ((64, 64), (33, 127), (1, 65), (129, 31)):
        pixels = torch.zeros(1, 3, height, width, dtype=torch.uint8)
        with torch.no_grad():
            outputs = learner.model(ImageBatch(pixels, torch.tensor([[height, width]])))
        expected = [tuple(level.shape[-2:]) for level in outputs.logits]
        assert grid_sizes(learner.model.anchors.strides, height, width) == expected


@pytest.mark.parametrize(
    ("normalizer", "cls_loss"), [("ema", "focal"), ("batch", "quality_focal"), ("ema", "varifocal")]
)
def test_micro_batches_add_up_to_the_large_batch(normalizer, cls_loss):
    overrides = {"loss.normalizer": normalizer, "loss.cls_loss": cls_loss}
    whole, step = make_learner(**overrides)
    parts, step_by_parts = make_learner(**overrides)
    for _ in range(2):  # the second one with a normalizer that has moved, and weights too
        expected = step([make_batch([0, 1, 2, 3])])
        figures = step_by_parts([make_batch(ids) for ids in ([0], [], [1], [2, 3], [])])
        assert_close(gradients(parts), gradients(whole))
        for name, loss in expected.losses.items():
            torch.testing.assert_close(figures.losses[name], loss, rtol=1e-4, atol=0)
        torch.testing.assert_close(figures.grad_norm, expected.grad_norm, rtol=1e-4, atol=0)
        torch.testing.assert_close(parts.criterion.normalizer, whole.criterion.normalizer)
        parts.model.load_state_dict(whole.model.state_dict())  # rounding would add up
    assert whole.criterion.normalizer.item() not in (1.0, 100.0)


def test_a_step_without_any_box_is_one_of_background():
    learner, step = make_learner(**{"loss.normalizer": "batch"})
    figures = step([make_batch([1]), make_batch([])])
    assert figures.losses["loss_box_reg"].item() == 0.0
    assert figures.losses["loss_cls"].item() > 0
    assert learner.criterion.normalizer.item() == 1.0


# Gradients that are not finite


def spoil(learner, *, loss=math.nan, gradient=None):
    """Make a loss term, or the gradient of a finite one, what it should not be."""
    losses = learner.criterion.losses

    def spoilt(*inputs):
        terms = losses(*inputs)
        if gradient is None:
            return {**terms, "loss_box_reg": terms["loss_box_reg"] * loss}
        terms["loss_cls"].register_hook(lambda one: one * gradient)
        return terms

    learner.criterion.losses = spoilt


def snapshot(learner):
    return copy.deepcopy((learner.model.state_dict(), learner.optimizer.state_dict()["state"]))


def meter_of(figures, step=7):
    meter = StepMeter(CPU, batch_size=2)
    meter.update(figures, step=step, image_ids=[0, 2], lr=0.01)
    return meter


@pytest.mark.parametrize(
    ("optimizer", "clip", "fault", "terms"),
    [
        ("sgd", "value", {"loss": math.nan}, ("loss_box_reg",)),
        ("adamw", "norm", {"loss": math.inf}, ("loss_box_reg",)),
        ("sgd", "norm", {"gradient": math.nan}, ("gradient",)),
        ("adamw", "value", {"gradient": math.nan}, ("gradient",)),
    ],
)
def test_what_is_not_finite_never_reaches_the_weights_and_is_told(optimizer, clip, fault, terms):
    learner, step = make_learner(**{"optimizer.name": optimizer, "optimizer.clip": clip})
    assert meter_of(step([make_batch([0, 2])])).check() is None
    before = snapshot(learner)
    spoil(learner, **fault)
    figures = step([make_batch([0]), make_batch([2])])
    after = snapshot(learner)
    assert all(torch.equal(before[0][name], tensor) for name, tensor in after[0].items())
    for number, state in before[1].items():
        assert all(torch.equal(value, after[1][number][name]) for name, value in state.items())
    with pytest.raises(NonFiniteLossError, match=f"{terms[0]}.*step 7 .*images 0, 2") as caught:
        meter_of(figures).check()
    error = caught.value
    assert (error.step, error.terms, error.image_ids, error.lr) == (7, terms, (0, 2), 0.01)
    assert set(error.values) == {"loss_cls", "loss_box_reg", "grad_norm"}


def test_only_fp16_may_overflow_and_only_while_it_scales():
    learner, step = make_learner(**{"train.precision": "fp16"})
    step([make_batch([0, 2])])
    before = snapshot(learner)[0]
    spoil(learner, gradient=math.inf)
    scale = learner.scaler.get_scale()
    meter = meter_of(step([make_batch([0, 2])]))
    meter.check()
    assert meter.metrics()["train/skipped_updates"] == 1
    assert learner.scaler.get_scale() == scale / 2
    assert all(torch.equal(before[n], t) for n, t in learner.model.state_dict().items())
    learner.scaler.update(1.0)
    with pytest.raises(NonFiniteLossError, match="gradient became"):
        meter_of(step([make_batch([0, 2])])).check()


# Two workers


def norms_of(kind):
    return {"model.backbone_norm": kind, "model.head_norm": kind, "model.freeze_stages": 0}


def _steps(rank: int) -> dict:
    """What two workers make of the same images as one."""
    stored = {}

    learner, step = make_learner()  # one row each: a static graph
    step.wrap(num_micro_batches=1)
    figures = [step([make_batch([ids[rank]])]) for ids in ([0, 1], [2, 3])]
    stored["one row"] = (learner.model.state_dict(), gradients(learner), figures[-1].losses)

    learner, step = make_learner()  # two rows each, where there are enough
    step.wrap(num_micro_batches=2)
    for rows in ([[[0], [1]], [[2], []]], [[[3], []], [[], []]]):
        step([make_batch(ids) for ids in rows[rank]])
    stored["two rows"] = (learner.model.state_dict(), gradients(learner), {})

    learner, step = make_learner(**norms_of("sync_bn"))
    step.wrap(num_micro_batches=2)
    step([make_batch(ids, side=64) for ids in ([[0], [1, 3]], [[2], []])[rank]])
    stored["sync_bn"] = (learner.model.state_dict(), gradients(learner), {})

    meter = StepMeter(CPU, batch_size=2)
    for number in range(3):
        bad = number == 1 and rank == 1
        loss = torch.tensor(math.nan if bad else 1.0)
        figures = StepMetrics({"loss_cls": loss}, torch.tensor(1.0), torch.tensor(True))
        meter.update(figures, step=number, image_ids=[10 * number + rank], lr=0.1)
    try:
        meter.check()
    except NonFiniteLossError as error:
        stored["error"] = (error.step, error.terms, error.image_ids, str(error))

    stored["union"] = [
        distributed.union(ours[rank], CPU)
        for ours in (
            ({"a (train)": "cut", "b": "cut"}, {"a (val)": "noise", "b": "noise"}),
            ({}, {"c": "cut"}),
            ({}, {}),
        )
    ]

    asked = [(None, False), ("told so" if rank else None, rank == 0), (None, rank == 0)]
    asked.append((None, rank == 1))  # the clock of another worker does not count
    stored["stops"] = [agree_on_stop(r, is_over=over, device=CPU) for r, over in asked]
    return stored


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """What each of two workers found."""
    return two_processes.run(_steps, tmp_path_factory.mktemp("workers"))


@pytest.mark.parametrize(
    ("case", "steps"),
    [("one row", [[0, 1], [2, 3]]), ("two rows", [[0, 1, 2], [3]])],
)
def test_two_workers_make_the_step_of_one(two_workers, case, steps):
    learner, step = make_learner()
    for image_ids in steps:
        metrics = step([make_batch(image_ids)])
    for stored in two_workers:
        assert_close(stored[case][0], learner.model.state_dict())
        assert_close(stored[case][1], gradients(learner), 1e-3)
    for name, loss in metrics.losses.items() if case == "one row" else ():
        first, second = (stored[case][2][name] for stored in two_workers)
        torch.testing.assert_close((first + second) / 2, loss, rtol=1e-3, atol=0)


def test_synchronised_norms_see_the_micro_batches_of_all_workers(two_workers):
    learner, step = make_learner(**norms_of("bn"))
    step([make_batch(ids, side=64) for ids in ([0, 2], [1, 3])])
    for stored in two_workers:
        assert_close(stored["sync_bn"][0], learner.model.state_dict())
        assert_close(stored["sync_bn"][1], gradients(learner), 1e-3)


def test_a_loss_of_one_worker_that_is_not_finite_stops_both_at_that_step(two_workers):
    for stored in two_workers:
        step, terms, image_ids, message = stored["error"]
        assert (step, terms, image_ids) == (1, ("loss_cls",), (10, 11))
        assert "step 1 " in message


def test_workers_agree_on_a_stop(two_workers):
    for stored in two_workers:
        assert stored["stops"] == [(None, False), ("told so", False), (None, True), (None, False)]


def test_what_each_worker_met_is_known_to_both(two_workers):
    for stored in two_workers:
        named, lone, none = stored["union"]
        assert set(named) == {"a (train)", "a (val)", "b"}
        assert (named["a (train)"], named["a (val)"]) == ("cut", "noise")
        assert lone == {"c": "cut"}
        assert none == {}
    assert two_workers[0]["union"] == two_workers[1]["union"]
