"""Readers of annotations, one for each format, and `writing`, which makes shards of what they read.

What may be wrong with the data is in `box_checks`, what an import may be told in `options`.
"""
