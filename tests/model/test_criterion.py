"""Shapes: N images, M boxes, A anchors a cell, K classes, R anchors in all."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torchvision
import two_processes
from head_outputs import random_outputs
from loss_cases import CLASS_LOSSES, rows_of
from torchvision.models.detection._utils import BoxCoder as TorchvisionCoder

from retina_ray.config import ConfigError, ExperimentConfig, with_overrides
from retina_ray.model.box_pairs import all_rows, positive_rows
from retina_ray.model.criterion import RetinaNetCriterion
from retina_ray.ops.anchors import AnchorGenerator
from retina_ray.ops.atss import AtssMatcher
from retina_ray.ops.best_anchor import BestAnchorMatcher
from retina_ray.ops.box_coder import BoxCoder
from retina_ray.ops.losses import (
    smooth_l1_loss,
)
from retina_ray.ops.matcher import Matcher
from retina_ray.ops.rotated.coder import RotatedBoxCoder
from retina_ray.structures import HeadOutputs, Targets

NAN, INF = float("nan"), float("inf")
NUM_CLASSES = 3
GRIDS = [(6, 8), (3, 4)]
ANCHORS = AnchorGenerator([(12, 16), (24, 32)], (0.5, 1, 2), (8, 16))
BOX_LOSSES = ["smooth_l1", "giou", "diou", "ciou"]


def make_criterion(**options) -> RetinaNetCriterion:
    options = {"num_classes": NUM_CLASSES, "matcher": Matcher(), "coder": BoxCoder()} | options
    return RetinaNetCriterion(**options)


make_outputs = partial(random_outputs, ANCHORS, GRIDS, NUM_CLASSES)


def make_targets() -> Targets:
    """Three boxes in the first image, one in the second."""
    return Targets.from_lists(
        [
            torch.tensor([[3.0, 4, 20, 18], [30, 10, 60, 40], [31, 11, 58, 42]]),
            torch.tensor([[10.0, 5, 22, 30]]),
        ],
        [torch.tensor([0, 2, 1]), torch.tensor([1])],
    )


def image(outputs: HeadOutputs, i: int) -> HeadOutputs:
    logits, deltas = ([x[i : i + 1] for x in y] for y in (outputs.logits, outputs.deltas))
    return replace(outputs, logits=logits, deltas=deltas)


def leaves(outputs: HeadOutputs) -> list[torch.Tensor]:
    return [*outputs.logits, *outputs.deltas]


BOX_DEFINITIONS = {
    "smooth_l1": partial(smooth_l1_loss, beta=0.1),
    "giou": partial(torchvision.ops.generalized_box_iou_loss, reduction="sum"),
    "diou": partial(torchvision.ops.distance_box_iou_loss, reduction="sum"),
    "ciou": partial(torchvision.ops.complete_box_iou_loss, reduction="sum"),
}


def definition(outputs, targets, matcher, cls_loss, box_loss):
    """Loss sums and number of positives, with one-hot targets and torchvision's box losses."""
    match = matcher.match_grid(targets.boxes, outputs.anchors, GRIDS)
    positive, kept = match.positive, ~match.ignored
    logits, deltas = rows_of(outputs.logits, NUM_CLASSES), rows_of(outputs.deltas, 4)
    boxes = targets.boxes.gather(1, match.index[..., None].expand(-1, -1, 4))[positive]
    classes = targets.labels.gather(1, match.index)[positive]
    anchors = torch.cat(outputs.anchors).expand(len(targets), -1, 4)[positive]
    predicted = TorchvisionCoder((1.0, 1.0, 1.0, 1.0)).decode_single(deltas[positive], anchors)
    iou = torchvision.ops.box_iou(predicted, boxes).diagonal().detach()
    goals = torch.zeros_like(logits)
    quality = torch.ones_like(iou) if cls_loss == "focal" else iou
    goals[positive] = torch.nn.functional.one_hot(classes, NUM_CLASSES) * quality[:, None]
    pair = (predicted, boxes)
    if box_loss == "smooth_l1":
        encoded = TorchvisionCoder((1.0, 1.0, 1.0, 1.0)).encode_single(boxes, anchors)
        pair = (deltas[positive], encoded)
    loss_cls = CLASS_LOSSES[cls_loss](logits[kept], goals[kept].detach(), 0.7, 2.0)
    return loss_cls, BOX_DEFINITIONS[box_loss](*pair), positive.sum()


