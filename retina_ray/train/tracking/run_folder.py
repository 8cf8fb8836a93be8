"""The local folder of a run's records: metrics, pictures, W&B's files, images that are no images.

W&B and the metrics file need a local folder. That of a remote run is a copy in the making: what a
run goes on from is fetched when it starts, and all of it is brought up with every checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

from retina_ray.storage.files import copy_down, copy_up, write_bytes, write_text
from retina_ray.storage.uris import is_uri, join_uri
from retina_ray.train.run_files import BAD_IMAGES, METRICS

CONTINUED = (METRICS, BAD_IMAGES)
"""What a run continues that goes on on another machine."""


class RunFolder:
    """The records of the run at a place, for the one process that writes them."""

    def __init__(self, run_uri: str) -> None:
        """Open the folder of the run at `run_uri`; a remote one's records are fetched."""
        self._uri = run_uri
        self._is_remote = is_uri(run_uri)
        if not self._is_remote:
            self.path = Path(run_uri)
            return
        self.path = Path(tempfile.mkdtemp(prefix="retina_ray_run_"))
        for name in CONTINUED:
            copy_down(join_uri(run_uri, name), self.path / name)

    def note_bad_images(self, new: dict[str, str]) -> None:
        """Add images and the reasons why they could not be decoded to `bad_images.json`."""
        path = self.path / BAD_IMAGES
        known: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(path.read_text())
        write_text(str(path), json.dumps({**known, **new}, indent=1))

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the run whole, where the run lies."""
        write_bytes(join_uri(self._uri, name), content)

    def upload(self, *, all_files: bool) -> None:
        """Bring the files to a remote run; another thread may go on writing them.

        Without `all_files`, only what a run goes on from.
        """
        if not self._is_remote:
            return
        for name in CONTINUED:
            with contextlib.suppress(FileNotFoundError):
                self.write(name, (self.path / name).read_bytes())
        if all_files:
            with contextlib.suppress(FileNotFoundError):  # W&B took one away: the next time, then
                copy_up(self.path, self._uri)

    def close(self) -> None:
        """Bring all files to a remote run, and remove the local copy."""
        self.upload(all_files=True)
        if self._is_remote:
            shutil.rmtree(self.path, ignore_errors=True)
