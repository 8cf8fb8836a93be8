"""Against detectron2's own code, where it can be imported; skipped elsewhere.

It need not be built: a checkout of its sources on PYTHONPATH, with fvcore, iopath, yacs, omegaconf,
tabulate, termcolor, portalocker and cloudpickle installed, is enough for what is compared here. The
other tests of exactness carry the same values within them.
"""

import importlib
import warnings

import pytest
import torch

from retina_ray.model import RetinaNetCriterion
from retina_ray.ops.anchors import AnchorGenerator
from retina_ray.ops.box_coder import BoxCoder
from retina_ray.ops.matcher import Matcher
from retina_ray.structures import HeadOutputs, Targets

pytest.importorskip("detectron2", reason="detectron2 is not on the path")
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = [[s, s * 2 ** (1 / 3), s * 2 ** (2 / 3)] for s in (32, 64, 128, 256, 512)]
RATIOS = (0.5, 1, 2)
STRIDES = [8, 16, 32, 64, 128]
GRIDS = [(40, 52), (20, 26), (10, 13), (5, 7), (3, 4)]


def module(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"detectron2.{name}")


@pytest.mark.parametrize(("num_classes", "num_boxes"), [(80, 10), (20, 100), (3, 0)])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_labels_losses_gradients_and_normalizer_over_three_steps(num_classes, num_boxes, beta):
    generator = torch.Generator().manual_seed(num_boxes)
    logits, deltas = (
        [torch.randn(2, 9 * channels, h, w, generator=generator) * spread for h, w in GRIDS]
        for channels, spread in ((num_classes, 1.5), (4, 0.3))
    )
    leaves = [level.requires_grad_() for level in [*logits, *deltas]]
    outputs = HeadOutputs(logits, deltas, AnchorGenerator(SIZES, RATIOS, STRIDES, 0.0)(GRIDS))
    corners = torch.rand(2, num_boxes, 2, generator=generator) * 250
    sides = 10 + torch.rand(2, num_boxes, 2, generator=generator) ** 2 * 150
    labels = torch.randint(num_classes, (2, num_boxes), generator=generator)
    targets = Targets(torch.cat((corners, corners + sides), -1), labels)

    structures, events = module("structures"), module("utils.events")
    instances = []
    for boxes, classes in zip(targets.boxes, targets.labels, strict=True):
        image = structures.Instances((320, 416))
        image.gt_boxes, image.gt_classes = structures.Boxes(boxes), classes
        instances.append(image)
    theirs = module("modeling.meta_arch.retinanet").RetinaNet(
        backbone=torch.nn.Identity(),
        head=torch.nn.Identity(),
        head_in_features=[],
        anchor_generator=torch.nn.Identity(),
        box2box_transform=module("modeling.box_regression").Box2BoxTransform((1, 1, 1, 1)),
        anchor_matcher=module("modeling.matcher").Matcher([0.4, 0.5], [0, -1, 1], True),
        num_classes=num_classes,
        smooth_l1_beta=beta,
        pixel_mean=[0.0],
        pixel_std=[1.0],
    )
    ours = RetinaNetCriterion(
        num_classes=num_classes, matcher=Matcher(), coder=BoxCoder(), smooth_l1_beta=beta
    )
    anchors = [structures.Boxes(level) for level in outputs.anchors]
    their_labels, their_boxes = theirs.label_anchors(anchors, instances)
    assignment = ours.assign(outputs, targets)
    assert torch.equal(assignment.labels, torch.stack(their_labels))
    found = assignment.positive
    assert torch.equal(assignment.matched_boxes()[found], torch.stack(their_boxes)[found])
    rows = [
        [x.unflatten(1, (-1, d)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in levels]
        for levels, d in ((logits, num_classes), (deltas, 4))
    ]
    for _ in range(3):
        losses = ours(outputs, targets)
        with events.EventStorage():
            expected = theirs.losses(anchors, rows[0], their_labels, rows[1], their_boxes)
        for name, loss in losses.items():
            torch.testing.assert_close(loss, expected[name], rtol=1e-6, atol=0)
        for a, b in zip(
            torch.autograd.grad(sum(losses.values()), leaves),
            torch.autograd.grad(sum(expected.values()), leaves, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)
        assert ours.normalizer.item() == pytest.approx(theirs.loss_normalizer)