@pytest.mark.parametrize(
    ("matcher", "cls_loss", "box_loss"),
    [
        *((Matcher(), cls_loss, "smooth_l1") for cls_loss in CLASS_LOSSES),
        *((Matcher(), "focal", box_loss) for box_loss in BOX_LOSSES[1:]),
        (AtssMatcher(), "quality_focal", "giou"),
        (AtssMatcher(), "focal", "smooth_l1"),
        (BestAnchorMatcher(), "varifocal", "giou"),
        (BestAnchorMatcher(), "focal", "smooth_l1"),
    ],
)
@pytest.mark.parametrize("rows", [positive_rows, all_rows])  # on a CPU, on a GPU
def test_values_and_gradients_equal_the_definition(monkeypatch, matcher, cls_loss, box_loss, rows):
    monkeypatch.setattr(RetinaNetCriterion, "_pairs", staticmethod(rows))
    outputs, targets = make_outputs(), make_targets()
    options = {"matcher": matcher, "cls_loss": cls_loss, "box_loss": box_loss, "focal_alpha": 0.7}
    options |= {"normalizer": "batch", "box_loss_weight": 3.0}
    losses = make_criterion(**options)(outputs, targets)
    loss_cls, loss_box, count = definition(outputs, targets, matcher, cls_loss, box_loss)
    assert count >= 3
    assert list(losses) == ["loss_cls", "loss_box_reg"]
    torch.testing.assert_close(losses["loss_cls"], loss_cls / count, rtol=1e-5, atol=0)
    torch.testing.assert_close(losses["loss_box_reg"], 3 * loss_box / count)
    ours = torch.autograd.grad(sum(losses.values()), leaves(outputs))
    theirs = torch.autograd.grad((loss_cls + 3 * loss_box) / count, leaves(outputs))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


BAD = [[5.0, 5, 5, 20], [5, 20, 20, 20], [20, 20, 5, 5], [0, 0, 0, 0]]
BAD += [[NAN, 0, 10, 10], [NAN] * 4, [0, 0, INF, 10]]


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_degenerate_boxes_and_what_stands_in_the_padding_do_not_matter(box_loss):
    good, outputs = make_targets(), make_outputs()
    expected = make_criterion(box_loss=box_loss)(outputs, good)
    boxes = good.boxes.clone()
    boxes[good.labels < 0] = torch.tensor([30.0, 10, 60, 40])
    bad = torch.cat((torch.tensor(BAD).expand(2, -1, -1), boxes), 1)
    labels = torch.cat((torch.ones(2, len(BAD), dtype=torch.int64), good.labels), 1)
    losses = make_criterion(box_loss=box_loss)(outputs, Targets(bad, labels))
    for name, loss in losses.items():
        assert torch.equal(loss, expected[name])
    for gradient in torch.autograd.grad(sum(losses.values()), leaves(outputs)):
        assert torch.isfinite(gradient).all()


def test_one_pixel_boxes_and_boxes_outside_all_anchors():
    targets = Targets.from_lists(
        [torch.tensor([[9.0, 9, 10, 10]]), torch.tensor([[5000.0, 5000, 5100, 5100]])],
        [torch.tensor([0]), torch.tensor([1])],
    )
    labels = make_criterion().assign(make_outputs(), targets).labels
    assert (labels[0] == 0).any()  # the best anchors of the pixel
    assert (labels[1] == NUM_CLASSES).all()  # and not every anchor for the one outside
    losses = make_criterion()(make_outputs(), targets)
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("normalizer", ["ema", "batch"])
@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_batches_without_boxes(normalizer, box_loss):
    outputs = make_outputs()
    criterion = make_criterion(normalizer=normalizer, box_loss=box_loss)
    losses = criterion(outputs, Targets.from_lists([torch.zeros(0, 4)] * 2, [torch.zeros(0)] * 2))
    assert torch.isfinite(losses["loss_cls"])
    assert losses["loss_cls"] > 0
    assert losses["loss_box_reg"] == 0
    gradients = torch.autograd.grad(sum(losses.values()), leaves(outputs))
    assert all(g.abs().min() > 0 for g in gradients[: len(GRIDS)])
    assert not any(g.any() for g in gradients[len(GRIDS) :])
    assert criterion.normalizer.item() == pytest.approx(90.1 if normalizer == "ema" else 1)


def test_no_images():
    outputs = make_outputs(num_images=0)
    losses = make_criterion()(outputs, Targets.from_lists([], []))
    sum(losses.values()).backward()
    assert sum(losses.values()).item() == 0


