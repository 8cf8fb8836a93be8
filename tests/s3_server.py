"""A real S3-compatible server on loopback, and a line to it that can be cut.

The server is moto's, in a process of its own. It keeps its objects in memory, so an outage is made
without ending it: the line refuses connections and breaks the open ones, or everything hangs.
"""

import contextlib
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import pyarrow.fs as pafs
import pytest

BUCKET = "bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
_PIECE = 2**20
_REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) ")


class S3Server:
    """The server behind its line; a context manager, in which this process is told of it.

    Attributes:
        environment: what another process needs to reach it; here it is set.
    """

    def __init__(self):
        self._inner = _free_port()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._inner)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._open = threading.Event()
        self._open.set()
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._pairs = set()
        self._lock = threading.Lock()
        self._seen = []
        threading.Thread(target=self._serve, daemon=True).start()
        self.environment = {
            **KEYS,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def __enter__(self):
        _wait_for_port(self._inner, self._process)
        self.filesystem = pafs.S3FileSystem(
            access_key=KEYS["AWS_ACCESS_KEY_ID"],
            secret_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region="us-east-1",
            scheme="http",
            endpoint_override=f"127.0.0.1:{self._inner}",  # past the line: the test sees all
            allow_bucket_creation=True,
        )
        self.filesystem.create_dir(BUCKET)
        self._patch = pytest.MonkeyPatch()
        for name, value in self.environment.items():
            self._patch.setenv(name, value)
        return self

    def __exit__(self, *error):
        self._patch.undo()
        self._closed = True
        self._break()
        self._listener.close()
        self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()

    def uri(self, path):
        return f"s3://{BUCKET}/{path}"

    def files(self, path=""):
        """Names and sizes of what is there, seen past the line."""
        selector = pafs.FileSelector(
            f"{BUCKET}/{path}".rstrip("/"), recursive=True, allow_not_found=True
        )
        infos = [i for i in self.filesystem.get_file_info(selector) if i.is_file]
        return {i.path.removeprefix(f"{BUCKET}/"): i.size for i in infos}

    def put_folder(self, folder, path):
        """Copy a local folder, past the line."""
        pafs.copy_files(str(folder), f"{BUCKET}/{path}", destination_filesystem=self.filesystem)

    def refuse(self):
        """Connections are refused, and those that are open break off."""
        self._open.clear()
        self._listener.close()
        self._break()

    def hang(self):
        """Nothing comes back any more: neither an answer nor an error."""
        self._process.send_signal(signal.SIGSTOP)

    def restore(self):
        """All is well again, at the same address."""
        self._process.send_signal(signal.SIGCONT)
        if not self._open.is_set():
            self._listener = _listen(self.port)
            self._open.set()

    @contextlib.contextmanager
    def outage(self, kind):
        {"refused": self.refuse, "hanging": self.hang}[kind]()
        try:
            yield
        finally:
            self.restore()

    def cut_for(self, seconds, kind):
        """An outage that ends by itself; join the thread to wait for its end."""
        {"refused": self.refuse, "hanging": self.hang}[kind]()
        thread = threading.Timer(seconds, self.restore)
        thread.start()
        return thread

    def cut_at(self, pattern, seconds, kind, *, number=1):
        """The same, at the next request (or so many) whose first line matches; returns at once."""
        start = len(self._seen)

        def cut():
            end = time.monotonic() + 120
            while sum(bool(re.match(pattern, line)) for line in self._seen[start:]) < number:
                assert time.monotonic() < end, "what was to be cut did not come"
                time.sleep(0.005)
            self.cut_for(seconds, kind).join()

        thread = threading.Thread(target=cut, daemon=True)
        thread.start()
        return thread

    def _serve(self):
        while not self._closed:
            self._open.wait()
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._inner))
            except OSError:
                time.sleep(0.01)
                continue
            if not self._open.is_set():
                client.close()
                server.close()
                continue
            with self._lock:
                self._pairs.add((client, server))
            threading.Thread(target=self._pump, args=(client, server), daemon=True).start()

    def _pump(self, client, server):
        other = {client: server, server: client}
        with contextlib.suppress(OSError, ValueError):
            while True:
                for end in select.select([client, server], [], [])[0]:
                    piece = end.recv(_PIECE)
                    if not piece:
                        raise OSError("closed")
                    if end is client and _REQUEST.match(piece):
                        self._seen.append(piece.partition(b"\r\n")[0].decode())
                    other[end].sendall(piece)
        with self._lock:
            self._pairs.discard((client, server))
        client.close()
        server.close()

    def _break(self):
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


def _listen(port):
    return socket.create_server(("127.0.0.1", port))


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _wait_for_port(port, process, seconds=60):
    end = time.monotonic() + seconds
    while True:
        assert process.poll() is None, "moto's server ended: is moto[server] installed?"
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        assert time.monotonic() < end, f"moto's server does not listen after {seconds} s"
        time.sleep(0.05)
