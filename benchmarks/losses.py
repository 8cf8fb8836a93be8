"""How much do our assignment and loss save against torchvision's, in time and in memory?

All get the same raw outputs of a head, assign anchors to boxes, compute both losses, and go back to
the gradient of the raw outputs. The others' share includes what they do to the outputs first (from
(N, A * K, H, W) to (N, R, K)), as their losses cannot do without it.

python benchmarks/losses.py
python benchmarks/losses.py --out benchmarks/results/losses_MACHINE_DATE.md
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import typer
from measure import (
    DeviceOption,
    OutOption,
    QuickOption,
    Spread,
    ThreadsOption,
    in_turn,
    peak_mib,
    ratios,
    set_up,
)
from page import Page
from peers import Detectron2, Torchvision
from scenes import Scene, random_outputs, random_targets
from torch import Tensor

from retina_ray.model import RetinaNetCriterion
from retina_ray.ops.box_coder import BoxCoder
from retina_ray.ops.matcher import Matcher

OURS, COMPILED = "ours", "ours, compiled"
CAN_COMPILE = "compile_loss" in inspect.signature(RetinaNetCriterion).parameters
MAIN = Scene(2, 800, 1344)
BASE = Scene(2, 640, 640)
GRID = [
    *(replace(BASE, height=h, width=w) for h, w in ((320, 320), (800, 1344))),
    *(replace(BASE, num_classes=k) for k in (3, 20, 80, 365)),
    *(replace(BASE, num_boxes=m) for m in (0, 100, 300)),
]
QUICK = Scene(2, 128, 160, 5)

Step = Callable[[], dict[str, Tensor]]


def criterion_of(num_classes: int, *, compiled: bool = False) -> RetinaNetCriterion:
    """Ours with torchvision's settings: L1 on deltas, over the positives of the batch."""
    settings: dict[str, Any] = {"compile_loss": True} if compiled else {}
    return RetinaNetCriterion(
        num_classes=num_classes,
        matcher=Matcher(),
        coder=BoxCoder(),
        smooth_l1_beta=0.0,
        normalizer="batch",
        **settings,
    )


def steps_of(scene: Scene, device: torch.device) -> dict[str, Step]:
    """Forward and backward of each contestant, from the same leaf tensors."""
    outputs, targets = random_outputs(scene, device), random_targets(scene, device)
    leaves = [*outputs.logits, *outputs.deltas]

    def step(loss: Callable[..., dict[str, Tensor]], targets: Any) -> dict[str, Tensor]:
        for leaf in leaves:
            leaf.grad = None
        losses = loss(outputs, targets)
        torch.stack(list(losses.values())).sum().backward()
        return {name: value.detach() for name, value in losses.items()}

    steps: dict[str, Step] = {
        OURS: partial(step, criterion_of(scene.num_classes).to(device), targets)
    }
    if CAN_COMPILE:
        compiled = criterion_of(scene.num_classes, compiled=True).to(device)
        steps[COMPILED] = partial(step, compiled, targets)
    for peer in _peers():
        theirs = peer(scene.num_classes, device)
        steps[peer.name] = partial(step, theirs.loss, theirs.targets(targets))
    return steps


def memory_case(device: str, name: str, scene: Scene) -> Callable[[], object]:
    """For `peak_mib`: warm up on a small batch, then make the one to be measured."""
    where = torch.device(device)
    steps_of(replace(scene, num_images=1, height=128, width=128), where)[name]()
    return steps_of(scene, where)[name]


def check(scene: Scene, device: torch.device) -> str:
    """Compare values and gradients on one image (torchvision normalizes each image by itself)."""
    scene = replace(scene, num_images=1)
    outputs, targets = random_outputs(scene, device), random_targets(scene, device)
    peer = Torchvision(scene.num_classes, device)
    results = []
    for losses in (
        criterion_of(scene.num_classes).to(device)(outputs, targets),
        peer.loss(outputs, peer.targets(targets)),
    ):
        values = torch.stack(list(losses.values()))
        gradients = torch.autograd.grad(values.sum(), [*outputs.logits, *outputs.deltas])
        results.append((values.detach(), torch.cat([g.flatten() for g in gradients])))
    (ours, our_gradient), (theirs, their_gradient) = results
    values_apart = float(((ours - theirs) / theirs).abs().max())
    gradients_apart = float((our_gradient - their_gradient).norm() / their_gradient.norm())
    if max(values_apart, gradients_apart) > 1e-4:
        raise SystemExit(
            f"the losses differ by {values_apart:.2g}, the gradients by {gradients_apart:.2g}"
        )
    return (
        f"Checked on one image ({scene}): both losses agree with torchvision's to "
        f"{values_apart:.0e}, their gradients to {gradients_apart:.0e} of the length."
    )


