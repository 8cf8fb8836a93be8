"""Where the numbers and pictures of a run go: a local folder always, other places beside it."""

from retina_ray.train.tracking.tracker import Status, Tracker, open_tracker

__all__ = ["Status", "Tracker", "open_tracker"]
