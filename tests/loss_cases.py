"""Pyramids of logits with labels, and the classification losses of them by definition.

Shapes: N images, A anchors a cell, K classes, R anchors in all.
"""

import pytest
import torch
import torch.nn.functional as F
from head_outputs import random_maps

from retina_ray.ops.losses import quality_focal_loss, sigmoid_focal_loss, varifocal_loss

NUM_ANCHORS = 3
GRIDS = ((5, 7), (3, 4), (1, 1))
CLASS_LOSSES = {
    "focal": sigmoid_focal_loss,
    "quality_focal": lambda logits, goals, alpha, gamma: quality_focal_loss(logits, goals, gamma),
    "varifocal": varifocal_loss,
}
KINDS = tuple(CLASS_LOSSES)
ALPHAS = (-1, 0.25, 0.75)
GAMMAS = (0, 0.5, 1, 2, 5)


def make_case(
    num_images=2,
    num_classes=5,
    seed=0,
    dtype=torch.float32,
    spread=3.0,
    grids=GRIDS,
    *,
    quality_apart=False,
):
    """Logits of a pyramid, labels and qualities of the anchors.

    A fifth of the labels is positive and a fifth ignored; a fifth of the qualities is 0, as of what
    is predicted beside its box. `quality_apart`: each is at least 0.1 away from the score that is
    to reach it. With an exponent below 1, the slope of quality focal loss is as steep as one likes
    where the two come close, and so is the effect of rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    options = {"num_images": num_images, "spread": spread, "dtype": dtype}
    logits = random_maps(NUM_ANCHORS * num_classes, grids, generator, **options)
    shape = num_images, sum(NUM_ANCHORS * h * w for h, w in grids)
    kind = torch.rand(shape, generator=generator)
    positive = torch.randint(num_classes, shape, generator=generator)
    labels = torch.where(kind < 0.2, positive, num_classes)
    labels[kind > 0.8] = -1
    quality = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    quality[:, ::5] = 0
    if quality_apart:
        rows = rows_of(logits, num_classes).detach().double()
        own = rows.gather(2, labels.clamp(0, num_classes - 1)[..., None])[..., 0].sigmoid()
        away = torch.where(own > 0.5, own - 0.3, own + 0.3).to(quality.dtype)
        quality = torch.where((own - quality).abs() < 0.1, away, quality)
    return logits, labels, quality


def channels_last(logits):
    return [
        x.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for x in logits
    ]


def rows_of(logits, num_classes):
    """(N, A * K, H, W) a level to rows of anchors in order, (N, R, K)."""
    rows = [x.unflatten(1, (-1, num_classes)).permute(0, 3, 4, 1, 2) for x in logits]
    return torch.cat([x.flatten(1, 3) for x in rows], 1)


def by_definition(logits, labels, quality=None, *, num_classes, kind="focal", alpha, gamma):
    """The loss and its gradients in float64: one-hot targets, ignored anchors left out."""
    leaves = [x.detach().double().requires_grad_() for x in logits]
    kept = labels >= 0
    targets = F.one_hot(labels[kept], num_classes + 1)[:, :-1].double()
    rows = rows_of(leaves, num_classes)[kept]
    if kind != "focal":
        targets = targets * quality.double()[kept][:, None]
    loss = CLASS_LOSSES[kind](rows, targets, alpha, gamma)
    return loss.item(), torch.autograd.grad(loss, leaves)


def check(loss, logits, expected, *, rtol=1e-6, case=""):
    """Compare with `by_definition`; `case` names it where it differs.

    The value to 1e-6 of it; each gradient to `rtol` of it plus 1e-6 (no gradient of a logit is
    much above 1 as long as the logit is not).
    """
    value, gradients = expected
    assert loss.item() == pytest.approx(value, rel=1e-6), case
    for ours, theirs in zip(torch.autograd.grad(loss, logits), gradients, strict=True):
        torch.testing.assert_close(
            ours.double(), theirs, rtol=rtol, atol=1e-6, msg=lambda text: f"{case}: {text}"
        )