def compare(scene: Scene, device: torch.device, rounds: int) -> tuple[list[str], dict[str, Spread]]:
    """A row of the table, and torchvision's time by each of the others'."""
    times = in_turn(dict(steps_of(scene, device)), rounds=rounds, device=device)
    theirs = times[Torchvision.name]
    faster = {name: ratios(theirs, of) for name, of in times.items() if name != Torchvision.name}
    row = [str(scene), *(f"{1000 * Spread.of(of).median:.4g}" for of in times.values())]
    return row + [str(spread) for spread in faster.values()], faster


def measure_time(page: Page, device: torch.device, *, quick: bool) -> None:
    """The main case in both memory formats with its goals, and the sizes around it."""
    clock = "CPU ms" if device.type == "cpu" else "ms on the GPU"
    columns = ["images, pixels, classes, boxes", *(f"{name}, {clock}" for name in _names())]
    columns += [f"torchvision / {name}" for name in _names() if name != Torchvision.name]
    scene, rounds = (QUICK, 2) if quick else (MAIN, 5)
    row, faster = compare(scene, device, rounds)
    last, _ = compare(replace(scene, channels_last=True), device, rounds)
    page.table(f"The main case: median (min to max) of {rounds} rounds", columns, [row, last])
    if device.type == "cpu" and not quick:
        for name, bound in ((OURS, 8), (COMPILED, 11)):
            if name in faster:
                what = f"CPU seconds, torchvision / {name}"
                page.goal(what, faster[name].median, bound, at_least=True, unit="x")

    scenes, rounds = ([replace(QUICK, num_boxes=0)], 1) if quick else (GRID, 3)
    rows = [compare(scene, device, rounds)[0] for scene in scenes]
    page.table(f"Sizes, classes, boxes: median (min to max) of {rounds} rounds", columns, rows)


def measure_memory(page: Page, device: torch.device, threads: int, *, quick: bool) -> None:
    """Peak of each contestant on the large batch, in both memory formats."""
    scene = QUICK if quick else replace(MAIN, num_images=8)
    rows, ours = [], 0.0
    for channels_last in (False, True):
        case = replace(scene, channels_last=channels_last)
        peaks = {
            name: peak_mib(memory_case, device.type, name, case, threads=threads)
            for name in _names()
        }
        ours = ours or peaks[OURS]
        rows.append([str(case), *(f"{peak:.0f}" for peak in peaks.values())])
    page.table(
        f"Peak extra memory in MiB, the gradient included; the logits are {scene.logits_mib:.0f}",
        ["images, pixels, classes, boxes", *_names()],
        rows,
    )
    if device.type == "cpu" and not quick:
        page.goal("our extra memory, uncompiled", ours, 900, at_least=False, unit=" MiB")


def main(
    threads: ThreadsOption = 2,
    device: DeviceOption = "cpu",
    quick: QuickOption = False,
    out: OutOption = None,
) -> None:
    """Compare assignment, loss and backward with torchvision's."""
    where = set_up(device, threads)
    page = Page("What do assignment, loss and backward cost?", device=where, threads=threads)
    page.text(check(QUICK if quick else BASE, where))
    if not CAN_COMPILE:
        page.text("This criterion has no compile_loss: uncompiled figures only.")
    measure_time(page, where, quick=quick)
    measure_memory(page, where, threads, quick=quick)
    page.finish(out)


def _peers() -> list[type[Torchvision] | type[Detectron2]]:
    return [Torchvision, Detectron2] if Detectron2.is_installed() else [Torchvision]


def _names() -> list[str]:
    return [OURS, *([COMPILED] if CAN_COMPILE else []), *(peer.name for peer in _peers())]


if __name__ == "__main__":
    typer.run(main)
