"""Inputs of pages (small sets, runs, sweeps), and a reader of what a page says."""

import json
from html.parser import HTMLParser

import cv2
import numpy as np
import tiny_sets
from tiny_sets import annotated, make_record

from retina_ray.config import ExperimentConfig, with_overrides
from retina_ray.data.prepared.schema import Category
from retina_ray.evaluation.predictions_file import (
    PREDICTIONS_FILE,
    PredictionsOrigin,
    predictions_to_parquet,
)
from retina_ray.sweep.report.rows import TrialRow


def write_set(folder, truth, names, *, size=(48, 32), images=None, file_names=None, **options):
    """A prepared set of grey images; image i has the id 500 + i.

    `truth` has the boxes (x0, y0, x1, y1, label, crowd) of each image; `images` are encoded ones
    that take the place of the grey ones, by number.
    """
    classes = [Category(id=10 * (i + 1), name=name) for i, name in enumerate(names)]
    width, height = size
    options = {"split": folder.name, "rows_per_group": 2, "categories": classes, **options}
    records = []
    for i, rows in enumerate(truth):
        pixels = np.full((height, width, 3), 40 + i, np.uint8)
        records.append(
            make_record(
                i,
                **annotated(rows, 100 * i + 1),
                image=(images or {}).get(i, cv2.imencode(".png", pixels)[1].tobytes()),
                file_name=(file_names or {}).get(i, f"{i:03}.png"),
                image_id=500 + i,
                height=height,
                width=width,
            )
        )
    return tiny_sets.write_set(folder, records, **options)


def found(image, category, box, score):
    """A prediction from (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = map(float, box)
    bbox = [x0, y0, x1 - x0, y1 - y0]
    return {"image_id": 500 + image, "category_id": category, "bbox": bbox, "score": score}


def metric_lines():
    """What a run of 60 steps logs, evaluated every 20."""
    lines = []
    for step in range(10, 61, 10):
        metrics = {"train/loss": 3.0 / step, "train/loss_cls": 2.0 / step, "train/lr": 1e-3}
        metrics |= {"perf/images_per_s": 20.0, "train/epoch": step / 20, "perf/odd": None}
        lines.append({"step": step, "time": 1.7e9 + step, "metrics": metrics})
        if step % 20 == 0:
            figures = {"val/AP": step / 100, "val/AP50": 0.7, "val/APs": None}
            figures |= {"val/AP_cat": 0.5, "val/AP_dog": None}
            lines.append({"step": step, "time": 1.7e9 + step, "metrics": figures})
    return [*lines, {"step": 60, "time": 1.7e9 + 61, "metrics": {}, "status": "finished"}]


def write_run(folder, dataset, *, results, name="pets", lines=None, fingerprint=None):
    """The folder of a run of 60 steps whose best evaluation was the last one."""
    (folder / "checkpoints").mkdir(parents=True)
    config = with_overrides(ExperimentConfig(), {"train.epochs": 3, "loss.box_loss": "giou"})
    (folder / "config.json").write_text(config.model_dump_json())
    run = {"name": name, "train_uri": dataset.uri, "val_uri": dataset.uri, "run_id": "pets-1"}
    (folder / "run.json").write_text(json.dumps(run))
    texts = [json.dumps(line) for line in (metric_lines() if lines is None else lines)]
    (folder / "metrics.jsonl").write_text("".join(f"{text}\n" for text in texts))
    index = {"best": "step-00000060", "last": "step-00000060", "last_step": 60}
    (folder / "checkpoints" / "index.json").write_text(json.dumps(index))
    if results is not None:
        origin = PredictionsOrigin(60, fingerprint or dataset.info.fingerprint)
        (folder / PREDICTIONS_FILE).write_bytes(predictions_to_parquet(results, origin=origin))
    return folder


def trial(name, ap=None, *, status="finished", epochs=12, params=None, seed=0, **options):
    """A trial of a sweep; its AP grows evenly over its epochs."""
    metrics = {} if ap is None else {"AP": ap, "AP50": 1.5 * ap}
    history = [
        {"epoch": e, "step": 10 * e, "AP": (ap or 0) * e / epochs, "AP50": 0.5, "loss": 2.0 / e}
        for e in range(1, epochs + 1)
    ]
    return TrialRow(
        trial_id=name,
        params={"optimizer.lr": 0.01} if params is None else params,
        status=status,
        metrics=metrics,
        best_epoch=epochs if metrics else 0,
        epochs_run=epochs,
        time_s=61.0,
        history=history if metrics else [],
        seed=seed,
        **options,
    )


class Page(HTMLParser):
    """What a page says: its elements, the words of each section, the cells of each table row.

    Attributes:
        tags: (name, attributes) of all elements.
        rows: (section, cells) of all rows of tables.
    """

    def __init__(self, html):
        super().__init__()
        self.tags, self.rows, self._words = [], [], []
        self._section, self._cell, self._silent = "", None, False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._silent |= tag == "style"
        if tag == "section":
            self._section = dict(attrs)["id"]
        elif tag == "tr":
            self.rows.append((self._section, []))
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag):
        self._silent &= tag != "style"
        if tag == "section":
            self._section = ""
        elif tag in ("td", "th"):
            self.rows[-1][1].append(_spaced(self._cell))
            self._cell = None

    def handle_data(self, data):
        if not self._silent:
            self._words.append((self._section, data))
            if self._cell is not None:
                self._cell.append(data)

    def text(self, section=None):
        """The words of a section, or of the whole page, with single spaces."""
        return _spaced(data for where, data in self._words if section in (None, where))

    def row(self, first, section=None):
        """The cells that follow the first one of a table's row."""
        return next(
            cells[1:]
            for where, cells in self.rows
            if cells and cells[0] == first and section in (None, where)
        )

    def all(self, tag, css=None):
        """The attributes of all elements of a kind, or of those of a class."""
        return [
            attrs
            for name, attrs in self.tags
            if name == tag and (css is None or css in (attrs.get("class") or "").split())
        ]

    @property
    def sections(self):
        """The ids of the sections, in order."""
        return [attrs["id"] for attrs in self.all("section")]


def _spaced(parts):
    return " ".join(" ".join(parts).split())
