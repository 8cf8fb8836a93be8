"""`dataset.json`, the description that makes a folder of shards a data set; where it may lie.

Needs pyarrow only: Ray Data's tasks import it without PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from retina_ray.data.prepared.schema import BoxType, Category
from retina_ray.errors import DataError

FORMAT_VERSION = 2
"""The newest format that this version reads. A set of aligned boxes is written in format 1, which
older versions read as well; 2 adds rotated boxes."""

INFO_FILE = "dataset.json"


@dataclass(frozen=True)
class ShardInfo:
    """One Parquet file of a set.

    Attributes:
        num_bytes: size of the file; a shorter one was copied incompletely.
    """

    file: str
    num_rows: int
    num_bytes: int
    row_group_rows: tuple[int, ...]


@dataclass(frozen=True)
class DatasetInfo:
    """The content of `dataset.json`.

    Attributes:
        source: where it came from, in words; does not enter the fingerprint.
        categories: in the order of the labels.
        num_images: with and without boxes.
        num_boxes: without crowd regions.
        num_crowd: crowd regions.
        class_counts: boxes without crowd regions by class name, in the order of the labels.
        shards: in order.
        fingerprint: SHA-256 of the content and its order in row groups, whatever the path: two sets
            with the same fingerprint give the same plans and the same images.
        report: what the import dropped, clipped or changed.
        box_type: "rotated": the shards have rotated boxes besides the aligned ones.
    """

    name: str
    split: str
    source: str
    categories: tuple[Category, ...]
    num_images: int
    num_boxes: int
    num_crowd: int
    class_counts: Mapping[str, int]
    shards: tuple[ShardInfo, ...]
    fingerprint: str
    report: Mapping[str, Any] = field(default_factory=dict)
    box_type: BoxType = "aligned"

    def to_json(self) -> str:
        """The text of `dataset.json`."""
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        if self.box_type == "aligned":
            content["format_version"] = 1
            del content["box_type"]
        return json.dumps(content, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, uri: str) -> DatasetInfo:
        """Read `dataset.json`.

        Raises:
            DataError: not such a file, of no version that is known here, or its numbers contradict
                each other.
        """
        try:
            data = json.loads(text)
            _check_version(data.pop("format_version"), uri)
            if data.setdefault("box_type", "aligned") not in get_args(BoxType):
                raise ValueError(f"box_type {data['box_type']!r}")
            data["categories"] = tuple(Category(**c) for c in data["categories"])
            data["shards"] = tuple(_shard_info(stored) for stored in data["shards"])
            if not data["shards"]:
                raise ValueError("no shards")
            return cls(**data)
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{uri}/{INFO_FILE}: not the description of a prepared data set ({error!r}); "
                "prepare the data set again"
            ) from error


def _check_version(version: Any, uri: str) -> None:
    """Refuse a format that this version does not read.

    Args:
        version: as `dataset.json` has it, of any type.
        uri: of the set, for the message.

    Raises:
        DataError: it is a newer one, or none at all.
    """
    # `true` and `2.0` equal versions, but whoever wrote them did not follow the format.
    is_number = type(version) is int
    if is_number and version > FORMAT_VERSION:
        raise DataError(
            f"{uri}: prepared in format {version}, this version of retina_ray reads up to "
            f"{FORMAT_VERSION}; update retina_ray, or prepare the data set again"
        )
    if not is_number or version < 1:
        raise DataError(
            f"{uri}/{INFO_FILE}: its format_version is {json.dumps(version)}, this version of "
            f"retina_ray reads 1 to {FORMAT_VERSION}; prepare the data set again"
        )


def _shard_info(stored: Mapping[str, Any]) -> ShardInfo:
    """Read what `dataset.json` says of a shard.

    Raises:
        KeyError, TypeError: something is missing, too much or of another kind.
        ValueError: its numbers are none, or contradict each other.
    """
    info = ShardInfo(**{**stored, "row_group_rows": tuple(stored["row_group_rows"])})
    for number in (info.num_rows, info.num_bytes, *info.row_group_rows):
        if type(number) is not int or number < 1:
            raise ValueError(f"{info.file}: {number!r} rows or bytes")
    if sum(info.row_group_rows) != info.num_rows:
        raise ValueError(
            f"{info.file}: {info.num_rows} rows, {sum(info.row_group_rows)} in its row groups"
        )
    return info
