import re
import time
from email.utils import formatdate

import pytest

from faulty_server import serving
from vitreous import fetching as module
from vitreous.cache import place
from vitreous.errors import InputError
from vitreous.fetching import Broken, Fetcher, Unavailable, confirm

DATA = bytes(range(256)) * 400


@pytest.fixture
def server(tmp_path, monkeypatch):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.tar").write_bytes(DATA)
    monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path / "cache"))
    for name in ("VITREOUS_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    with serving(tmp_path / "served") as server:
        yield server


def fetched(server, **settings) -> bytes:
    return Fetcher(remember=True, **settings).fetch(server.url + "a.tar").read_bytes()


def test_waits_grow_by_the_attempt_and_differ_by_the_dice(server):
    waits = []
    for _ in range(2):
        server.faults["a.tar"] = ["503"] * 4
        place(server.url + "a.tar").unlink(missing_ok=True)
        waits.append([])
        assert fetched(server, pause=waits[-1].append) == DATA
    for first, other in zip(*waits):
        assert first != other
    for k, wait in enumerate(waits[0]):
        assert 0.5 <= wait / (module.WAIT_S * 2**k) <= 1.5


@pytest.mark.parametrize(("asked", "waited"), [("7", 7.0), ("100000", 60.0), ("soon", 0.0), ("in an hour", 60.0)])
def test_a_server_is_left_alone_as_long_as_it_asks_within_bounds(asked, waited, server):
    waits: list[float] = []
    asked = formatdate(time.time() + 3600) if asked == "in an hour" else asked
    server.faults["a.tar"] = [f"429:{asked}"]
    assert fetched(server, pause=waits.append) == DATA
    assert waits[0] == waited if waited else waits[0] < 1


def test_attempts_are_counted_in_a_row_that_bring_next_to_nothing(server, monkeypatch):
    monkeypatch.setattr(module, "ENOUGH", 10_000)
    ends = [13_000, 10_001, 17_500, 12_345, 10_000, 11_111, 10_500]
    server.faults["a.tar"] = list(ends)
    assert len(ends) > module.ATTEMPTS
    assert fetched(server) == DATA
    assert [asked for _, asked in server.asked[1:]] == [f"bytes={sum(ends[:k])}-" for k in range(1, len(ends) + 1)]


def test_a_server_that_always_begins_anew_is_given_up(server, monkeypatch):
    monkeypatch.setattr(module, "ENOUGH", 10_000)
    server.tags, server.always["a.tar"] = False, 50_000
    with pytest.raises(Unavailable, match="did not come in 5 attempts"):
        fetched(server)
    assert len(server.asked) == module.ATTEMPTS


def test_a_drop_at_a_time_is_a_stall(server, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_S", 0.3)
    server.faults["a.tar"] = ["drip", "deaf"]
    heard: list[str] = []
    assert fetched(server, warn=heard.append) == DATA
    assert re.match("only [0-9]+ bytes came in 0 s; trying again", heard[0])


def test_a_check_may_ask_for_another_attempt(server):
    seen = []

    def check(part, headers):
        seen.append((part.read_bytes(), headers["ETag"]))
        if len(seen) == 1:
            raise Broken("damaged")

    assert Fetcher().fetch(server.url + "a.tar", check=check).read_bytes() == DATA
    assert seen[0] == seen[1]
    assert server.asked == [("a.tar", None), ("a.tar", None)]


def test_a_file_of_another_size_is_not_begun(server):
    with pytest.raises(Unavailable, match=r"did not come in 5 attempts \(the server has 102,400 bytes of 5\); try"):
        Fetcher().fetch(server.url + "a.tar", size=5)
    assert not place(server.url + "a.tar").exists()


def test_an_answer_without_length_is_measured_by_the_size(server):
    server.faults["a.tar"] = ["unsized"]
    assert Fetcher().fetch(server.url + "a.tar", size=len(DATA)).read_bytes() == DATA


def test_a_listener_may_end_the_transfer_and_the_next_goes_on(server, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 10_000)

    came = []

    def enough(have, total):
        came.append(have)
        assert total == len(DATA)
        if have >= 40_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetched(server, came=enough)
    assert fetched(server) == DATA
    assert server.asked[1][1] == f"bytes={came[-1]}-"


def test_the_patient_try_again_where_nobody_listens(server):
    port = int(server.url.rstrip("/").rpartition(":")[2])
    url, waits = f"http://127.0.0.1:{port}/a.tar", []
    server.always["a.tar"] = "404"
    with pytest.raises(Unavailable) as error:
        Fetcher(patient=True).fetch(url)
    assert (error.value.status, error.value.reached) == (404, True)
    with serving(server.folder) as gone:
        pass
    with pytest.raises(Unavailable, match=r"did not come in 5 attempts \(Connection refused\)") as error:
        Fetcher(patient=True, pause=waits.append).fetch(gone.url + "a.tar")
    assert len(waits) == module.ATTEMPTS - 1
    assert not error.value.reached


def test_a_copy_is_confirmed_or_found_to_be_of_another_file(server):
    url = server.url + "a.tar"
    assert fetched(server) == DATA
    assert confirm(url) == ""
    server.always["a.tar"] = "503"
    assert confirm(url) == "the server answers 503 Service Unavailable"
    server.always.clear()
    (server.folder / "a.tar").write_bytes(DATA[::-1])
    with pytest.raises(InputError, match=r"a\.tar has changed since it was fetched; to use what is there now, remove"):
        confirm(url)


def test_a_copy_without_a_name_of_its_version_is_confirmed_by_its_size(server):
    server.tags = False
    assert fetched(server) == DATA
    assert confirm(server.url + "a.tar") == ""
    (server.folder / "a.tar").write_bytes(DATA[:-1])
    with pytest.raises(InputError, match="has changed since"):
        confirm(server.url + "a.tar")
