"""Prepared data sets: Parquet shards beside a `dataset.json`, written, checked and read."""
