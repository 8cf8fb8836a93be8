"""What does a whole training step cost, against torchvision's RetinaNet?

Forward, loss, backward and the optimizer's step of a RetinaNet with ResNet-50, FPN, frozen batch
norm and the first two stages frozen, from uint8 images (float for torchvision, as it wants them) on
the device. Random weights and a tiny learning rate, so that nothing overflows.

On CUDA also: how many images a second in bfloat16 at 800 x 1333, from 2 images at once to as many
as fit, and what share of the GPU's peak that is, by the operations of the convolutions.

python benchmarks/step.py
python benchmarks/step.py --device cuda --out benchmarks/results/step_MACHINE_DATE.md
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated

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
    seconds,
    set_up,
)
from page import Page
from scenes import Scene, random_targets
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.retinanet import RetinaNet as TorchvisionRetinaNet
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from retina_ray.config import ExperimentConfig, with_overrides
from retina_ray.model import RetinaNet, RetinaNetCriterion
from retina_ray.structures import ImageBatch, Targets

SMALL = Scene(2, 320, 320)
LARGE = Scene(2, 800, 1333, channels_last=True)
QUICK = Scene(1, 96, 128)
LAST = ", channels last"
ON_CPU = ("ours" + LAST, "ours", "torchvision" + LAST, "torchvision")
ON_CUDA = ("ours", "ours, compiled", "torchvision")

Losses = Callable[[], dict[str, Tensor]]


@dataclass
class Trainee:
    """A model in training.

    Attributes:
        model: holds the parameters.
        losses: forward, from images to losses.
        precision: bfloat16 under autocast, or None for float32.
    """

    model: nn.Module
    losses: Losses
    precision: torch.dtype | None = None

    def __post_init__(self) -> None:
        """Make the optimizer."""
        learnt = [p for p in self.model.parameters() if p.requires_grad]
        self.num_learnt = sum(p.numel() for p in learnt)
        self.device = learnt[0].device
        self._optimizer = torch.optim.SGD(learnt, lr=1e-9, momentum=0.9, weight_decay=1e-4)

    def step(self) -> None:
        """One training step."""
        self._optimizer.zero_grad(set_to_none=True)
        autocast = torch.autocast(self.device.type, dtype=self.precision or torch.bfloat16)
        with autocast if self.precision else nullcontext():
            losses = self.losses()
        torch.stack(list(losses.values())).sum().backward()
        self._optimizer.step()


def ours(
    scene: Scene, device: torch.device, *, bf16: bool = False, compiled: bool = False
) -> Trainee:
    """Our model with torchvision's settings."""
    # The random weights that the model warns of are on purpose here.
    logging.getLogger("retina_ray").setLevel(logging.ERROR)
    config = with_overrides(
        ExperimentConfig(),
        {
            "model.num_classes": scene.num_classes,
            "model.top_input": "p5",
            "loss.smooth_l1_beta": 0.0,
            "train.compile": "loss" if compiled else "none",
        },
    )
    layout = torch.channels_last if scene.channels_last else torch.contiguous_format
    model = RetinaNet.from_config(config.model).to(device, memory_format=layout)  # type: ignore[call-overload]
    criterion = RetinaNetCriterion.from_config(config).to(device)
    call = torch.compile(model) if compiled else model
    size = (scene.height, scene.width)
    padded = [-(-side // model.size_divisibility) * model.size_divisibility for side in size]
    pixels = torch.randint(256, (scene.num_images, 3, *padded), dtype=torch.uint8, device=device)
    sizes = torch.tensor([size] * scene.num_images, device=device)
    images = ImageBatch(pixels.contiguous(memory_format=layout), sizes)
    targets: Targets = random_targets(scene, device)
    return Trainee(
        model.train(), lambda: criterion(call(images), targets), torch.bfloat16 if bf16 else None
    )


def theirs(scene: Scene, device: torch.device, *, bf16: bool = False) -> Trainee:
    """`retinanet_resnet50_fpn` as for pretrained weights: norm frozen, three stages learnt."""
    extractor = _resnet_fpn_extractor(
        resnet50(weights=None, norm_layer=FrozenBatchNorm2d),
        3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    size = (scene.height, scene.width)
    model = TorchvisionRetinaNet(
        extractor, scene.num_classes, min_size=min(size), max_size=max(size)
    )
    layout = torch.channels_last if scene.channels_last else torch.contiguous_format
    model.to(device, memory_format=layout)  # type: ignore[call-overload]
    images = list(torch.rand(scene.num_images, 3, *size, device=device))
    targets = random_targets(scene, device)
    as_dicts = [
        {"boxes": boxes, "labels": labels}
        for boxes, labels in zip(targets.boxes, targets.labels, strict=True)
    ]
    return Trainee(model.train(), lambda: model(images, as_dicts), torch.bfloat16 if bf16 else None)


def trainee(name: str, scene: Scene, device: torch.device, *, bf16: bool = False) -> Trainee:
    """The contestant of a name in `ON_CPU` or `ON_CUDA`."""
    torch.manual_seed(0)
    if name.endswith(LAST):
        name, scene = name.removesuffix(LAST), replace(scene, channels_last=True)
    if name == "torchvision":
        return theirs(scene, device, bf16=bf16)
    return ours(scene, device, bf16=bf16, compiled=name.endswith("compiled"))


def memory_case(device: str, name: str, scene: Scene) -> Callable[[], object]:
    """For `peak_mib`: the first step is the warm-up, which makes the optimizer's momenta."""
    model = trainee(name, scene, torch.device(device))
    model.step()
    model.model.zero_grad(set_to_none=True)
    return model.step


def measure_small(page: Page, device: torch.device, threads: int, *, quick: bool) -> None:
    """Steps of the small images in float32, in turn, and their memory."""
    scene, rounds = (QUICK, 1) if quick else (SMALL, 7)
    trainees = {name: trainee(name, scene, device) for name in ON_CPU}
    learnt = {name: model.num_learnt for name, model in trainees.items()}
    page.text("Parameters learnt: " + ", ".join(f"{name} {n}" for name, n in learnt.items()) + ".")
    steps = {name: model.step for name, model in trainees.items()}
    times = in_turn(dict(steps), rounds=rounds, device=device)
    del steps, trainees
    rows = []
    for name, of in times.items():
        peak = peak_mib(memory_case, device.type, name, scene, threads=threads)
        faster = ratios(times["torchvision"], of)
        rows.append([name, str(Spread.of(of)), str(faster), f"{peak:.0f}"])
    clock = "CPU seconds" if device.type == "cpu" else "seconds on the GPU"
    page.table(
        f"A step in float32, {scene}: median (min to max) of {rounds} rounds",
        ["", clock, "torchvision / this", "extra memory, MiB"],
        rows,
    )


def measure_large(
    page: Page, device: torch.device, *, peak_tflops: float, max_batch: int, quick: bool
) -> None:
    """Images a second in bfloat16 (channels last), by batch size."""
    scene = replace(QUICK if quick else LARGE, channels_last=True)
    work = {name: flops_per_image(name, scene, device) for name in ("ours", "torchvision")}
    rows = []
    for name in ON_CUDA:
        for batch, step_s, memory_gib in steps_by_batch(name, scene, device, max_batch):
            rate = [batch / s for s in step_s]
            share = Spread.of(rate).median * work[name.split(",")[0]] / (peak_tflops * 1e12)
            figures = (str(Spread.of(rate)), f"{100 * share:.1f}", f"{memory_gib:.1f}")
            rows.append([name, str(batch), *figures])
    pixels = f"{scene.height} x {scene.width}"
    page.text(
        f"Operations of a step, an image of {pixels}: "
        + ", ".join(f"{name} {of / 1e12:.3g} TFLOP" for name, of in work.items())
        + f"; the peak is taken as {peak_tflops:g} TFLOP/s."
    )
    page.table(
        f"Training in bfloat16, {pixels}, K = {scene.num_classes}, channels last",
        ["", "images a step", "images / s: median (min to max)", "% of peak", "peak memory, GiB"],
        rows,
    )


def steps_by_batch(
    name: str, scene: Scene, device: torch.device, max_batch: int
) -> Iterator[tuple[int, list[float], float]]:
    """Batch size, seconds of a step (some rounds), and peak memory, until no more fits.

    Doubles the batch until it does not fit, then tries half-way once more.
    """
    batch, is_last = 2, False
    while batch <= max_batch:
        found = _measure_batch(name, replace(scene, num_images=batch), device)
        if found is not None:
            yield batch, *found
        if is_last:
            return
        is_last = found is None
        batch = batch * 3 // 4 if is_last else batch * 2


def _measure_batch(
    name: str, scene: Scene, device: torch.device
) -> tuple[list[float], float] | None:
    """Seconds of a step and peak memory in GiB; None where it does not fit."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    torch.compiler.reset()  # each batch size gets a compilation of its own
    try:
        step = trainee(name, scene, device, bf16=True).step
        for _ in range(3):
            step()
        times = [seconds(step, device, repeats=10) for _ in range(5)]
    except torch.OutOfMemoryError:
        return None
    return times, torch.cuda.max_memory_allocated(device) / 2**30


def flops_per_image(name: str, scene: Scene, device: torch.device) -> float:
    """Operations of the matrix products and convolutions of a step, forward and backward."""
    model = trainee(name, scene, device, bf16=True)
    with FlopCounterMode(display=False) as counter:
        model.step()
    return counter.get_total_flops() / scene.num_images


def main(
    threads: ThreadsOption = 2,
    device: DeviceOption = "cpu",
    quick: QuickOption = False,
    out: OutOption = None,
    peak_tflops: Annotated[
        float, typer.Option(help="The GPU's dense bfloat16 peak; that of an H100 or H200 (SXM).")
    ] = 989.0,
    max_batch: Annotated[int, typer.Option(help="CUDA: try no more images at once.")] = 128,
) -> None:
    """Compare a whole training step with torchvision's."""
    where = set_up(device, threads)
    page = Page("What does a training step cost?", device=where, threads=threads)
    measure_small(page, where, threads, quick=quick)
    if device == "cuda":
        limit = min(max_batch, 4) if quick else max_batch
        measure_large(page, where, peak_tflops=peak_tflops, max_batch=limit, quick=quick)
    page.finish(out)


if __name__ == "__main__":
    typer.run(main)
