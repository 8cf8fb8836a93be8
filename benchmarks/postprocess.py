"""How fast do head outputs become detections, against torchvision?

Both get the same raw outputs. Torchvision's heads first bring them into rows of anchors; its figure
is given with and without that. Before anything is timed, the detections are compared.

python benchmarks/postprocess.py
python benchmarks/postprocess.py --out benchmarks/results/postprocess_MACHINE_DATE.md
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
from peers import Torchvision
from scenes import PRIOR_BIAS, Scene, random_outputs
from torch import Tensor

from retina_ray.ops.box_coder import BoxCoder
from retina_ray.ops.boxes import box_iou
from retina_ray.ops.postprocess import select_detections
from retina_ray.structures import Detections, HeadOutputs

OURS, ROWS, ALONE = "ours", "torchvision", "torchvision without its heads' copy"
NAMES = (OURS, ROWS, ALONE)
MAIN = Scene(1, 800, 1344)
CASES = [
    ("trained", MAIN),
    *(("trained", replace(MAIN, num_classes=k)) for k in (3, 20, 365)),
    ("trained", replace(MAIN, num_images=8)),
    ("trained", replace(MAIN, num_images=8, num_classes=3)),
    ("trained", replace(MAIN, channels_last=True)),
    ("trained", replace(MAIN, num_images=8, channels_last=True)),
    ("untrained", MAIN),
    ("dense", MAIN),
]
QUICK = [(kind, Scene(2, 128, 160, 5)) for kind in ("trained", "untrained", "dense")]


def outputs_of(kind: str, scene: Scene, device: torch.device) -> HeadOutputs:
    """Outputs of a head.

    Args:
        kind: "trained": nearly all scores are near the prior, and around 30 boxes an image some
            anchors score high for one class. "untrained": all scores near the prior, none above
            the threshold. "dense": about a third of all scores above it.
        scene: sizes; its number of boxes is not looked at.
        device: where they are.
    """
    if kind == "dense":
        return _without_gradient(random_outputs(scene, device, noise=1.0, bias=-2.5))
    outputs = _without_gradient(
        random_outputs(scene, device, noise=0.4 if kind == "trained" else 0.1, bias=PRIOR_BIAS)
    )
    if kind == "trained":
        for image in range(scene.num_images):
            _add_objects(outputs, image, scene)
    return outputs


def _without_gradient(outputs: HeadOutputs) -> HeadOutputs:
    return HeadOutputs(
        [x.detach() for x in outputs.logits], [x.detach() for x in outputs.deltas], outputs.anchors
    )


def _add_objects(outputs: HeadOutputs, image: int, scene: Scene, num_objects: int = 30) -> None:
    """Let the anchors around some boxes find them: score by IoU, deltas towards the box."""
    generator = torch.Generator().manual_seed(image)
    device = outputs.anchors[0].device
    size = torch.tensor([scene.width, scene.height])
    sides = torch.exp(3 + 2.5 * torch.rand(num_objects, 2, generator=generator))
    sides = torch.minimum(sides, 0.9 * size)
    corners = torch.rand(num_objects, 2, generator=generator) * (size - sides)
    boxes = torch.cat((corners, corners + sides), 1).to(device)
    labels = torch.randint(scene.num_classes, (num_objects,), generator=generator).to(device)
    for logits, deltas, anchors in zip(
        outputs.logits, outputs.deltas, outputs.anchors, strict=True
    ):
        iou, owner = box_iou(boxes, anchors).max(0)
        rows = (iou > 0.3).nonzero().squeeze(1)
        num_anchors = deltas.shape[1] // 4
        cell, anchor = rows // num_anchors, rows % num_anchors
        y, x = cell // logits.shape[3], cell % logits.shape[3]
        found = logits[image].unflatten(0, (num_anchors, -1))
        found[anchor, labels[owner[rows]], y, x] += 8 * iou[rows]
        towards = BoxCoder().encode(anchors[rows], boxes[owner[rows]])
        moved = deltas[image].unflatten(0, (num_anchors, 4))
        moved[anchor, :, y, x] = moved[anchor, :, y, x] * 0.5 + towards


def selections(
    kind: str, scene: Scene, device: torch.device
) -> dict[str, Callable[[], list[Detections]]]:
    """The detections of a batch, by each contestant."""
    outputs = outputs_of(kind, scene, device)
    size = (scene.height, scene.width)
    sizes = torch.tensor([size] * scene.num_images)
    peer = Torchvision(scene.num_classes, device)
    split = peer.split(outputs)
    return {
        OURS: partial(select_detections, outputs, sizes.to(device), coder=BoxCoder()),
        ROWS: lambda: peer.detections(peer.split(outputs), outputs.anchors, size),
        ALONE: partial(peer.detections, split, outputs.anchors, size),
    }


def differences(ours: list[Detections], theirs: list[Detections]) -> tuple[int, int, float]:
    """Compare the detections of a batch, in whatever order they are.

    Two are the same whose labels are equal, and boxes (in pixels) and scores to 1e-4.

    Returns:
        How many we have, how many of both sides the other side lacks, and the largest difference
        of those that are the same.
    """
    count, missing, furthest = 0, 0, 0.0
    for a, b in zip(ours, theirs, strict=True):
        count += len(a)
        if len(a) == 0 or len(b) == 0:
            missing += len(a) + len(b)
            continue
        apart = torch.cdist(_as_rows(a), _as_rows(b), p=float("inf"))
        for nearest in (apart.amin(0), apart.amin(1)):
            same = nearest <= 1e-4
            missing += int((~same).sum())
            furthest = max(furthest, float(nearest[same].max()) if bool(same.any()) else 0.0)
    return count, missing, furthest


def _as_rows(found: Detections) -> Tensor:
    """(D, 6) float64, in which other labels are far away."""
    parts = (found.boxes, found.scores[:, None], 1e6 * found.labels[:, None])
    return torch.cat([part.double() for part in parts], 1)


def memory_case(device: str, name: str, kind: str, scene: Scene) -> Callable[[], object]:
    """For `peak_mib`: warm up on a small batch, then make the one to be measured."""
    where = torch.device(device)
    selections(kind, Scene(1, 128, 128, scene.num_classes), where)[name]()
    return selections(kind, scene, where)[name]


def compare(
    kind: str, scene: Scene, device: torch.device, rounds: int
) -> tuple[list[str], list[str], Spread]:
    """Rows of the two tables (detections and time), and torchvision's time by ours."""
    contestants = selections(kind, scene, device)
    outputs = outputs_of(kind, scene, device)
    above = sum(int((x.sigmoid() > 0.05).sum()) for x in outputs.logits) / scene.num_images
    del outputs
    count, missing, apart = differences(contestants[OURS](), contestants[ROWS]())
    times = in_turn(dict(contestants), rounds=rounds, device=device)
    case = f"{kind}, {_sizes(scene)}"
    faster = [ratios(times[name], times[OURS]) for name in (ROWS, ALONE)]
    medians = [f"{1000 * Spread.of(of).median:.4g}" for of in times.values()]
    detections = [case, f"{above:.0f}", str(count), str(missing), f"{apart:.1e}"]
    return detections, [case, *medians, *map(str, faster)], faster[0]


