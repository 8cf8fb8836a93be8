"""Checkpoints of runs: what they hold, where they lie, which of them count, and how they load."""
