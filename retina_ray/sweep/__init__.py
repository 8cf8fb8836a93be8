"""Sweeps over configurations with Ray Tune."""
