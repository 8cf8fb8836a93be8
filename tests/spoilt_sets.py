"""What happens to prepared sets after they were written, and all ways to notice."""

import json
from pathlib import Path

import pyarrow as pa

from retina_ray.data.loading.stored_images import StoredImages
from retina_ray.data.prepared.dataset import PreparedDataset


def edit(folder, *, shard=None, **changes) -> Path:
    """Change a set's description, and in it that of the first shard."""
    path = Path(folder) / "dataset.json"
    info = json.loads(path.read_text()) | changes
    if shard is not None:
        info["shards"][0] |= shard
    path.write_text(json.dumps(info))
    return Path(folder)


def with_column(table: pa.Table, name: str, values=None, kind=None) -> pa.Table:
    """A column of other values, or of another type."""
    if values is None:
        column = table[name].cast(kind)
    else:
        column = pa.array(values, table.schema.field(name).type)
    return table.set_column(table.schema.get_field_index(name), name, column)


def ways_to_read(dataset: PreparedDataset, group: int, index: pa.Table | None = None) -> list:
    """All that reads a row group of the first shard; with the whole set's index its images, too."""
    ways = [
        dataset.index,
        dataset.image_classes,
        dataset.annotations,
        dataset.ground_truth,
        lambda: dataset.read_row_group(0, group),
        lambda: dataset.read_images([(0, group, 0)]),
        lambda: dataset.read_light([(0, group)], ["height"]),
    ]
    if index is not None:
        place = index["row_group"].to_pylist().index(group)
        ways.append(lambda: StoredImages(dataset, index).read([place]))
    return ways
