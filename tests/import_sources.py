"""The same tiny data set in each annotation format, to be spoilt by the tests of the importers."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest

from retina_ray.data.importers.box_checks import (
    MALFORMED_BOX,
    NOT_FINITE,
    OUTSIDE,
    UNKNOWN_CLASS,
    ZERO_SIZE,
)
from retina_ray.data.importers.coco import import_coco
from retina_ray.data.importers.options import ImportOptions
from retina_ray.data.importers.voc import import_voc
from retina_ray.data.importers.yolo import import_yolo
from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import record_from_row
from retina_ray.errors import DataError

HEIGHT, WIDTH = 48, 64
NAN, INF = float("nan"), float("inf")
CAT, DOG = "cat", "dog"
ZERO_BOX, OUTSIDE_BOX, OVERHANGING_BOX = (9, 9, 9, 20), (70, 4, 80, 9), (54, 4, 74, 9)


def records(dataset):
    return [
        record_from_row(row)
        for shard, info in enumerate(dataset.info.shards)
        for group in range(len(info.row_group_rows))
        for row in dataset.read_row_group(shard, group).to_pylist()
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@dataclass(frozen=True)
class Box:
    """A box by its class and XYXY, or by what stands in its place in the annotation file."""

    xyxy: tuple = ()
    name: str = DOG
    raw: object = None
    more: dict = field(default_factory=dict)


class Source:
    """`train` with images a (two boxes), b (none) and c (one), `val` with d (one)."""

    format: str
    suffix = ".jpg"
    own_options: tuple[str, ...] = ()
    repeated = "duplicate image id"
    bad_boxes: dict[str, tuple[Box, str]]
    """By name, boxes that nothing mends, with the kind of fault that each is."""

    def __init__(self, root: Path) -> None:
        self.root = root / "source"
        self.splits: dict[str, dict[str, list[Box]]] = {"train": {}, "val": {}}
        self.sizes: dict[str, tuple[int, int] | None] = {}
        self.twice: list[str] = []
        self.put("a", Box((1.5, 3, 11.5, 21), CAT), Box((0, 0, WIDTH, HEIGHT)))
        self.put("b")
        self.put("c", Box((5, 6, 12, 12)))
        self.put("d", Box((2, 3, 34, 15)), split="val")

    def put(self, stem: str, *boxes: Box, split: str = "train") -> None:
        """An image with its boxes."""
        self.splits[split][stem] = list(boxes)
        path = self.image(stem)
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = sum(map(ord, stem))
        pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        assert cv2.imwrite(str(path), pixels)

    def add(self, stem: str, *boxes: Box) -> None:
        self.splits["train"][stem] += boxes

    def _split_of(self, stem: str) -> str:
        return next(split for split, stems in self.splits.items() if stem in stems)

    def image(self, stem: str) -> Path:
        return self.root / self.file_name(stem)

    def file_name(self, stem: str) -> str:
        """As it stands in faults."""
        raise NotImplementedError

    def write(self) -> Path:
        """Write the annotations of all splits; returns the folder of all."""
        for split, stems in self.splits.items():
            self._write_split(split, stems)
        return self.root

    def _write_split(self, split: str, stems: dict[str, list[Box]]) -> None:
        raise NotImplementedError

    def _import(self, root: str | Path, out: Path, **keywords) -> PreparedDataset:
        raise NotImplementedError

    def run(self, split="train", *, out="out", root=None, on_progress=None, **options):
        """Write the annotations and import a split; `options` are the format's and the shared."""
        own = {key: options.pop(key) for key in self.own_options if key in options}
        return self._import(
            root or self.write(),
            self.root.parent / out,
            split=split,
            options=ImportOptions(**options),
            on_progress=on_progress,
            **own,
        )

    def caught(self, **options) -> list:
        """The faults of an import that leaves nothing behind."""
        with pytest.raises(DataError) as caught:
            self.run(**options)
        assert str(caught.value).encode()
        assert not list((self.root.parent / "out").glob("*")), "nothing may be left behind"
        return caught.value.faults

    def faults(self, **options) -> list[tuple]:
        return [(f.kind, f.file, f.image_id, f.annotation_id) for f in self.caught(**options)]

    def kinds(self, **options) -> list[str]:
        return [fault.kind for fault in self.caught(**options)]


