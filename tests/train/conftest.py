"""A few drawn pictures, and a run on them in this process. No Ray."""

from dataclasses import replace

import pytest
import torch
from builders import Harness

from retina_ray.data.prepared.dataset import PreparedDataset
from retina_ray.data.prepared.schema import record_from_row
from retina_ray.data.prepared.writer import ShardWriter
from retina_ray.data.synthetic.prepare import make_shapes


@pytest.fixture(scope="session")
def eight_pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "train"
    make_shapes(str(folder), num_images=8, size_px=64, seed=3, split="train")
    return str(folder)


@pytest.fixture
def damaged_pictures(tmp_path, eight_pictures):
    """The eight pictures, two of which are no images any more."""
    folder = tmp_path / "damaged"
    source = PreparedDataset.open(eight_pictures)
    with ShardWriter(folder, name="t", split="x", categories=source.info.categories) as writer:
        for number, row in enumerate(source.read_row_group(0, 0).to_pylist()):
            record = record_from_row(row)
            writer.add(replace(record, image=b"noise") if number in (2, 5) else record)
    names = source.annotations()["file_name"].to_pylist()
    return str(folder), {names[2], names[5]}


@pytest.fixture
def harness(tmp_path, eight_pictures):
    torch.set_num_threads(1)
    return Harness(tmp_path, eight_pictures)
