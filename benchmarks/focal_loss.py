"""How much does the fused focal loss save against the dense one, in time and in memory?

Both get the same logits and labels and do forward and backward, in turn, in one run; the figure is
the ratio of the two. Run: `python benchmarks/focal_loss.py`.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from retina_ray.ops.focal import pyramid_focal_loss

ANCHORS = 9
ROUNDS = 7
CASES = {
    "2 images of 256 px, K = 80": (2, 256, 80),
    "1 image of 800 px, K = 80": (1, 800, 80),
    "8 images of 128 px, K = 3": (8, 128, 3),
}


def make_case(num_images: int, size_px: int, num_classes: int) -> tuple[list[Tensor], Tensor]:
    """Random logits (N, A*K, H, W) of P3 to P7 and labels (N, R) with 0.1 % positives."""
    generator = torch.Generator().manual_seed(0)
    sides = [-(-size_px // 2**level) for level in range(3, 8)]
    logits = [
        torch.randn(num_images, ANCHORS * num_classes, s, s, generator=generator) - 4 for s in sides
    ]
    num_anchors = sum(ANCHORS * s * s for s in sides)
    labels = torch.full((num_images, num_anchors), num_classes)
    chance = torch.rand(labels.shape, generator=generator)
    positive = chance < 0.001
    labels[positive] = torch.randint(num_classes, (int(positive.sum()),), generator=generator)
    labels[(chance >= 0.001) & (chance < 0.002)] = -1
    return logits, labels


def dense(logits: list[Tensor], labels: Tensor, num_classes: int) -> Tensor:
    """The textbook way: permute, concatenate, mask, one-hot, torchvision's loss."""
    flat = [
        x.view(len(x), ANCHORS, num_classes, *x.shape[2:])
        .permute(0, 3, 4, 1, 2)
        .reshape(len(x), -1, num_classes)
        for x in logits
    ]
    valid = labels >= 0
    target = torch.nn.functional.one_hot(labels[valid], num_classes + 1)[:, :-1]
    return sigmoid_focal_loss(
        torch.cat(flat, 1)[valid], target.float(), alpha=0.25, gamma=2.0, reduction="sum"
    )


def seconds(loss: Callable[[list[Tensor]], Tensor], logits: list[Tensor]) -> tuple[float, float]:
    """Time of forward and backward in seconds, and the loss."""
    leaves = [x.clone().requires_grad_() for x in logits]
    started = time.perf_counter()
    value = loss(leaves)
    value.backward()
    return time.perf_counter() - started, value.item()


def main() -> None:
    """Print the ratio of each case with its spread."""
    torch.set_num_threads(1)
    table = Table(
        "case", "fused, ms", "dense, ms", "dense / fused: median", "min to max",
        title=f"torch {torch.__version__}, torchvision {torchvision.__version__}, 1 thread of "
        f"{platform.processor() or platform.machine()}, {ROUNDS} rounds",
    )  # fmt: skip
    for name, (num_images, size_px, num_classes) in CASES.items():
        logits, labels = make_case(num_images, size_px, num_classes)

        def fused(x: list[Tensor], labels: Tensor = labels, k: int = num_classes) -> Tensor:
            return pyramid_focal_loss(x, labels, num_classes=k)

        def textbook(x: list[Tensor], labels: Tensor = labels, k: int = num_classes) -> Tensor:
            return dense(x, labels, k)

        pairs = []
        for _ in range(ROUNDS + 1):
            (a, value), (b, expected) = seconds(fused, logits), seconds(textbook, logits)
            if abs(value - expected) > 1e-4 * abs(expected):
                raise SystemExit(f"{name}: the losses differ: {value} and {expected}")
            pairs.append((a, b))
        pairs = pairs[1:]  # the first round warms up
        ratios = sorted(b / a for a, b in pairs)
        ours, theirs = (1000 * statistics.median(x) for x in zip(*pairs, strict=True))
        table.add_row(
            name,
            f"{ours:.1f}",
            f"{theirs:.1f}",
            f"{statistics.median(ratios):.1f}",
            f"{ratios[0]:.1f} to {ratios[-1]:.1f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
