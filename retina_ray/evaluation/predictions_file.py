"""Predictions for a data set as a Parquet file: COCO's results, exact and small.

    image_id     int64
    category_id  int64
    bbox         4 x float64: x, y, width, height; or 5 x float64 of a rotated box: x_center,
                 y_center, width, height, angle
    score        float64

Rows keep their order and numbers every bit, so metrics computed from the file are those of the
evaluation that wrote it. The file's metadata say which step made it, and on which data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PREDICTIONS_FILE = "predictions.parquet"
"""Its name in a run's folder."""

_VERSION_KEY, _VERSION = b"retina_ray.predictions", b"1"
_STEP_KEY, _DATA_KEY = b"retina_ray.step", b"retina_ray.dataset_fingerprint"
_TYPES = {"image_id": pa.int64(), "category_id": pa.int64(), "score": pa.float64()}
_EXPECTED = "expected a file of predictions_to_parquet, with image_id, category_id, bbox and score"


@dataclass(frozen=True)
class PredictionsOrigin:
    """Where the predictions of a file come from, as far as the writer said it."""

    step: int | None = None  # training steps that the model had done
    dataset_fingerprint: str | None = None  # of the data set that was predicted


def predictions_to_parquet(
    results: Sequence[Mapping[str, Any]], *, origin: PredictionsOrigin | None = None
) -> bytes:
    """Pack COCO results (entries of `to_results`, maybe none) into the content of a Parquet file.

    Raises:
        ValueError: entries without a key, or whose boxes have not all four or all five numbers.
    """
    missing = sorted({key for r in results for key in (*_TYPES, "bbox") if key not in r})
    if missing:
        raise ValueError(f"predictions: entries without {', '.join(missing)}: COCO's results have")
    lengths = sorted({len(result["bbox"]) for result in results})
    if lengths not in ([], [4], [5]):
        raise ValueError(
            f"predictions: boxes of {', '.join(map(str, lengths))} numbers: expected 4 (x, y, "
            "width, height) in every entry, or 5 (rotated) in every one"
        )
    size = lengths[0] if lengths else 4
    boxes = np.array([result["bbox"] for result in results], np.float64).reshape(-1)
    columns: dict[str, pa.Array] = {
        name: pa.array([result[name] for result in results], type_)
        for name, type_ in _TYPES.items()
    }
    columns["bbox"] = pa.FixedSizeListArray.from_arrays(pa.array(boxes, pa.float64()), size)
    order = ("image_id", "category_id", "bbox", "score")
    table = pa.table({name: columns[name] for name in order})
    table = table.replace_schema_metadata(_metadata(origin or PredictionsOrigin()))
    sink = pa.BufferOutputStream()
    options: dict[str, Any] = {
        "compression": "zstd",
        "write_page_checksum": True,
        "use_dictionary": ["image_id", "category_id"],
        # Bytes of equal rank side by side: numbers of similar size compress better so.
        "column_encoding": dict.fromkeys(("bbox.list.element", "score"), "BYTE_STREAM_SPLIT"),
    }
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def predictions_from_parquet(data: bytes, where: str) -> list[dict[str, Any]]:
    """Unpack the entries of a file's content in the order in which they were written.

    `where` is what to call the file in a message.

    Raises:
        ValueError: no Parquet file, one that was cut off, or one of other columns; what was
            expected.
    """
    table = _read(data, where)
    boxes = table["bbox"].combine_chunks()
    size = table.schema.field("bbox").type.list_size
    numbers = boxes.flatten().to_numpy(zero_copy_only=False).reshape(-1, size).tolist()
    rows = zip(
        *(table[name].to_pylist() for name in ("image_id", "category_id", "score")),
        numbers,
        strict=True,
    )
    return [
        {"image_id": image, "category_id": category, "bbox": box, "score": score}
        for image, category, score, box in rows
    ]


def predictions_origin(data: bytes, where: str) -> PredictionsOrigin:
    """Read where a file's predictions come from.

    Raises:
        ValueError: as `predictions_from_parquet`.
    """
    metadata = _schema(data, where).metadata or {}
    step = metadata.get(_STEP_KEY, b"").decode()
    if step and not step.isdigit():
        raise ValueError(f"{where}: {_STEP_KEY.decode()} = {step!r} in its metadata is no number")
    return PredictionsOrigin(
        step=int(step) if step else None,
        dataset_fingerprint=metadata.get(_DATA_KEY, b"").decode() or None,
    )


def _metadata(origin: PredictionsOrigin) -> dict[bytes, bytes]:
    metadata = {_VERSION_KEY: _VERSION}
    if origin.step is not None:
        metadata[_STEP_KEY] = str(origin.step).encode()
    if origin.dataset_fingerprint is not None:
        metadata[_DATA_KEY] = origin.dataset_fingerprint.encode()
    return metadata


def _schema(data: bytes, where: str) -> pa.Schema:
    """The schema, after a check that it is that of predictions; all faults at once."""
    try:
        schema = pq.read_schema(pa.BufferReader(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{where}: {len(data):,} bytes that are no whole Parquet file ({error}); {_EXPECTED}: "
            "write it anew"
        ) from error
    faults = [
        f"column {name}: expected {type_}, " + (f"got {found}" if found else "there is none")
        for name, type_ in _TYPES.items()
        if (found := _type_of(schema, name)) != type_
    ]
    box = _type_of(schema, "bbox")
    sizes = [pa.list_(pa.float64(), size) for size in (4, 5)]
    if box not in sizes:
        got = f"got {box}" if box else "there is none"
        faults.append(f"column bbox: expected {sizes[0]}, or {sizes[1]} for rotated boxes, {got}")
    version = (schema.metadata or {}).get(_VERSION_KEY, _VERSION)
    if version != _VERSION:
        faults.append(f"format {version.decode(errors='replace')}: this version reads 1")
    if faults:
        raise ValueError("\n".join(f"{where}: {fault}" for fault in (*faults, _EXPECTED)))
    return schema


def _type_of(schema: pa.Schema, name: str) -> pa.DataType | None:
    return schema.field(name).type if schema.names.count(name) == 1 else None


def _read(data: bytes, where: str) -> pa.Table:
    _schema(data, where)
    try:
        table = pq.read_table(
            pa.BufferReader(data), columns=[*_TYPES, "bbox"], page_checksum_verification=True
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{where}: damaged ({error}); write it anew") from error
    empty = [name for name in table.column_names if table[name].null_count]
    if empty:
        raise ValueError(f"{where}: columns with missing values: {', '.join(empty)}")
    return table
