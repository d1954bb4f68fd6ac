import base64
import contextlib
import errno
import hashlib
import http.server
import io
import os
import socket
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vitreous import fetching as module
from vitreous.errors import InputError
from vitreous.weights.download import download, google

DATA = os.urandom(100_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@dataclass
class Store:
    """A server of one file, /models/a.npz; what was asked for, and what goes wrong."""

    url: str = ""
    data: bytes = DATA
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"1"'})
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range of each request."""
    faults: list[int | str] = field(default_factory=list)
    """What befalls the next requests: break off after so many bytes, "stall", or answer "503"."""
    ranges: bool = True
    sized: bool = True
    slow_s: float = 0.0
    moved_to: str = "/models/a.npz"
    released: threading.Event = field(default_factory=threading.Event)


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        store: Store = self.server.store
        store.asked.append((self.path, self.headers["Range"]))
        fault = store.faults.pop(0) if store.faults else None
        if isinstance(fault, str) and fault.isdigit():
            return self.send_error(int(fault))
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", store.moved_to)
            return self.end_headers()
        if self.path.partition("?")[0] != "/models/a.npz":
            return self.send_error(404)
        start = int(self.headers["Range"][len("bytes=") : -1]) if store.ranges and self.headers["Range"] else 0
        if self.headers["If-Range"] not in (store.headers.get("ETag"), store.headers.get("Last-Modified")):
            start = 0
        if start >= len(store.data):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        for name, value in store.headers.items():
            self.send_header(name, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(store.data) - 1}/{len(store.data)}")
        if store.sized:
            self.send_header("Content-Length", str(len(store.data) - start))
        self.end_headers()
        store.released.wait(store.slow_s)
        end = start + fault if isinstance(fault, int) else len(store.data)
        self.wfile.write(store.data[start : 1000 if fault == "stall" else end])
        if fault == "stall":
            store.released.wait(10)

    def log_message(self, *_):
        pass


@pytest.fixture
def store(monkeypatch):
    """The server, with caches and patience as a test needs them."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.store = store = Store(f"http://127.0.0.1:{server.server_port}/models/a.npz")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield store
        store.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path))
    for name in ("VITREOUS_OFFLINE", "HF_HUB_OFFLINE", "VITREOUS_GOOGLE_ENDPOINT", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    return tmp_path / "downloads"


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.rglob("*") if file.is_file() and not file.name.endswith(".lock")}


def broken(store: Store, *faults: int | str) -> str:
    """The words of a download that fails under these faults."""
    store.faults = list(faults)
    with pytest.raises(InputError) as error:
        download(store.url)
    store.faults = []
    store.asked.clear()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_comes_once_and_lies_where_its_address_says(store, cache):
    path = download(store.url, sha256=SHA256.upper())
    host = store.url.split("/")[2].replace(":", "_")
    assert path == cache / host / "models" / "a.npz"
    assert path.read_bytes() == DATA
    assert names(cache) == {"a.npz"}
    assert download(store.url, sha256=SHA256) == path
    assert len(store.asked) == 1


def test_a_transfer_that_breaks_off_goes_on_from_there(store):
    store.faults = [30_000, 20_000]
    said: list[str] = []
    assert download(store.url, progress=said.append).read_bytes() == DATA
    assert [asked for _, asked in store.asked] == [None, "bytes=30000-", "bytes=50000-"]
    assert said == [
        f"asking {store.url.split('/')[2]} for a.npz",
        f"downloading {store.url} (0.1 MB)",
        "the connection broke at 0.0 MB of 0.1 MB; trying again in 0 s",
        f"downloading {store.url}: the last 0.1 MB of 0.1 MB",
        "the connection broke at 0.1 MB of 0.1 MB; trying again in 0 s",
        f"downloading {store.url}: the last 0.1 MB of 0.1 MB",
    ]


def test_a_connection_that_breaks_every_time_is_given_up_and_its_bytes_serve_the_next_call(store, cache):
    words = broken(store, *[10_000] * module.ATTEMPTS)
    assert f"{store.url} did not come in 5 attempts (the connection broke at 0.1 MB of 0.1 MB)" in words
    assert f"run again to go on from 0.1 MB, or put the file at {cache}" in words
    assert "a.npz" not in names(cache)
    assert download(store.url).read_bytes() == DATA
    assert [asked for _, asked in store.asked] == ["bytes=50000-"]
    assert names(cache) == {"a.npz"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"ETag": '"1"'}, {"ETag": '"2"'}),
        ({"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, {"Last-Modified": "Tue, 02 Jan 2024 00:00:00 GMT"}),
        ({"ETag": 'W/"1"'}, {"ETag": 'W/"1"'}),
        ({}, {}),
    ],
)
def test_a_file_that_may_have_changed_starts_again(before, after, store):
    store.headers = before
    broken(store, *[10_000] * module.ATTEMPTS)
    store.headers, store.data = after, os.urandom(90_000)
    assert download(store.url).read_bytes() == store.data