def test_the_normalizer_is_saved_and_only_changed_in_training():
    outputs, targets = make_outputs(), make_targets()
    loss_cls, _, count = definition(outputs, targets, Matcher(), "focal", "smooth_l1")
    criterion = make_criterion(focal_alpha=0.7)
    criterion(outputs, targets)
    trained = criterion(outputs, targets)["loss_cls"]
    after = 0.9 * (0.9 * 100 + 0.1 * count) + 0.1 * count
    torch.testing.assert_close(trained, loss_cls / after)
    evaluated = criterion.eval()(outputs, targets)["loss_cls"]
    assert torch.equal(evaluated, trained)
    assert criterion.normalizer.item() == pytest.approx(after.item())
    other = make_criterion()
    other.load_state_dict(criterion.state_dict())
    assert torch.equal(other.normalizer, criterion.normalizer)
    assert list(criterion.state_dict()) == ["normalizer"]
    # That of the batch, in evaluation too.
    criterion = make_criterion(focal_alpha=0.7, normalizer="batch").eval()
    torch.testing.assert_close(criterion(outputs, targets)["loss_cls"], loss_cls / count)
    assert criterion.normalizer.item() == 100


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_half_precision_outputs(box_loss):
    outputs, targets = make_outputs(dtype=torch.bfloat16), make_targets()
    logits, deltas = ([x.detach().float() for x in y] for y in (outputs.logits, outputs.deltas))
    wide = replace(outputs, logits=logits, deltas=deltas)
    expected = make_criterion(box_loss=box_loss)(wide, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = make_criterion(box_loss=box_loss)(outputs, targets)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name])


