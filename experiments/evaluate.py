"""Score a checkpoint on a prepared data set with COCO's metrics.

python experiments/evaluate.py --checkpoint results/RUN --dataset data/bccd/val
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from retina_ray.cli import clean_exit, say
from retina_ray.cli.options import CheckpointOption, DeviceOption
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.evaluation.backends import require_backend
from retina_ray.evaluation.coco import evaluate_coco
from retina_ray.evaluation.predictions_file import (
    PREDICTIONS_FILE,
    PredictionsOrigin,
    predictions_to_parquet,
)
from retina_ray.evaluation.results import write_results
from retina_ray.evaluation.tables import metrics_table
from retina_ray.inference.predict import Predictor

console = Console()


def main(
    checkpoint: CheckpointOption,
    dataset: Annotated[str, typer.Option(help="A prepared data set (folder or URI).")],
    out: Annotated[
        str,
        typer.Option(
            help="Folder for predictions.json (COCO results), predictions.parquet (the same for "
            "`retina-ray run report`) and metrics.json."
        ),
    ] = "results/evaluation",
    device: DeviceOption = None,
) -> None:
    """Print the 12 COCO metrics and the AP of each class, and write the predictions."""
    with clean_exit(console):
        data = PreparedDataset.open(dataset)
        predictor = Predictor.from_checkpoint(checkpoint, device=device)
        require_backend(predictor.config.inference.evaluation_backend)
        with Progress(console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("images", total=data.info.num_images)
            found = predictor.over_dataset(
                data, on_progress=lambda done: progress.update(task, completed=done)
            )
        metrics = evaluate_coco(
            data.ground_truth(box_type=predictor.config.model.box_type),
            found.results,
            max_detections=predictor.config.inference.max_detections,
            backend=predictor.config.inference.evaluation_backend,
        )
        folder = Path(out).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        write_results(folder / "predictions.json", found.results)
        origin = PredictionsOrigin(predictor.meta.step, data.info.fingerprint)
        packed = predictions_to_parquet(found.results, origin=origin)
        (folder / PREDICTIONS_FILE).write_bytes(packed)
        (folder / "metrics.json").write_text(json.dumps(metrics.as_metrics(), indent=1))
        console.print(metrics_table(metrics))
        say(f"predictions: {folder / 'predictions.json'}", console)


if __name__ == "__main__":
    typer.run(main)