def test_the_date_of_a_file_serves_to_go_on(store):
    store.headers = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    store.faults = [30_000]
    assert download(store.url).read_bytes() == DATA
    assert [asked for _, asked in store.asked] == [None, "bytes=30000-"]


def test_a_server_without_ranges_sends_all_again(store):
    store.ranges = False
    store.faults = [30_000]
    assert download(store.url).read_bytes() == DATA


def test_a_server_that_goes_on_in_another_file_is_not_believed(store):
    broken(store, *[10_000] * module.ATTEMPTS)
    store.headers = {"Last-Modified": '"1"', "ETag": '"2"'}  # lets the If-Range pass, names another version
    assert download(store.url).read_bytes() == DATA
    assert [asked for _, asked in store.asked] == ["bytes=50000-", None]


def test_bytes_beyond_the_end_of_the_file_are_dropped(store):
    broken(store, *[10_000] * module.ATTEMPTS)
    store.data = DATA[:50_000]
    assert download(store.url).read_bytes() == DATA[:50_000]


def test_a_file_of_unknown_length_comes_whole(store):
    store.sized = False
    assert download(store.url).read_bytes() == DATA


@pytest.mark.parametrize("status", ["408", "429", "500", "502", "503", "504"])
def test_a_server_that_is_busy_is_asked_again(status, store):
    store.faults = [status]
    assert download(store.url).read_bytes() == DATA
    assert len(store.asked) == 2


def test_a_server_that_stays_busy_is_an_error(store):
    assert "answers 503 Service Unavailable); try again later, or put" in broken(store, *["503"] * module.ATTEMPTS)


