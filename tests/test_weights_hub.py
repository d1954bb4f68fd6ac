import contextlib
import errno
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import pytest
from huggingface_hub import constants, file_download

from vitreous.errors import InputError
from vitreous.weights.hub import fetch, weights_in

CONTENT = {"config.json": b'{"a": 1}', "model.safetensors": b"weights"}
INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
SHARDED = {
    "config.json": b"{}",
    "model.safetensors.index.json": INDEX.encode(),
    "model-00001-of-00002.safetensors": b"first",
    "model-00002-of-00002.safetensors": b"second",
}
OLD, NEW = "0" * 40, "1" * 40


@dataclass
class Hub:
    """One model, me/flowers, with its history; what was asked for it; and what goes wrong."""

    url: str = ""
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {OLD: {"README.md": b""}, NEW: dict(CONTENT)})
    refs: dict[str, str] = field(default_factory=lambda: {"main": NEW})
    asked: list[str] = field(default_factory=list)
    gated: bool = False
    served: dict[str, bytes] = field(default_factory=dict)
    """By sha256: other bytes than those of that sum."""
    cuts: list[int] = field(default_factory=list)
    """After how many bytes the next answers break off."""

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[NEW]

    def offers(self, files: dict[str, bytes]) -> None:
        self.commits[NEW] = dict(files)

    def large(self) -> dict[str, bytes]:
        every = [data for files in self.commits.values() for name, data in files.items() if is_large(name)]
        return {hashlib.sha256(data).hexdigest(): data for data in every}


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".npz"))


