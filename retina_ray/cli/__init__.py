"""The command `retina-ray`, and what the scripts of `experiments/` share."""

from retina_ray.cli.scripts import (
    FAILED,
    INTERRUPTED,
    TERMINATED,
    USER_FAULT,
    clean_exit,
    load_config,
    named,
    run_name,
    say,
    storage_uri,
)

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "TERMINATED",
    "USER_FAULT",
    "clean_exit",
    "load_config",
    "named",
    "run_name",
    "say",
    "storage_uri",
]