def test_a_stall_ends_after_a_while_and_the_transfer_goes_on(store, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    store.faults = ["stall"]
    said: list[str] = []
    assert download(store.url, progress=said.append).read_bytes() == DATA
    assert [asked for _, asked in store.asked] == [None, "bytes=1000-"]
    assert said[2] == "nothing came for 0 s at 0.0 MB; trying again in 0 s"


def test_the_end_of_the_file_is_the_end_though_the_connection_stays_open(store, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    store.data, store.faults = DATA[:1000], ["stall"]
    assert download(store.url).read_bytes() == DATA[:1000]
    assert len(store.asked) == 1


def test_a_file_that_is_not_there_is_asked_for_once(store, cache):
    with pytest.raises(InputError, match=rf"there is no file {store.url}x; check its name, or put the file at {cache}"):
        download(store.url + "x")
    assert len(store.asked) == 1


@pytest.mark.parametrize("status", ["401", "403", "418"])
def test_a_refusal_says_where_to_put_the_file_by_hand(status, store, cache):
    words = broken(store, status)
    assert words.startswith(f"cannot have {store.url} (127.0.0.1")
    assert f"answers {status} " in words
    assert f"put the file at {cache}" in words


def test_a_host_that_is_not_reached_is_tried_once(monkeypatch, cache):
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/a.npz"
    with pytest.raises(InputError, match=rf"cannot reach .* for {url} \(Connection refused\); put the file at {cache}"):
        download(url)

    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(InputError, match=r"cannot reach example\.org for .* \(Name or service not known\); put the"):
        download("https://example.org/a.npz")


def test_bytes_with_another_sum_are_not_kept(store, cache):
    with pytest.raises(InputError, match=f"came with the sha256 {SHA256}, not {'0' * 64}, and was not kept"):
        download(store.url, sha256="0" * 64)
    assert "a.npz" not in names(cache)
    assert download(store.url).read_bytes() == DATA
    with pytest.raises(InputError, match=f"has the sha256 {SHA256}, not {'0' * 64}; delete it"):
        download(store.url, sha256="0" * 64)


def test_googles_sum_is_checked(store):
    store.headers["x-goog-hash"] = f"crc32c=AAAAAA==, md5={base64.b64encode(hashlib.md5(DATA[1:]).digest()).decode()}"
    with pytest.raises(InputError, match=f"came with the md5 {hashlib.md5(DATA).hexdigest()}, not"):
        download(store.url)
    store.headers["x-goog-hash"] = f"md5={base64.b64encode(hashlib.md5(DATA).digest()).decode()}"
    assert download(store.url).read_bytes() == DATA


def test_who_downloads_at_the_same_time_waits_for_the_first(store):
    store.slow_s = 0.3
    said: list[str] = []
    with ThreadPoolExecutor(4) as threads:
        paths = list(threads.map(lambda _: download(store.url, progress=said.append), range(4)))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == DATA
    assert len(store.asked) == 1
    assert said.count("another process is downloading a.npz; waiting for it") == 3


def test_progress_is_told_now_and_then(store, monkeypatch):
    monkeypatch.setattr(module, "PROGRESS_S", 0.0)
    monkeypatch.setattr(module, "CHUNK", 25_000)
    said: list[str] = []
    download(store.url, progress=said.append)
    assert said[-1] == "100% of 0.1 MB, 0 s left"
    assert len(said) >= 6


def test_offline_mode_asks_nobody_but_uses_what_is_there(store, cache, monkeypatch):
    monkeypatch.setenv("VITREOUS_OFFLINE", "1")
    with pytest.raises(
        InputError, match=f"a.npz is not on this machine and offline mode is on; put the file at {cache}"
    ):
        download(store.url)
    assert store.asked == []
    monkeypatch.delenv("VITREOUS_OFFLINE")
    path = download(store.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download(store.url) == path


def test_a_full_disk_says_where_to_make_room_and_keeps_what_came(store, cache, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*a\.npz \(No space left on device\); .*VITREOUS_CACHE"):
        download(store.url)
    assert names(cache) == {".a.npz.part", ".a.npz.tag"}


def test_a_cache_that_cannot_be_written_is_an_error(store, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot write .*a\.npz \(Not a directory\)"):
        download(store.url)


def test_an_interrupted_download_goes_on(store, monkeypatch):
    monkeypatch.setattr(module, "PROGRESS_S", 0.0)
    monkeypatch.setattr(module, "CHUNK", 25_000)

    def interrupt(sentence):
        if "%" in sentence:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(store.url, progress=interrupt)
    assert download(store.url).read_bytes() == DATA
    assert store.asked[1][1] is not None


def test_a_redirection_is_followed_within_the_same_security(store):
    moved = store.url.replace("/models/", "/moved/")
    assert download(moved).read_bytes() == DATA
    store.moved_to = "ftp://127.0.0.1/b.npz"
    with pytest.raises(InputError, match=r"cannot have .* answers 302 and leads away from http, to ftp://127"):
        download(moved.replace("a.npz", "b.npz"))
    request = urllib.request.Request("https://example.org/a.npz")
    with pytest.raises(urllib.error.HTTPError, match=r"leads away from https, to http://example\.org/b") as error:
        module._Redirects().redirect_request(request, io.BytesIO(), 302, "Found", {}, "http://example.org/b")
    error.value.close()


def test_what_a_query_chooses_lies_apart(store):
    one, other = download(store.url + "?version=1"), download(store.url + "?version=2")
    assert one != other
    assert one.name == other.name == "a.npz"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/a.npz",
        "a.npz",
        "https://",
        "https://host",
        "https://host/",
        "https://host/a/",
        "https://host/a//b",
        "https://host/../a.npz",
        "https://host/%2e%2e/a.npz",
        "https://host/..%2Fa.npz",
        "https://../a.npz",
        "https://host/a%00.npz",
        "https://host/a\\b.npz",
        "https://host:port/a.npz",
        "https://me:secret@host/a.npz",
        "",
    ],
)
def test_what_is_no_address_of_a_file_is_refused(url, cache):
    with pytest.raises(InputError, match="give https://HOST/PATH"):
        download(url)
    assert not cache.exists()


def test_googles_names_become_addresses(monkeypatch, store):
    name = "augreg/Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0.npz"
    assert google(name) == f"https://storage.googleapis.com/vit_models/{name}"
    assert google("imagenet21k+imagenet2012/ViT-B_16.npz").endswith("/imagenet21k%2Bimagenet2012/ViT-B_16.npz")
    monkeypatch.setenv("VITREOUS_GOOGLE_ENDPOINT", store.url.removesuffix("models/a.npz"))
    assert download(google("models/a.npz")).read_bytes() == DATA


@pytest.mark.parametrize(
    "name",
    ["", "a", "a.npz", "a/b", "../a.npz", "a/../b.npz", "/a.npz", "a//b.npz", "https://host/a.npz", "a\\b/c.npz"],
)
def test_what_is_no_name_of_googles_is_refused(name):
    with pytest.raises(InputError, match=r"give google:FOLDER/NAME\.npz"):
        google(name)
