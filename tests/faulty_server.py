"""A server of a folder that misbehaves as told: it stalls, breaks off, lies and refuses."""

import http.server
import socket
import struct
import threading
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

Fault = int | str
"""What befalls one request: so many bytes come and the connection ends; or one of

- "503", "429:2", "404": that answer, with those seconds as Retry-After
- "stall", "drip", "reset", "unsized": after 1000 bytes nothing comes, a byte now and then, a reset, or the end of an
  answer that did not say how long it is
- "flip": a bit of the body is another
- "page": a page of text instead, as from a gate that wants a password
- "deaf": Range is not heeded
"""


@dataclass
class FaultyServer:
    """What it serves, what it was asked for, and what goes wrong."""

    folder: Path
    url: str = ""
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    """Of the next requests for each name."""
    always: dict[str, Fault] = field(default_factory=dict)
    """Of each request for a name that has no other fault; of all, under ""."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Name and Range of each request."""
    tags: bool = True
    slow_s: float = 0.0
    released: threading.Event = field(default_factory=threading.Event)

    def names(self) -> list[str]:
        """What was asked for, in order."""
        return [name for name, _ in self.asked]

    def fault(self, name: str) -> Fault | None:
        """What befalls the next request for `name`."""
        return self.faults[name].pop(0) if self.faults[name] else self.always.get(name, self.always.get(""))


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        it: FaultyServer = self.server.it
        name = self.path.partition("?")[0].removeprefix("/")
        it.asked.append((name, self.headers["Range"]))
        fault = it.fault(name)
        if isinstance(fault, str) and fault.partition(":")[0].isdigit():
            status, _, seconds = fault.partition(":")
            return self._say(int(status), b"no", {"Retry-After": seconds} if seconds else {})
        if fault == "page":
            return self._say(200, b"<html>who are you?</html>", {})
        if not (it.folder / name).is_file():
            return self._say(404, b"no such file", {})
        data = (it.folder / name).read_bytes()
        tag = f'"{zlib.crc32(data):08x}"' if it.tags else None
        if tag and self.headers["If-None-Match"] == tag:
            return self._say(304, b"", {"ETag": tag})
        start = int(self.headers["Range"][len("bytes=") : -1]) if self.headers["Range"] and fault != "deaf" else 0
        start = start if self.headers["If-Range"] == tag else 0
        if start >= len(data):
            return self._say(416, b"", {})
        headers = {"ETag": tag} if tag else {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        if fault == "flip":
            body = body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 1]) + body[len(body) // 2 + 1 :]
        self._head(206 if start else 200, headers, None if fault == "unsized" else len(body))
        it.released.wait(it.slow_s)
        kept = {"stall": 1000, "drip": 1000, "reset": 1000, "unsized": 1000}.get(fault, len(body))  # pyright: ignore
        self.wfile.write(body[: fault if isinstance(fault, int) else kept])
        self.wfile.flush()
        self._misbehave(fault, it)

    def _misbehave(self, fault: Fault | None, it: FaultyServer):
        if fault == "stall":
            it.released.wait(20)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        while fault == "drip" and not it.released.wait(0.05):
            self.wfile.write(b"x")

    def _say(self, status: int, body: bytes, headers: dict[str, str]):
        self._head(status, headers, len(body))
        self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str], length: int | None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_):
        pass


class _Quiet(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_):
        """Say nothing of clients that left."""


@contextmanager
def serving(folder: Path, port: int = 0) -> Iterator[FaultyServer]:
    """A server of `folder` on this machine alone."""
    with _Quiet(("127.0.0.1", port), _Answers) as server:
        server.it = it = FaultyServer(folder, f"http://127.0.0.1:{server.server_port}/")  # pyright: ignore
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield it
        finally:
            it.released.set()
            server.shutdown()
            thread.join()