class CocoSource(Source):
    """`content`, a text or what JSON makes of it, replaces the annotations of `train`."""

    format = "coco"
    content: dict | str = ""
    ids = {CAT: 7, DOG: 90}  # noqa: RUF012
    bad_boxes = {  # noqa: RUF012
        "zero": (Box(ZERO_BOX), ZERO_SIZE),
        "negative": (Box(raw=[3, 4, 5, -1]), ZERO_SIZE),
        "outside": (Box(OUTSIDE_BOX), OUTSIDE),
        "nan": (Box(raw=[3, NAN, 5, 5]), NOT_FINITE),
        "infinite": (Box(raw=[3, 4, INF, 5]), NOT_FINITE),
        "huge": (Box(raw=[3, 4, 10**400, 5]), NOT_FINITE),
        "three numbers": (Box(raw=[3, 4, 5]), MALFORMED_BOX),
        "no numbers": (Box(raw=["3", 4, 5, 5]), MALFORMED_BOX),
        "nothing": (Box(raw="none"), MALFORMED_BOX),
    }

    def file_name(self, stem):
        return f"{stem}{self.suffix}"

    def image(self, stem):
        return self.root / self._split_of(stem) / self.file_name(stem)

    def data(self, split="train") -> dict:
        """What stands in the annotation file."""
        images, annotations = [], []
        for i, (stem, boxes) in enumerate(self.splits[split].items(), start=1):
            height, width = self.sizes.get(stem, (HEIGHT, WIDTH)) or (None, None)
            entry = {"id": i, "file_name": self.file_name(stem), "height": height, "width": width}
            images += [entry] * (1 + self.twice.count(stem))
            for box in boxes:
                entry = {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": self.ids[box.name],
                }
                bbox = self.bbox(*box.xyxy) if box.raw is None else box.raw
                annotations.append({**entry, "bbox": bbox, **box.more})
        categories = [{"id": id_, "name": name} for name, id_ in self.ids.items()]
        return {"images": images, "annotations": annotations, "categories": categories}

    def bbox(self, x0, y0, x1, y1) -> list:
        return [x0, y0, x1 - x0, y1 - y0]

    def json(self, split="train") -> Path:
        return self.root / "annotations" / f"instances_{split}.json"

    def _write_split(self, split, stems):
        content = self.content if split == "train" and self.content else self.data(split)
        self.json(split).parent.mkdir(exist_ok=True)
        self.json(split).write_text(content if isinstance(content, str) else json.dumps(content))

    def _import(self, root, out, *, split, **keywords):
        file = f"{root}/annotations/instances_{split}.json"
        return import_coco(file, f"{root}/{split}", out, split=split, **keywords)


class RotatedSource(CocoSource):
    """The same boxes as (x_center, y_center, width, height, 0)."""

    bad_boxes = {  # noqa: RUF012
        "zero": (Box(ZERO_BOX), ZERO_SIZE),
        "negative": (Box(raw=[30, 20, 5, -1, 9]), ZERO_SIZE),
        "zero as float32": (Box(raw=[30, 20, 5, 1e-60, 9]), ZERO_SIZE),
        "outside": (Box(OUTSIDE_BOX), OUTSIDE),
        "nan": (Box(raw=[30, 20, 5, 5, NAN]), NOT_FINITE),
        "four numbers": (Box(raw=[30, 20, 5, 5]), MALFORMED_BOX),
    }

    def bbox(self, x0, y0, x1, y1):
        return [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, 0]