def test_a_backward_after_the_next_step_is_not_disturbed():
    """The buffer changes in place; a loss computed before must keep its own divisor."""
    outputs, targets = make_outputs(), make_targets()
    criterion = make_criterion(normalizer_momentum=0.1)
    expected = torch.autograd.grad(
        make_criterion(normalizer_momentum=0.1)(outputs, targets)["loss_cls"], outputs.logits
    )
    loss = criterion(outputs, targets)["loss_cls"]
    criterion(outputs, targets)
    for a, b in zip(torch.autograd.grad(loss, outputs.logits), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_on_a_gpu_what_is_not_positive_has_no_loss_whatever_it_predicts_or_matches(box_loss):
    outputs = make_outputs()
    criterion = make_criterion(box_loss=box_loss)
    assignment = criterion.assign(outputs, make_targets())
    wild = [(x * 1e6).detach().masked_fill(x > 1, NAN) for x in outputs.deltas]
    nothing = replace(
        assignment,
        positive=torch.zeros_like(assignment.positive),
        boxes=torch.full_like(assignment.boxes, NAN),
    )
    assert criterion._box_loss_sum(all_rows(replace(outputs, deltas=wild), nothing)) == 0


def test_rotated_boxes_of_angle_0_are_assigned_as_aligned_ones():
    outputs, targets = make_outputs(), make_targets()
    aligned = make_criterion().assign(outputs, targets)

    def as_rotated(boxes):
        sides = boxes[..., 2:] - boxes[..., :2]
        angle = torch.zeros_like(sides[..., :1])
        return torch.cat((boxes[..., :2] + sides / 2, sides, angle), -1)

    deltas = make_outputs(box_numbers=5).deltas
    rotated = HeadOutputs(outputs.logits, deltas, [as_rotated(a) for a in outputs.anchors])
    criterion = make_criterion(coder=RotatedBoxCoder(symmetry_deg=90))
    boxes = Targets(as_rotated(targets.boxes), targets.labels)
    found = criterion.assign(rotated, boxes)
    # Coordinates were rounded on the way, so an IoU may pass a threshold or lose a tie.
    assert (found.labels == aligned.labels).float().mean() > 0.98
    losses = criterion(rotated, boxes)
    for gradient in torch.autograd.grad(sum(losses.values()), leaves(rotated)):
        assert gradient.isfinite().all()
    assert losses["loss_box_reg"] > 0
    with pytest.raises(ValueError, match=r"boxes of 4 numbers for a model with boxes of 5"):
        criterion(rotated, targets)
    with pytest.raises(TypeError, match=r"AtssMatcher does not match rotated boxes"):
        make_criterion(matcher=AtssMatcher(), coder=RotatedBoxCoder())(rotated, boxes)


def test_from_config_takes_every_value():
    changes = {
        "model.num_classes": 7,
        "model.box_weights": (10.0, 10.0, 5.0, 5.0),
        "matcher.low": 0.3,
        "matcher.high": 0.6,
        "matcher.allow_low_quality": False,
        "loss.cls_loss": "varifocal",
        "loss.focal_alpha": 0.4,
        "loss.focal_gamma": 1.5,
        "loss.box_loss": "ciou",
        "loss.smooth_l1_beta": 0.2,
        "loss.box_loss_weight": 2.5,
        "loss.normalizer": "batch",
        "loss.normalizer_momentum": 0.8,
        "loss.normalizer_initial": 33.0,
        "train.compile": "loss",
    }
    criterion = RetinaNetCriterion.from_config(with_overrides(ExperimentConfig(), changes))
    found = {
        "model.box_weights": criterion.coder.weights,
        "loss.normalizer": "ema" if criterion.is_smoothed else "batch",
        "loss.normalizer_initial": criterion.normalizer.item(),
        "train.compile": "loss" if criterion.compile_loss else "none",
    }
    for path in changes.keys() - found.keys():
        section, _, name = path.rpartition(".")
        found[path] = getattr(criterion.matcher if section == "matcher" else criterion, name)
    assert found == changes


def test_from_config_builds_the_assigner_and_the_coder():
    def build(**changes):
        base = {"model.num_classes": 3}
        return RetinaNetCriterion.from_config(with_overrides(ExperimentConfig(), base | changes))

    atss = build(**{"matcher.method": "atss", "matcher.atss_topk": 5}).matcher
    assert isinstance(atss, AtssMatcher)
    assert atss.topk == 5
    best = build(**{"matcher.method": "best", "matcher.high": 0.6}).matcher
    assert isinstance(best, BestAnchorMatcher)
    assert best.ignore_iou == 0.6
    coder = build(**{"model.box_type": "rotated", "model.angle_weight": 2.0}).coder
    assert isinstance(coder, RotatedBoxCoder)
    assert coder.weights == (1, 1, 1, 1, 2)


def test_faults_are_named():
    config = with_overrides(ExperimentConfig(), {"model.num_classes": None})
    with pytest.raises(ConfigError, match=r"model\.num_classes"):
        RetinaNetCriterion.from_config(config)
    for name in ("box_loss", "cls_loss", "normalizer"):
        with pytest.raises(ValueError, match=f"{name}: .* got 'other'"):
            make_criterion(**{name: "other"})
    targets = make_targets()
    targets.labels[0, 0] = NUM_CLASSES
    with pytest.raises(ValueError, match="image 0 of the batch, box 0: label 3"):
        make_criterion()(make_outputs(), targets)


def _steps(rank: int):
    """Two steps on one image a worker, for both normalizers."""
    targets = make_targets()
    own = Targets(targets.boxes[rank : rank + 1], targets.labels[rank : rank + 1])
    found = {}
    for normalizer in ("ema", "batch"):
        criterion = make_criterion(normalizer=normalizer)
        steps = []
        for seed in range(2):
            outputs = make_outputs(seed=seed)
            losses = criterion(image(outputs, rank), own)
            gradients = torch.autograd.grad(sum(losses.values()), leaves(outputs))
            losses = {name: loss.detach() for name, loss in losses.items()}
            steps.append({"losses": losses, "gradients": gradients})
        found[normalizer] = {"steps": steps, "normalizer": criterion.normalizer}
        if rank == 0:  # evaluation needs no other worker: rank 1 has none of these batches
            criterion.eval()(image(make_outputs(), rank), own)
    return found


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """What each of two workers found."""
    return two_processes.run(_steps, tmp_path_factory.mktemp("workers"))


@pytest.mark.parametrize("normalizer", ["ema", "batch"])
def test_the_mean_over_two_workers_is_one_worker_on_the_union(two_workers, normalizer):
    workers = [stored[normalizer] for stored in two_workers]
    criterion, targets = make_criterion(normalizer=normalizer), make_targets()
    for step in range(2):
        outputs = make_outputs(seed=step)
        losses = criterion(outputs, targets)
        gradients = torch.autograd.grad(sum(losses.values()), leaves(outputs))
        first, second = (worker["steps"][step] for worker in workers)
        for name, loss in losses.items():
            mean = (first["losses"][name] + second["losses"][name]) / 2
            torch.testing.assert_close(mean, loss.detach())
        for a, b, gradient in zip(first["gradients"], second["gradients"], gradients, strict=True):
            torch.testing.assert_close((a + b) / 2, gradient)
    for worker in workers:
        torch.testing.assert_close(worker["normalizer"], criterion.normalizer)
    assert not math.isclose(criterion.normalizer.item(), 100.0)
