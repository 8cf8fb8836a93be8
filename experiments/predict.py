"""Find objects in image files with a trained checkpoint.

python experiments/predict.py --checkpoint results/RUN photo.jpg folder/ --out found
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from retina_ray.cli import clean_exit, say
from retina_ray.cli.options import CheckpointOption, DeviceOption
from retina_ray.config import ConfigError
from retina_ray.data.images.files import MAX_PIXELS, decode_upright
from retina_ray.errors import SourceFileError
from retina_ray.evaluation.drawing import AnnotatedImage, write_png
from retina_ray.inference.predict import Predictor
from retina_ray.structures import Detections

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
console = Console()


def main(
    inputs: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    checkpoint: CheckpointOption,
    out: Annotated[Path, typer.Option(help="Folder for images and predictions.json.")] = Path(
        "results/predictions"
    ),
    score_threshold: Annotated[float, typer.Option(help="Boxes below it are not drawn.")] = 0.3,
    device: DeviceOption = None,
    max_pixels: Annotated[int, typer.Option(help="Larger images are refused.")] = MAX_PIXELS,
) -> None:
    """Draw the boxes on a copy of each image, and all detections as JSON."""
    with clean_exit(console):
        files = _image_files(inputs)
        predictor = Predictor.from_checkpoint(checkpoint, device=device)
        records, unreadable = [], []
        taken: set[Path] = set()
        for file in files:
            try:
                image = decode_upright(file.read_bytes(), max_pixels=max_pixels)
            except SourceFileError as error:
                unreadable.append(f"{file}: {error.message}")
                continue
            found = predictor.predict_image(image)
            annotated = AnnotatedImage(
                image=image,
                detections=found,
                class_names=predictor.class_names,
                caption=file.name,
                score_threshold=score_threshold,
            )
            write_png(_free_path(out, file, taken), annotated.draw())
            records += _records(file, found, predictor.class_names)
        out.mkdir(parents=True, exist_ok=True)
        (out / "predictions.json").write_text(json.dumps(records, indent=1))
        say(f"{len(files) - len(unreadable)} images -> {out}", console)
        if unreadable:
            raise ConfigError([("", message) for message in unreadable])


def _records(file: Path, found: Detections, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """An entry for each detection; rotated boxes have a key and a meaning of their own."""
    key = "box_rotated" if found.boxes.shape[-1] == 5 else "box_xyxy"
    names = [class_names[label] for label in found.labels.tolist()]
    return [
        {"file": str(file), key: box, "score": score, "class": name}
        for box, score, name in zip(found.boxes.tolist(), found.scores.tolist(), names, strict=True)
    ]


def _free_path(out: Path, file: Path, taken: set[Path]) -> Path:
    """Where the drawn copy of a file goes; files of the same name in two folders get one each."""
    path, number = out / f"{file.stem}.png", 1
    while path in taken:
        number += 1
        path = out / f"{file.stem}-{number}.png"
    taken.add(path)
    return path


def _image_files(inputs: list[Path]) -> list[Path]:
    """Expand folders; refuse what is not there."""
    missing = [str(path) for path in inputs if not path.exists()]
    if missing:
        raise ConfigError(f"no such file or folder: {', '.join(missing)}")
    files = []
    for path in inputs:
        files += (
            sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
            if path.is_dir()
            else [path]
        )
    if not files:
        raise ConfigError(f"no images in {', '.join(map(str, inputs))}")
    return files


if __name__ == "__main__":
    typer.run(main)