class Answers(http.server.BaseHTTPRequestHandler):
    """The Hub's pages that its client asks, with the headers by which it names revisions and contents."""

    def do_HEAD(self):
        hub: Hub = self.server.hub
        path = self.path.partition("?")[0]
        hub.asked.append(f"{self.command} {path}" + (f" {r}" if (r := self.headers["Range"]) else ""))
        known = "/me/flowers"
        if path == "/":
            self.answer(b"")
        elif path.startswith("/cdn/"):
            sha256 = path.removeprefix("/cdn/")
            self.content(hub.served.get(sha256, hub.large()[sha256]))
        elif path.startswith(f"/api/models{known}/revision/"):
            if (commit := self.commit(path.rpartition("/")[2])) is not None:
                self.answer(json.dumps(self.info(commit)).encode())
        elif path.startswith(f"{known}/resolve/"):
            revision, _, name = path.removeprefix(f"{known}/resolve/").partition("/")
            if (commit := self.commit(revision)) is not None:
                self.file(commit, name)
        else:
            self.refuse(404, "RepoNotFound")

    do_GET = do_HEAD

    def commit(self, revision):
        hub: Hub = self.server.hub
        revision = revision.replace("%2F", "/")
        commit = hub.refs.get(revision, revision)
        if commit in hub.commits:
            return commit
        self.refuse(404, "RevisionNotFound")

    def info(self, commit):
        def entry(name, data):
            lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            return {"rfilename": name, "size": len(data), **({"lfs": lfs} if is_large(name) else {})}

        files = self.server.hub.commits[commit]
        return {"id": "me/flowers", "sha": commit, "siblings": [entry(*item) for item in files.items()]}

    def file(self, commit, name):
        hub: Hub = self.server.hub
        headers = {"X-Repo-Commit": commit}
        data = hub.commits[commit].get(name)
        if hub.gated:
            self.refuse(403, "GatedRepo", headers)
        elif data is None:
            self.refuse(404, "EntryNotFound", headers)
        elif is_large(name):  # stored elsewhere, as the Hub's large files are
            sha256 = hashlib.sha256(data).hexdigest()
            headers |= {"X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
            headers["Location"] = f"{hub.url.replace('127.0.0.1', 'localhost')}/cdn/{sha256}"
            self.answer(b"", status=302, headers=headers)
        else:
            self.answer(data, headers={**headers, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    def content(self, data):
        hub: Hub = self.server.hub
        start = int((self.headers["Range"] or "bytes=0-")[len("bytes=") : -1])
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        end = start + hub.cuts.pop(0) if hub.cuts and self.command == "GET" else None
        self.answer(data[start:], status=206 if start else 200, headers=headers, sent=data[start:end])

    def refuse(self, status, code, headers=None):
        self.answer(b"", status=status, headers={"X-Error-Code": code, **(headers or {})})

    def answer(self, data, *, status=200, headers=None, sent=None):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data if sent is None else sent)

    def log_message(self, *_):
        pass


@pytest.fixture
def fake_hub():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.hub = Hub(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.hub
        server.shutdown()
        thread.join()


@pytest.fixture
def at(tmp_path, monkeypatch):
    """Point the client to an endpoint, with empty caches."""
    monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path / "ours"))
    monkeypatch.delenv("VITREOUS_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def point(endpoint: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )

    return point


@pytest.fixture
def hub(fake_hub, at) -> Hub:
    """The Hub that the client is pointed to."""
    at(fake_hub.url)
    return fake_hub


@pytest.fixture
def closed_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_model_is_downloaded_once(hub):
    said: list[str] = []
    folder = fetch("me/flowers", progress=said.append)
    assert content(folder) == CONTENT
    assert said == [f"downloading me/flowers from {hub.url}"]
    requests = len(hub.asked)
    assert fetch("me/flowers", progress=said.append) == folder
    assert (len(hub.asked), len(said)) == (requests, 1)


@pytest.mark.parametrize(
    ("files", "taken", "weights"),
    [
        ({**CONTENT, "pytorch_model.bin": b"w", "README.md": b""}, CONTENT, "model.safetensors"),
        ({**SHARDED, "pytorch_model.bin": b"w"}, SHARDED, "model.safetensors.index.json"),
        ({"pytorch_model.bin": b"w", "a.npz": b"n"}, {"pytorch_model.bin": b"w"}, "pytorch_model.bin"),
        ({"a.npz": b"n", "more/b.npz": b"n"}, {"a.npz": b"n"}, "a.npz"),
        ({**CONTENT, "preprocessor_config.json": b"{}"},) * 2 + ("model.safetensors",),
    ],
)
def test_the_best_weights_and_their_configs_come_and_nothing_else(files, taken, weights, hub):
    hub.offers(files)
    folder = fetch("me/flowers")
    assert content(folder) == taken
    assert weights_in(folder) == folder / weights
    requests = len(hub.asked)
    assert fetch("me/flowers") == folder
    assert len(hub.asked) == requests


def test_the_list_of_files_is_asked_once(hub):
    hub.offers(SHARDED)
    fetch("me/flowers")
    assert sum("/api/" in asked for asked in hub.asked) == 1


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub):
    hub.commits[OLD] = {**CONTENT, "model.safetensors": b"older"}
    hub.refs |= {"v1": OLD, "refs/pr/1": OLD}
    old = fetch(f"me/flowers@{OLD}")
    assert content(old)["model.safetensors"] == b"older"
    assert fetch("me/flowers@v1") == fetch("me/flowers@refs/pr/1") == old
    assert content(fetch("me/flowers"))["model.safetensors"] == b"weights"
    requests = len(hub.asked)
    assert fetch("me/flowers@v1") == fetch(f"me/flowers@{OLD}") == old
    assert len(hub.asked) == requests


def test_a_revision_the_model_does_not_have_is_named(hub):
    with pytest.raises(InputError, match="me/flowers has no revision 'v2'; give a branch, tag or commit"):
        fetch("me/flowers@v2")


def test_a_model_put_there_by_hand_needs_no_network(tmp_path, at, closed_port):
    at(closed_port)
    for name, file in (("flowers", "model.safetensors"), ("flowers@v1", "pytorch_model.bin")):
        folder = tmp_path / "ours" / "me" / name
        folder.mkdir(parents=True)
        (folder / file).write_bytes(b"weights")
        assert fetch(f"me/{name}") == folder


def test_weights_with_a_shard_missing_are_not_whole(tmp_path):
    for name, data in SHARDED.items():
        assert weights_in(tmp_path) is None
        (tmp_path / name).write_bytes(data)
    assert weights_in(tmp_path) == tmp_path / "model.safetensors.index.json"


@pytest.mark.parametrize(
    "index", [b"", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": {"a": "../b"}}', b'{"weight_map": {"a": 1}}']
)
def test_an_index_that_names_no_shards_is_refused(index, hub):
    hub.offers({"model.safetensors.index.json": index})
    with pytest.raises(InputError, match=r"index\.json (is no index of shards|names no files beside it); delete it"):
        fetch("me/flowers")


def test_a_shard_the_hub_lacks_is_an_error(hub):
    hub.offers({name: data for name, data in SHARDED.items() if "00002-of" not in name})
    with pytest.raises(InputError, match=r"me/flowers lacks files that its index names; put config\.json and"):
        fetch("me/flowers")


def test_a_download_that_broke_off_goes_on_from_there(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    hub.files["model.safetensors"] = os.urandom(10_000)
    hub.cuts = [4000, 3000]
    for _ in range(3):  # huggingface_hub 2 goes on by itself, 1.0 in the next call
        with contextlib.suppress(InputError):
            fetch("me/flowers")
    assert content(fetch("me/flowers")) == hub.files
    gets = [asked for asked in hub.asked if asked.startswith("GET /cdn/")]
    assert [asked.split()[2:] for asked in gets] == [[], ["bytes=4000-"], ["bytes=7000-"]]


def test_a_connection_that_breaks_again_and_again_is_an_error_and_leaves_no_weights(hub, monkeypatch):
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    hub.cuts = [3] * 100
    with pytest.raises(InputError, match=r"the Hub did not deliver me/flowers \(.+\); put config\.json and") as error:
        fetch("me/flowers")
    assert "\n" not in str(error.value)
    hub.cuts = []
    assert content(fetch("me/flowers")) == CONTENT


def test_bytes_with_another_sum_than_the_hub_says_are_not_kept(hub, tmp_path):
    right = hashlib.sha256(b"weights").hexdigest()
    hub.served[right] = b"weighty"
    wrong = hashlib.sha256(b"weighty").hexdigest()
    message = rf"model\.safetensors came with the sha256 {wrong}, not {right}, and was not kept; fetch it again"
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            fetch("me/flowers")
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"weighty"]
    hub.served.clear()
    assert content(fetch("me/flowers")) == CONTENT


def test_a_full_disk_says_where_to_make_room(hub, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(InputError, match=rf"cannot write to {tmp_path}/hub \(No space left on device\); make room"):
        fetch("me/flowers")


def cached_by_another_tool(hub, at):
    """config.json and the weights, without a word on what else there might be."""
    for name in CONTENT:
        file_download.hf_hub_download("me/flowers", name)
    hub.asked.clear()


def test_what_another_tool_left_incomplete_is_completed(hub, at):
    hub.files["preprocessor_config.json"] = b"{}"
    cached_by_another_tool(hub, at)
    assert content(fetch("me/flowers")) == hub.files
    assert not [asked for asked in hub.asked if asked.startswith("GET /cdn/")]


def test_what_another_tool_left_serves_without_a_network(hub, at, closed_port, monkeypatch):
    cached_by_another_tool(hub, at)
    at(closed_port)
    assert content(fetch("me/flowers")) == CONTENT
    monkeypatch.setenv("VITREOUS_OFFLINE", "1")
    assert content(fetch("me/flowers")) == CONTENT
    assert hub.asked == []


def test_without_a_network_the_answer_comes_at_once_and_says_where_to_put_the_files(tmp_path, closed_port):
    code = """
import time
from vitreous.weights.hub import fetch
start = time.monotonic()
try:
    fetch("me/flowers")
finally:
    print(time.monotonic() - start)
"""
    environment = {
        **os.environ,
        "HF_ENDPOINT": closed_port,
        "VITREOUS_CACHE": str(tmp_path),
        "HF_HOME": str(tmp_path),
    }
    environment.pop("HF_HUB_OFFLINE", None)
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"vitreous.errors.InputError: cannot reach the Hub at {closed_port} for me/flowers")
    assert f"put config.json and model.safetensors in {tmp_path / 'me' / 'flowers'}" in last
    assert float(result.stdout) < 20  # 23 s more by the client's own retries


def test_without_a_network_nothing_is_tried_twice(at, closed_port):
    at(closed_port)
    start = time.monotonic()
    with pytest.raises(InputError, match="cannot reach the Hub"):
        fetch("me/flowers")
    assert time.monotonic() - start < 2


def test_offline_mode_asks_nobody(hub, monkeypatch):
    monkeypatch.setenv("VITREOUS_OFFLINE", "1")
    with pytest.raises(InputError, match="offline mode is on"):
        fetch("me/flowers")
    monkeypatch.delenv("VITREOUS_OFFLINE")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="offline mode is on"):
        fetch("me/flowers")
    assert hub.asked == []


def test_a_model_the_hub_does_not_have_is_said_to_be_absent(hub):
    with pytest.raises(InputError, match="the Hub has no model me/roses"):
        fetch("me/roses")


def test_a_model_that_asks_for_consent_says_how_to_give_it(hub):
    hub.gated = True
    with pytest.raises(InputError, match="me/flowers asks for consent: accept its terms on the Hub and set HF_TOKEN"):
        fetch("me/flowers")


def test_a_model_without_weights_is_refused(hub):
    del hub.files["model.safetensors"]
    with pytest.raises(InputError, match=r"me/flowers lacks weights \(model\.safetensors, .*or a single \.npz\)"):
        fetch("me/flowers")


def test_a_model_with_several_arrays_leaves_the_choice(hub):
    hub.offers({"b.npz": b"", "a.npz": b""})
    with pytest.raises(InputError, match=r"has several weights \(a\.npz, b\.npz\); download the right one"):
        fetch("me/flowers")


@pytest.mark.parametrize(
    "name",
    ["flowers", "me/", "a/b/c", "../secret", "me/..", "me/flowers@", "me/flowers@/x", "me/flowers@../x", "a/b c"],
)
def test_a_name_that_is_no_repository_is_refused(name, at, closed_port):
    at(closed_port)
    with pytest.raises(InputError, match="give hub:OWNER/NAME"):
        fetch(name)
