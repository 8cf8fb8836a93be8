"""What does it cost to turn a JPEG into pixels, and into an image of a training's size?

First to all of its pixels: `decode_image` (OpenCV) and torchvision. Then to a size: with the
stream's reductions while decoding (1/2, 1/4, 1/8) and decoded in full; and how far each lies from
antialiased resizing of all pixels in float64. Images are held in memory and decoded one after the
other, in turn with the other ways.

python benchmarks/decoding.py --voc BCCD --coco COCO_TINY
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import typer
from ingest import Case, encoded_images, photographs
from measure import OutOption, QuickOption, Spread, in_turn, ratios
from page import Page
from torchvision.io import ImageReadMode
from torchvision.io import decode_image as torchvision_decode
from torchvision.transforms.v2 import functional

from retina_ray.data.augment.transforms import resize_image
from retina_ray.data.images.decoding import Pixels, decode_image
from retina_ray.data.loading.memory import keep_freed_memory

CPU = torch.device("cpu")
OURS, TORCHVISION = "decode_image (OpenCV)", "torchvision"
REDUCED, IN_FULL = "ours, by 1/2, 1/4, 1/8", "decoded in full"
ANTIALIASED = "torchvision, antialiased"
Target = tuple[bytes, int, int]


def by_torchvision(data: bytes) -> torch.Tensor:
    """All pixels, (3, H, W)."""
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return torchvision_decode(encoded, ImageReadMode.RGB)


def reduced(data: bytes, height: int, width: int) -> Pixels:
    """As the stream does it."""
    return resize_image(decode_image(data, min_shorter_side=min(height, width)), height, width)


def in_full(data: bytes, height: int, width: int) -> Pixels:
    """Without a reduction, but with the stream's resizing."""
    return resize_image(decode_image(data), height, width)


def antialiased(data: bytes, height: int, width: int) -> Pixels:
    """What torch's DataLoader would be given to do."""
    image = functional.resize(by_torchvision(data), [height, width], antialias=True)
    return image.permute(1, 2, 0).numpy()


TO_SIZE: dict[str, Callable[[bytes, int, int], Pixels]] = {
    REDUCED: reduced,
    IN_FULL: in_full,
    ANTIALIASED: antialiased,
}


def error(way: Callable[[bytes, int, int], Pixels], targets: list[Target]) -> float:
    """Root mean square distance from antialiased resizing of all pixels, in levels of 255."""
    squares = []
    for data, height, width in targets:
        pixels = torch.from_numpy(decode_image(data)).permute(2, 0, 1).double()
        best = functional.resize(pixels, [height, width], antialias=True).permute(1, 2, 0).numpy()
        squares.append(((way(data, height, width) - best) ** 2).mean())
    return float(np.sqrt(np.mean(squares)))


def every(way: Callable[..., object], arguments: Sequence[tuple[object, ...]]) -> None:
    """Call it for one image after the other."""
    for each in arguments:
        way(*each)


def cpu_ms(
    ways: Mapping[str, Callable[..., object]], arguments: Sequence[tuple[object, ...]], rounds: int
) -> dict[str, list[float]]:
    """CPU milliseconds an image of each way, one a round."""
    contestants: dict[str, Callable[[], object]] = {
        name: partial(every, way, arguments) for name, way in ways.items()
    }
    times = in_turn(contestants, rounds=rounds, device=CPU)
    return {name: [1000 * t / len(arguments) for t in of] for name, of in times.items()}


def main(
    voc: Annotated[Path | None, typer.Option(help="BCCD: a folder in VOC's layout.")] = None,
    coco: Annotated[Path | None, typer.Option(help="A folder in COCO's layout.")] = None,
    size: Annotated[list[int] | None, typer.Option(help="Shorter side; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 15,
    images: Annotated[int, typer.Option(min=1, help="Of each set.")] = 64,
    quick: QuickOption = False,
    out: OutOption = None,
) -> None:
    """Compare ways to decode and to resize."""
    if voc is None and coco is None:
        raise typer.BadParameter("give --voc, --coco, or both: photographs are what is decoded")
    page = Page("What does a JPEG cost?", device=None, threads=1)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    keep_freed_memory()  # as the stream's tasks do
    rounds, images = (2, 8) if quick else (rounds, images)
    sizes = size or [320, 224]
    with tempfile.TemporaryDirectory() as folder:
        sets = photographs(voc, coco, folder)
        targets = {
            (name, side): encoded_images(Case(name, dataset, side, 1333))[:images]
            for name, dataset in sets.items()
            for side in sizes
        }
    decoders = {OURS: decode_image, TORCHVISION: by_torchvision}
    rows = []
    for name in sets:
        files = [(data,) for data, _, _ in targets[name, sizes[0]]]
        times = cpu_ms(decoders, files, rounds)
        spreads = [str(Spread.of(times[way])) for way in decoders]
        rows.append([name, *spreads, str(ratios(times[TORCHVISION], times[OURS]))])
    page.table(
        f"All pixels: CPU ms an image, median (range) of {rounds} rounds, and ratios to ours",
        ["images", *decoders, f"{TORCHVISION} / ours"],
        rows,
    )
    for (name, side), of in targets.items():
        times = cpu_ms(TO_SIZE, of, rounds)
        page.table(
            f"{name} to {side} px",
            ["way", "CPU ms an image", "ratio to ours", "distance from antialiased (RMS, of 255)"],
            [
                [
                    way,
                    str(Spread.of(times[way])),
                    str(ratios(times[way], times[REDUCED])),
                    f"{error(TO_SIZE[way], of):.2f}",
                ]
                for way in TO_SIZE
            ],
        )
    page.text(f"OpenCV {cv2.__version__}; {images} images.")
    page.finish(out)


if __name__ == "__main__":
    typer.run(main)
