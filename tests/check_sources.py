"""A tiny clean COCO data set of two splits, to be spoilt by the tests of the check."""

import io
import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from retina_ray.checks.check import check_dataset
from retina_ray.checks.images import CheckSettings

NAN = float("nan")


def reported(root, **settings) -> list[tuple[str, str, str]]:
    """(severity, kind, message with its place) of everything that a check reports."""
    report = check_dataset(root, settings=CheckSettings(**settings))
    return [
        (finding.kind.severity, finding.kind.name, str(case))
        for finding in report.findings
        for case in finding.cases
    ]


def picture(seed: int, height=48, width=64) -> np.ndarray:
    """Smooth blobs, (H, W, 3) uint8: pictures of different seeds look different."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (6, 8, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth, 0, 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, quality=95) -> bytes:
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def saved(pixels: np.ndarray, format="JPEG", *, mode="RGB", orientation=1) -> bytes:
    """Encode with Pillow, which writes what OpenCV does not."""
    exif = Image.Exif()
    if orientation != 1:
        exif[274] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format, exif=exif)
    return file.getvalue()


class CocoSource:
    """`train` with images 1 to 3 and `val` with 4 and 5, two classes in both."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.splits = {"train": self._split((1, 2, 3)), "val": self._split((4, 5))}
        for split, data in self.splits.items():
            for image in data["images"]:
                self.put(split, image["file_name"], jpeg(picture(image["id"])))

    @staticmethod
    def _split(ids) -> dict:
        boxes = {7: [1.5, 2.25, 10, 20], 90: [30, 10, 20, 30]}
        return {
            "images": [{"id": i, "file_name": f"{i}.jpg", "height": 48, "width": 64} for i in ids],
            "categories": [{"id": 7, "name": "cat"}, {"id": 90, "name": "dog"}],
            "annotations": [
                {
                    "id": 10 * i + place,
                    "image_id": i,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
                for i in ids
                for place, (category, box) in enumerate(boxes.items(), start=1)
            ],
        }

    def put(self, split: str, name: str, data: bytes) -> None:
        path = self.root / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def add_box(self, bbox, *, id=999, image_id=1, category_id=7, split="train", **more) -> None:
        entry = {"id": id, "image_id": image_id, "category_id": category_id, "bbox": bbox}
        entry |= {"area": 50.0, "iscrowd": 0, **more}
        self.splits[split]["annotations"].append(entry)

    def write(self) -> Path:
        folder = self.root / "annotations"
        folder.mkdir(exist_ok=True)
        for split, data in self.splits.items():
            (folder / f"instances_{split}.json").write_text(json.dumps(data))
        return self.root
