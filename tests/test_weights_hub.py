import contextlib
import hashlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from typing import ClassVar

import pytest
from huggingface_hub import constants

from vitreous.errors import InputError
from vitreous.weights.hub import fetch

CONTENT = {"config.json": b'{"a": 1}', "model.safetensors": b"weights"}


class FakeHub(http.server.BaseHTTPRequestHandler):
    """One model, me/flowers, with the headers by which the Hub names revisions and contents."""

    asked: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.asked.append(self.path)
        content = CONTENT.get(self.path.rpartition("/")[2]) if self.path.startswith("/me/flowers/resolve/") else None
        known = content is not None or self.path == "/"
        self.send_response(200 if known else 404)
        if not known:
            entry = self.path.startswith("/me/flowers/")
            self.send_header("X-Error-Code", "EntryNotFound" if entry else "RepoNotFound")
        self.send_header("ETag", f'"{hashlib.sha1(content or b"").hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if self.command == "GET" and content:
            self.wfile.write(content)

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


@pytest.fixture
def fake_hub():
    FakeHub.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def at(tmp_path, monkeypatch):
    """Point the client to an endpoint, with empty caches."""
    monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path / "ours"))
    monkeypatch.delenv("VITREOUS_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def point(endpoint: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )

    return point


@pytest.fixture
def closed_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_a_model_is_downloaded_once(fake_hub, at):
    at(fake_hub)
    said: list[str] = []
    folder = fetch("me/flowers", progress=said.append)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == CONTENT
    assert said == [f"downloading me/flowers from {fake_hub}"]
    requests = len(FakeHub.asked)
    assert fetch("me/flowers", progress=said.append) == folder
    assert (len(FakeHub.asked), len(said)) == (requests, 1)


def test_a_model_put_there_by_hand_needs_no_network(tmp_path, at, closed_port):
    at(closed_port)
    folder = tmp_path / "ours" / "me" / "flowers"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    assert fetch("me/flowers") == folder


def test_without_a_network_the_answer_comes_at_once_and_says_where_to_put_the_files(tmp_path, closed_port):
    code = "from vitreous.weights.hub import fetch; fetch('me/flowers')"
    environment = {
        **os.environ,
        "HF_ENDPOINT": closed_port,
        "VITREOUS_CACHE": str(tmp_path),
        "HF_HOME": str(tmp_path),
    }
    environment.pop("HF_HUB_OFFLINE", None)
    start = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"vitreous.errors.InputError: cannot reach the Hub at {closed_port} for me/flowers")
    assert f"put config.json and model.safetensors in {tmp_path / 'me' / 'flowers'}" in last
    assert time.monotonic() - start < 8  # 23 s by the client's own retries; most of this is the import of torch


def test_without_a_network_nothing_is_tried_twice(at, closed_port):
    at(closed_port)
    start = time.monotonic()
    with pytest.raises(InputError, match="cannot reach the Hub"):
        fetch("me/flowers")
    assert time.monotonic() - start < 2


def test_offline_mode_asks_nobody(fake_hub, at, monkeypatch):
    at(fake_hub)
    monkeypatch.setenv("VITREOUS_OFFLINE", "1")
    with pytest.raises(InputError, match="offline mode is on"):
        fetch("me/flowers")
    monkeypatch.delenv("VITREOUS_OFFLINE")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="offline mode is on"):
        fetch("me/flowers")
    assert FakeHub.asked == []


def test_a_model_the_hub_does_not_have_is_said_to_be_absent(fake_hub, at):
    at(fake_hub)
    with pytest.raises(InputError, match="the Hub has no model me/roses"):
        fetch("me/roses")


def test_a_model_without_safetensors_is_refused(fake_hub, at, monkeypatch):
    at(fake_hub)
    monkeypatch.delitem(CONTENT, "model.safetensors")
    with pytest.raises(InputError, match="lacks"):
        fetch("me/flowers")


@pytest.mark.parametrize("name", ["flowers", "me/", "a/b/c", "../secret", "me/.."])
def test_a_name_that_is_no_repository_is_refused(name, at, closed_port):
    at(closed_port)
    with pytest.raises(InputError, match="give hub:OWNER/NAME"):
        fetch(name)
