"""What does it cost to decide which anchor learns which box, against torchvision?

All get the same boxes and anchors, and give the label of every anchor (N, R) and the box that it is
to learn (N, R, 4). The other two ways of ours to assign (ATSS, best anchor) stand beside, without a
counterpart.

python benchmarks/assignment.py
python benchmarks/assignment.py --out benchmarks/results/assignment_MACHINE_DATE.md
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

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

from retina_ray.model.assignment import Assigner, assign
from retina_ray.ops.atss import AtssMatcher
from retina_ray.ops.best_anchor import BestAnchorMatcher
from retina_ray.ops.matcher import Matcher
from retina_ray.structures import HeadOutputs, Targets

OURS: dict[str, Assigner] = {
    "ours": Matcher(),
    "ours, ATSS": AtssMatcher(),
    "ours, best anchor": BestAnchorMatcher(),
}
MAIN = Scene(8, 800, 1344, num_boxes=100)
GRID = [
    *(replace(MAIN, num_boxes=m) for m in (0, 10)),
    replace(MAIN, num_images=2, num_boxes=300),
    *(replace(MAIN, height=s, width=s) for s in (320, 640)),
]
QUICK = Scene(2, 128, 160, num_boxes=10)

Labelling = Callable[[], tuple[Tensor, Tensor]]


def labellings(scene: Scene, device: torch.device) -> dict[str, Labelling]:
    """Labels and boxes of every anchor, by each contestant."""
    # Of the outputs, only the grids and the anchors are looked at: one class will do.
    outputs = random_outputs(replace(scene, num_classes=1), device)
    targets = random_targets(scene, device)
    found: dict[str, Labelling] = {
        name: partial(_ours, outputs, targets, matcher, scene.num_classes)
        for name, matcher in OURS.items()
    }
    for peer in (Torchvision, Detectron2):
        if peer is Torchvision or Detectron2.is_installed():
            theirs = peer(scene.num_classes, device)
            found[peer.name] = partial(theirs.assign, outputs.anchors, theirs.targets(targets))
    return found


def _ours(
    outputs: HeadOutputs, targets: Targets, matcher: Assigner, num_classes: int
) -> tuple[Tensor, Tensor]:
    grid_sizes = [(level.shape[2], level.shape[3]) for level in outputs.logits]
    assignment = assign(
        outputs.anchors, grid_sizes, targets, matcher=matcher, num_classes=num_classes
    )
    return assignment.labels, assignment.matched_boxes()


def memory_case(device: str, name: str, scene: Scene) -> Callable[[], object]:
    """For `peak_mib`: warm up on a small batch, then make the one to be measured."""
    where = torch.device(device)
    labellings(replace(scene, num_images=1, height=128, width=128), where)[name]()
    return labellings(scene, where)[name]


def check(scene: Scene, device: torch.device) -> str:
    """Count the anchors that we and torchvision label differently."""
    found = labellings(scene, device)
    (labels, boxes), (their_labels, their_boxes) = found["ours"](), found[Torchvision.name]()
    positive = (labels >= 0) & (labels < scene.num_classes)
    wrong = (labels != their_labels) | (positive & (boxes != their_boxes).any(-1))
    return (
        f"Checked ({scene}): of {labels.numel()} anchors, {int(positive.sum())} positive and "
        f"{int((labels < 0).sum())} ignored, {int(wrong.sum())} differ from torchvision's."
    )


def compare(scene: Scene, device: torch.device, rounds: int) -> tuple[list[str], Spread]:
    """A row of the table, and torchvision's time by ours."""
    times = in_turn(dict(labellings(scene, device)), rounds=rounds, device=device)
    faster = {
        name: ratios(times[Torchvision.name], times[name])
        for name in times
        if name not in (Torchvision.name, *list(OURS)[1:])
    }
    row = [str(scene), *(f"{1000 * Spread.of(of).median:.4g}" for of in times.values())]
    return row + [str(spread) for spread in faster.values()], faster["ours"]


def measure_memory(page: Page, device: torch.device, threads: int, *, quick: bool) -> None:
    """Peak of each contestant for the main case and for more boxes."""
    scenes = [QUICK] if quick else [MAIN, replace(MAIN, num_images=2, num_boxes=300)]
    rows = []
    for scene in scenes:
        peaks = [peak_mib(memory_case, device.type, n, scene, threads=threads) for n in _names()]
        rows.append([str(scene), *(f"{peak:.0f}" for peak in peaks)])
    page.table("Peak extra memory in MiB", ["images, pixels, classes, boxes", *_names()], rows)


def main(
    threads: ThreadsOption = 2,
    device: DeviceOption = "cpu",
    quick: QuickOption = False,
    out: OutOption = None,
) -> None:
    """Compare the assignment of anchors to boxes with torchvision's."""
    where = set_up(device, threads)
    page = Page("What does the assignment cost?", device=where, threads=threads)
    main_scene, grid, rounds = (
        (QUICK, [replace(QUICK, num_boxes=0)], 2) if quick else (MAIN, GRID, 3)
    )
    page.text(check(main_scene, where))

    clock = "CPU ms" if device == "cpu" else "ms on the GPU"
    columns = ["images, pixels, classes, boxes", *(f"{name}, {clock}" for name in _names())]
    columns += [f"torchvision / {n}" for n in _names() if n in ("ours", Detectron2.name)]
    first, faster = compare(main_scene, where, rounds)
    rows = [first, *(compare(scene, where, rounds)[0] for scene in grid)]
    page.table(f"Time: median (min to max) of {rounds} rounds", columns, rows)
    if device == "cpu" and not quick:
        page.goal("CPU seconds, torchvision / ours", faster.median, 4, at_least=True, unit="x")
    measure_memory(page, where, threads, quick=quick)
    page.finish(out)


def _names() -> list[str]:
    return [*OURS, Torchvision.name, *([Detectron2.name] if Detectron2.is_installed() else [])]


if __name__ == "__main__":
    typer.run(main)