class VocSource(Source):
    format = "voc"
    own_options = ("class_names", "difficult")
    bad_boxes = {  # noqa: RUF012
        "zero": (Box(ZERO_BOX), ZERO_SIZE),
        "one pixel": (Box(raw=(5, 5, 5, 5)), ZERO_SIZE),
        "negative": (Box(raw=(9, 5, 3, 8)), ZERO_SIZE),
        "outside": (Box(OUTSIDE_BOX), OUTSIDE),
        "nan": (Box(raw=("nan", 5, 7, 8)), MALFORMED_BOX),
        "huge": (Box(raw=(5, 5, "9" * 400, 9)), MALFORMED_BOX),
        "no numbers": (Box(raw=("four", 5, 7, 8)), MALFORMED_BOX),
        "nothing": (Box(raw=()), MALFORMED_BOX),
        "unknown class": (Box((5, 5, 9, 9), "cow"), UNKNOWN_CLASS),
    }

    def file_name(self, stem):
        return f"{stem}{self.suffix}"

    def image(self, stem):
        return self.root / "JPEGImages" / self.file_name(stem)

    def xml(self, stem: str) -> Path:
        return self.root / "Annotations" / f"{stem}.xml"

    def _write_split(self, split, stems):
        (self.root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        names = [*stems, *(stem for stem in self.twice if stem in stems)]
        (self.root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
        for stem, boxes in stems.items():
            height, width = self.sizes.get(stem, (HEIGHT, WIDTH)) or (0, 0)
            size = f"<size><width>{width}</width><height>{height}</height></size>"
            objects = "".join(map(self._object, boxes))
            self.xml(stem).parent.mkdir(parents=True, exist_ok=True)
            self.xml(stem).write_text(f"<annotation>{size}{objects}</annotation>")

    @staticmethod
    def _object(box: Box) -> str:
        corners = box.raw
        if corners is None:  # 1-based inclusive pixels
            x0, y0, x1, y1 = box.xyxy
            corners = (x0 + 1, y0 + 1, x1, y1)
        keys = ("xmin", "ymin", "xmax", "ymax")
        bndbox = "".join(f"<{k}>{v}</{k}>" for k, v in zip(keys, corners, strict=False))
        more = "".join(f"<{k}>{v}</{k}>" for k, v in box.more.items())
        return f"<object><name>{box.name}</name>{more}<bndbox>{bndbox}</bndbox></object>"

    def _import(self, root, out, *, split, class_names=(CAT, DOG), **keywords):
        return import_voc(root, out, split=split, class_names=class_names, **keywords)


class YoloSource(Source):
    """The splits are text files of names; `yaml` replaces the description."""

    format = "yolo"
    own_options = ("yolo_root",)
    repeated = "duplicate image"
    bad_boxes = {  # noqa: RUF012
        "zero": (Box(ZERO_BOX), ZERO_SIZE),
        "negative": (Box(raw="0 0.5 0.5 -0.1 0.2"), ZERO_SIZE),
        "outside": (Box(OUTSIDE_BOX), OUTSIDE),
        "nan": (Box(raw="0 nan 0.5 0.2 0.2"), NOT_FINITE),
        "infinite": (Box(raw="0 0.5 1e400 0.2 0.2"), NOT_FINITE),
        "infinite corner": (Box(raw="0 0.25 0.25 0.5 -1e400 0.5 0.75"), NOT_FINITE),
        "four values": (Box(raw="0 0.5 0.5 0.2"), MALFORMED_BOX),
        "six values": (Box(raw="0 0.5 0.5 0.2 0.2 0.9"), MALFORMED_BOX),
        "no numbers": (Box(raw="0 0.5 0.5 wide 0.2"), MALFORMED_BOX),
        "pixels": (Box(raw="0 320 240 50 40"), MALFORMED_BOX),
        "negative pixels": (Box(raw="0 -320 0.5 0.4 0.5"), MALFORMED_BOX),
        "unknown class": (Box(raw="2 0.5 0.5 0.2 0.2"), UNKNOWN_CLASS),
        "negative class": (Box(raw="-1 0.5 0.5 0.2 0.2"), UNKNOWN_CLASS),
        "half a class": (Box(raw="0.5 0.5 0.5 0.2 0.2"), UNKNOWN_CLASS),
    }

    def __init__(self, root):
        super().__init__(root)
        self.yaml = ("train: train.txt", "val: val.txt", "names: [cat, dog]")

    def file_name(self, stem):
        return f"images/{stem}{self.suffix}"

    def labels(self, stem: str) -> Path:
        return self.root / "labels" / f"{stem}.txt"

    def _write_split(self, split, stems):
        (self.root / "data.yaml").write_text("\n".join(self.yaml))
        names = [*stems, *(stem for stem in self.twice if stem in stems)]
        (self.root / f"{split}.txt").write_text("\n".join(map(self.file_name, names)))
        for stem, boxes in stems.items():
            self.labels(stem).parent.mkdir(parents=True, exist_ok=True)
            self.labels(stem).write_text("".join(f"{self._line(box)}\n" for box in boxes))

    @staticmethod
    def _line(box: Box) -> str:
        if box.raw is not None:
            return str(box.raw)
        x0, y0, x1, y1 = box.xyxy
        shares = ((x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH)
        numbers = (*shares, (y1 - y0) / HEIGHT)
        return " ".join(map(repr, ((CAT, DOG).index(box.name), *numbers)))

    def _import(self, root, out, *, yolo_root=None, **keywords):
        return import_yolo(f"{root}/data.yaml", out, root=yolo_root, **keywords)


SOURCES = {
    "coco": CocoSource,
    "rotated": RotatedSource,
    "voc": VocSource,
    "yolo": YoloSource,
}
