"""Train RetinaNet detectors, and experiment with them at scale, on Ray."""

__version__ = "0.1.0"