def measure_memory(page: Page, device: torch.device, threads: int, *, quick: bool) -> None:
    """Peak of each contestant."""
    rows = []
    for kind, scene in QUICK[:1] if quick else [CASES[0], CASES[-1]]:
        peaks = [
            peak_mib(memory_case, device.type, name, kind, scene, threads=threads) for name in NAMES
        ]
        rows.append([f"{kind}, {_sizes(scene)}", *(f"{peak:.0f}" for peak in peaks)])
    page.table("Peak extra memory in MiB", ["case", *NAMES], rows)


def main(
    threads: ThreadsOption = 2,
    device: DeviceOption = "cpu",
    quick: QuickOption = False,
    out: OutOption = None,
) -> None:
    """Compare the selection of detections with torchvision's."""
    where = set_up(device, threads)
    page = Page("What does the selection of detections cost?", device=where, threads=threads)
    cases, rounds = (QUICK, 2) if quick else (CASES, 7)
    found = [compare(kind, scene, where, rounds) for kind, scene in cases]
    page.table(
        "The detections are the same",
        [
            "case",
            "scores above 0.05 an image",
            "detections",
            "of only one side",
            "largest difference",
        ],
        [detections for detections, _, _ in found],
    )
    clock = "CPU ms" if device == "cpu" else "ms on the GPU"
    page.table(
        f"Time: median (min to max) of {rounds} rounds",
        [
            "case",
            *(f"{name}, {clock}" for name in NAMES),
            *(f"{name} / ours" for name in NAMES[1:]),
        ],
        [times for _, times, _ in found],
    )
    if device == "cpu" and not quick:
        what = f"CPU seconds, torchvision / ours, {CASES[0][0]}"
        page.goal(what, found[0][2].median, 3, at_least=True, unit="x")
    measure_memory(page, where, threads, quick=quick)
    page.finish(out)


def _sizes(scene: Scene) -> str:
    return str(scene).replace(f", {scene.num_boxes} boxes", "")


if __name__ == "__main__":
    typer.run(main)
