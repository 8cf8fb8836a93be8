"""Remote storage that is waited for: whatever is asked of it is asked again where it fails.

`pyarrow`'s own retry strategies count attempts and know S3 only, cannot be interrupted and say
nothing; a file that was being written when the connection broke is lost. So each remote file system
is wrapped here into one that is waited for as any other (`retina_ray.storage.retry`):

- a file that is read is opened again and read on where it broke off;
- a file that is written is gathered first and then sent as a whole, again from its start where that
  fails, so that a reader sees all of it or none.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from retina_ray.storage.retry import StorageRetry

T = TypeVar("T")

_REQUEST_TIMEOUT_S = 10.0
"""A request on which nothing moves for so long is given up, and made again."""
_CONNECT_TIMEOUT_S = 5.0
_MEMORY_BYTES = 64 * 2**20
"""A file that is written is gathered in memory up to this size, then on the disk."""
_CHUNK_BYTES = 16 * 2**20

_RETRIES: dict[str, StorageRetry] = {}
_RETRIES_LOCK = threading.Lock()


def with_retries(filesystem: pafs.FileSystem, *, scheme: str, bucket: str) -> pafs.FileSystem:
    """Wrap a file system into one that waits for its storage; a local one stays as it is.

    Args:
        filesystem: the wrapped one has the same paths, and is picklable where this one is.
        scheme: of its URIs, for messages.
        bucket: or whatever comes first in its paths: one of them may be gone, another not.
    """
    if isinstance(filesystem, pafs.LocalFileSystem):
        return filesystem
    return pafs.PyFileSystem(_RetryingHandler(filesystem, scheme, bucket))


def _asked_once(filesystem: pafs.S3FileSystem) -> pafs.S3FileSystem:
    """The same file system, without the retries of the AWS client, which cannot be interrupted."""
    # There is no public way to the options that `from_uri` found but how the object is pickled.
    options = dict(filesystem.__reduce__()[1][0])
    for name, limit_s in (
        ("connect_timeout", _CONNECT_TIMEOUT_S),
        ("request_timeout", _REQUEST_TIMEOUT_S),
    ):
        if (options.get(name) or -1) <= 0:
            options[name] = limit_s
    strategy = pafs.AwsStandardS3RetryStrategy(max_attempts=1)
    return pafs.S3FileSystem(**{**options, "retry_strategy": strategy})


def _retry_of(filesystem: pafs.FileSystem, place: str) -> StorageRetry:
    """The retries of a storage, one object in each process."""
    endpoint = ""
    if isinstance(filesystem, pafs.S3FileSystem):
        endpoint = filesystem.__reduce__()[1][0].get("endpoint_override") or ""
    with _RETRIES_LOCK:
        return _RETRIES.setdefault(f"{endpoint} {place}", StorageRetry(place))


class _RetryingHandler(pafs.FileSystemHandler):
    """Passes everything on to a file system, again where it fails."""

    def __init__(self, filesystem: pafs.FileSystem, scheme: str, bucket: str) -> None:
        if isinstance(filesystem, pafs.S3FileSystem):
            filesystem = _asked_once(filesystem)
        self._filesystem, self._scheme, self._bucket = filesystem, scheme, bucket
        self._retry = _retry_of(filesystem, f"{scheme}://{bucket}")

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled S3 file system comes back with the AWS client's retries: `__init__` drops them.
        return _RetryingHandler, (self._filesystem, self._scheme, self._bucket)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _RetryingHandler):
            return self._filesystem == other._filesystem
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def _ask(self, path: str, function: Callable[..., T], *args: Any, **options: Any) -> T:
        call = partial(function, *args, **options)
        return self._retry.call(call, f"{self._scheme}://{path}")

    def get_type_name(self) -> str:
        return f"retrying+{self._filesystem.type_name}"

    def normalize_path(self, path: str) -> str:
        return self._filesystem.normalize_path(path)

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        first = paths[0] if paths else self._bucket
        return self._ask(first, self._filesystem.get_file_info, paths)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return self._ask(selector.base_dir, self._filesystem.get_file_info, selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self._ask(path, self._filesystem.create_dir, path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._delete(self._filesystem.delete_dir, path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        delete = self._filesystem.delete_dir_contents
        self._ask(path, delete, path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        self._ask(self._bucket, self._filesystem.delete_dir_contents, "", accept_root_dir=True)

    def delete_file(self, path: str) -> None:
        self._delete(self._filesystem.delete_file, path)

    def _delete(self, delete: Callable[[str], None], path: str) -> None:
        """Delete; where an attempt succeeded and its answer was lost, the next finds nothing."""
        attempts = 0

        def attempt() -> None:
            nonlocal attempts
            attempts += 1
            try:
                delete(path)
            except FileNotFoundError:
                if attempts == 1:
                    raise

        self._ask(path, attempt)

    def move(self, src: str, dest: str) -> None:
        self._ask(src, self._filesystem.move, src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self._ask(src, self._filesystem.copy_file, src, dest)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        open_ = partial(self._filesystem.open_input_file, path)
        return pa.PythonFile(_Reader(open_, partial(self._ask, path)), mode="r")

    def open_output_stream(self, path: str, metadata: dict[str, str] | None) -> pa.NativeFile:
        open_ = partial(self._filesystem.open_output_stream, path, metadata=metadata or None)
        return pa.PythonFile(_Writer(open_, partial(self._ask, path)), mode="w")

    def open_append_stream(self, path: str, metadata: dict[str, str] | None) -> pa.NativeFile:
        # Appending twice is not appending once: it is left to the storage.
        return self._filesystem.open_append_stream(path, metadata=metadata or None)


class _Reader:
    """A file that is opened again where reading fails, as `pyarrow.PythonFile` wants it."""

    def __init__(self, open_: Callable[[], pa.NativeFile], ask: Callable[..., Any]) -> None:
        self._open, self._ask = open_, ask
        self._file: pa.NativeFile | None = None
        self._position = 0
        self._size: int | None = None
        self.closed = False
        ask(self._opened)

    def _opened(self) -> pa.NativeFile:
        if self._file is None:
            file = self._open()
            size = file.size()
            if self._size is not None and size != self._size:
                raise FileNotFoundError(
                    f"the file had {self._size} bytes, and has {size} now: it was replaced while "
                    "it was being read"
                )
            self._file, self._size = file, size
        return self._file

    def _read(self, num_bytes: int) -> pa.Buffer:
        try:
            file = self._opened()
            file.seek(self._position)
            return file.read_buffer(num_bytes)
        except OSError:
            self._file = None
            raise

    def read_buffer(self, num_bytes: int | None = None) -> pa.Buffer:
        left = max(0, (self._size or 0) - self._position)
        wanted = left if num_bytes is None or num_bytes < 0 else min(num_bytes, left)
        buffer: pa.Buffer = self._ask(self._read, wanted)
        self._position += buffer.size
        return buffer

    def read(self, num_bytes: int | None = None) -> bytes:
        return self.read_buffer(num_bytes).to_pybytes()

    def seek(self, offset: int, whence: int = 0) -> int:
        start = (0, self._position, self._size or 0)[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._file, self.closed = None, True


class _Writer:
    """A file that is sent when it is closed, as `pyarrow.PythonFile` wants it."""

    def __init__(self, open_: Callable[[], pa.NativeFile], ask: Callable[..., Any]) -> None:
        self._open, self._ask = open_, ask
        self._content = tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES)
        self.closed = False

    def write(self, data: Any) -> int:
        return self._content.write(data)

    def tell(self) -> int:
        return self._content.tell()

    def flush(self) -> None:
        """Nothing is sent before all is there."""

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        with self._content:
            self._ask(self._send)

    def _send(self) -> None:
        self._content.seek(0)
        with self._open() as sink:
            shutil.copyfileobj(self._content, sink, _CHUNK_BYTES)
