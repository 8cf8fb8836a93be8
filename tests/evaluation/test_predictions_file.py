"""Predictions come back from their file as they were, and other files are refused."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retina_ray.evaluation.predictions_file import (
    PredictionsOrigin,
    predictions_from_parquet,
    predictions_origin,
    predictions_to_parquet,
)


def results_of(number, *, size=4, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "image_id": int(rng.integers(2**40)),
            "category_id": int(rng.integers(1, 91)),
            "bbox": rng.uniform(-5, 700, size).tolist(),
            "score": float(np.float32(rng.random())),
        }
        for _ in range(number)
    ]


def parquet(**columns):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


@pytest.mark.parametrize("size", [4, 5])
def test_every_bit_and_the_order_come_back(size):
    results = results_of(500, size=size)
    data = predictions_to_parquet(results)
    assert isinstance(data, bytes)
    assert predictions_from_parquet(data, "p") == results
    assert predictions_origin(data, "p") == PredictionsOrigin()


def test_no_predictions():
    data = predictions_to_parquet([], origin=PredictionsOrigin(step=0, dataset_fingerprint="f"))
    assert predictions_from_parquet(data, "p") == []
    assert predictions_origin(data, "p") == PredictionsOrigin(step=0, dataset_fingerprint="f")


def test_the_file_is_small():
    assert len(predictions_to_parquet(results_of(5000))) < 50 * 5000


@pytest.mark.parametrize(
    ("results", "fault"),
    [
        ([{"image_id": 1, "category_id": 1}], "without bbox, score"),
        ([*results_of(1), *results_of(1, size=5)], "boxes of 4, 5 numbers"),
        (results_of(1, size=3), "boxes of 3 numbers"),
    ],
)
def test_results_that_are_none_are_refused(results, fault):
    with pytest.raises(ValueError, match=fault):
        predictions_to_parquet(results)


def test_other_columns_are_refused_all_at_once():
    data = parquet(image_id=["a"], bbox=[[1.0, 2.0]], score=pa.array([1], pa.float64()))
    with pytest.raises(ValueError, match="column image_id") as error:
        predictions_from_parquet(data, "p")
    assert "column category_id: expected int64, there is none" in str(error.value)
    assert "column bbox: expected fixed_size_list" in str(error.value)
    assert "score" not in str(error.value).partition("\np: expected a file")[0]


def test_other_files_are_refused():
    whole = predictions_to_parquet(results_of(2000))
    damaged = bytearray(whole)
    for at in range(4000, 4100):
        damaged[at] ^= 0xFF
    boxes = pa.array([[1.0, 2.0, 3.0, 4.0]], pa.list_(pa.float64(), 4))
    columns = {"image_id": pa.array([None], pa.int64()), "category_id": pa.array([1], pa.int64())}
    table = pq.read_table(io.BytesIO(whole))
    table = table.replace_schema_metadata(
        {**table.schema.metadata, b"retina_ray.predictions": b"2"}
    )
    newer = io.BytesIO()
    pq.write_table(table, newer)
    for data, fault in (
        *((other, "no whole Parquet file") for other in (b"", b"[]", whole[:1000], whole[:-20])),
        (bytes(damaged), "damaged"),
        (parquet(**columns, bbox=boxes, score=[0.5]), "missing values: image_id"),
        (newer.getvalue(), "format 2"),
    ):
        with pytest.raises(ValueError, match=rf"runs/a/p: .*{fault}"):
            predictions_from_parquet(data, "runs/a/p")
