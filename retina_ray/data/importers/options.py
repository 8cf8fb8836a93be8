"""What an import may be told, whatever the format: one definition for the API and the command line.

`retina_ray.cli.data.import_options` makes the options of `retina-ray data import` of it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from retina_ray.config.base import Section
from retina_ray.data.images.files import MAX_PIXELS

BadBoxPolicy = Literal["error", "drop", "clip"]
BadImagePolicy = Literal["error", "drop"]


class ImportOptions(Section):
    """How annotations and image files become a prepared set.

    Raises:
        ConfigError: values that cannot be, each with its name; all at once.
    """

    name: str | None = Field(default=None, min_length=1)
    """Name of the data set; by default that of its format."""
    on_bad_box: BadBoxPolicy = "error"
    """Boxes that cannot be used."""
    on_bad_image: BadImagePolicy = "error"
    """Images that cannot be used."""
    max_size_px: int | None = Field(default=None, ge=1, strict=True)
    """Shrink the longer side to this many pixels; boxes and areas with it."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, strict=True)
    """Images of more pixels by their header are not decoded."""
    rows_per_group: int = Field(default=32, ge=1, strict=True)
    """Images of a row group."""
    rows_per_shard: int = Field(default=2048, ge=1, strict=True)
    """Images of a file."""
    num_workers: int | None = Field(default=None, ge=0, strict=True)
    """Ray tasks that write at once; 0: this process alone; by default Ray for large sets only."""
    overwrite: bool = Field(default=False, strict=True)
    """Replace what is there, once the new set is whole."""
