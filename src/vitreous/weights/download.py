"""Plain downloads: a file comes once, whole and checked, and goes on where it broke off.

`urllib`, because huggingface-hub brings httpx or httpx2 by its version, so neither is there for certain.
"""

import base64
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from email.message import Message
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from vitreous.console import Task, duration
from vitreous.errors import InputError
from vitreous.files import sync_folder
from vitreous.weights.hub import cache_folder, offline

GOOGLE = "https://storage.googleapis.com/vit_models"
TIMEOUT_S = 20.0
ATTEMPTS = 5
WAIT_S = 1.0
"""Before the second attempt; twice as long before each one after it."""
PROGRESS_S = 10.0
CHUNK = 1 << 20
PASSING = (408, 416, 429, 500, 502, 503, 504)
"""Answers that another attempt may change; 416 says that the part at hand is not of this file."""


def google(name: str) -> str:
    """The address of a checkpoint that Google published, such as augreg/….npz or imagenet21k/ViT-B_16.npz.

    VITREOUS_GOOGLE_ENDPOINT, the address of a copy of that bucket, replaces its own.

    Raises:
        InputError: if `name` is no path of an .npz file.
    """
    if not name.endswith(".npz") or ":" in name or not _plain(name):
        raise InputError(f"{name!r} is no checkpoint of Google's; give google:FOLDER/NAME.npz")
    return f"{(os.environ.get('VITREOUS_GOOGLE_ENDPOINT') or GOOGLE).rstrip('/')}/{quote(name)}"


def download(url: str, *, sha256: str | None = None, progress: Callable[[str], None] | None = None) -> Path:
    """The file at `url`, as downloads/HOST/PATH of the cache folder; nobody is asked where it is there.

    `progress` hears how large it is, every ten seconds how far it came, and what goes wrong. A server's
    `x-goog-hash` is checked as `sha256` is. What came before a transfer broke off is kept, and used by the next
    call if the file is still the same.

    Raises:
        InputError: if the file cannot be had, or is not the expected one; says where to put it by hand.
    """
    url = quote(url, safe="%/:?#[]@!$&'()*+,;=~")
    target = _place(url)
    if target.is_file():
        if sha256 is not None and (found := _digest(target, "sha256")) != sha256.lower():
            raise InputError(f"{target} has the sha256 {found}, not {sha256}; delete it, and it is fetched again")
        return target
    if offline():
        raise InputError(f"{url} is not on this machine and offline mode is on; {_by_hand(target)}")
    say = progress or (lambda _: None)
    with _alone(target, say):
        if not target.is_file():  # another process may have brought it meanwhile
            _Transfer(url, target, say).run(sha256)
    return target


def _place(url: str) -> Path:
    """Where the file at `url` belongs; one that a query chooses, in a folder named for the query."""
    wrong = InputError(f"{url!r} is no address of a file; give https://HOST/PATH")
    try:
        parts = urlsplit(url)
        host = f"{parts.hostname}_{parts.port}" if parts.port else parts.hostname or ""
    except ValueError:  # a port that is no number
        raise wrong from None
    path = host.replace(":", "_") + unquote(parts.path)
    if parts.scheme not in ("https", "http") or parts.username is not None or not _plain(path):
        raise wrong
    place = cache_folder() / "downloads" / path
    chosen = hashlib.sha256(parts.query.encode()).hexdigest()[:8] if parts.query else ""
    return place.parent / chosen / place.name


def _plain(path: str) -> bool:
    """Whether a path leads down, to a file in a folder."""
    parts = path.split("/")
    return path.isprintable() and "\\" not in path and len(parts) > 1 and not {"", ".", ".."} & set(parts)


def _by_hand(target: Path) -> str:
    return f"put the file at {target}"


class _Broken(Exception):
    """A transfer ended early; another attempt may end well."""


class _Unreachable(_Broken):
    """There was not even a connection."""


class _Transfer:
    """One file on its way: the bytes that came, in a hidden file beside the target, and what they were part of."""

    def __init__(self, url: str, target: Path, say: Callable[[str], None]) -> None:
        self.url, self.target, self.say = url, target, say
        self.host = urlsplit(url).netloc
        self.part = target.with_name(f".{target.name}.part")
        self.tag = target.with_name(f".{target.name}.tag")

    def run(self, sha256: str | None) -> None:
        """Bring the file, check it, and give it its name."""
        headers = self._bring()
        self._check(sha256, _google_md5(headers))
        with _writing(self.target):
            os.replace(self.part, self.target)
            self.tag.unlink(missing_ok=True)
            sync_folder(self.target.parent)

    def _bring(self) -> Message:
        """Complete the part, in several attempts if need be; returns the headers of the last answer."""
        reason = ""
        self.say(f"asking {self.host} for {self.target.name}")
        for attempt in range(ATTEMPTS):
            if attempt:
                wait_s = WAIT_S * 2 ** (attempt - 1)
                self.say(f"{reason}; trying again in {duration(wait_s)}")
                time.sleep(wait_s)
            try:
                return self._attempt()
            except _Broken as broken:
                reason = str(broken)
                if not attempt and isinstance(broken, _Unreachable):
                    raise InputError(
                        f"cannot reach {self.host} for {self.url} ({reason}); {_by_hand(self.target)}"
                    ) from broken
        again = f"run again to go on from {_size(have)}" if (have := self._have()) else "try again later"
        raise InputError(
            f"{self.url} did not come in {ATTEMPTS} attempts ({reason}); {again}, or {_by_hand(self.target)}"
        )

    def _attempt(self) -> Message:
        have, known = self._have(), self.tag.read_text("utf-8") if self.tag.is_file() else ""
        resume = {"Range": f"bytes={have}-", "If-Range": known} if have and known else {}
        with self._open({"User-Agent": "vitreous", **resume}) as answer, _writing(self.target):
            if answer.status != 206:
                have = 0
                self.part.write_bytes(b"")  # before the tag, which thus never is that of older bytes
                self.tag.write_text(_validator(answer.headers), "utf-8")
            elif not _continues(answer.headers, have, known):
                self.part.unlink()
                raise _Broken(f"{self.host} did not go on where the transfer broke off")
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length else None
            self.say(f"downloading {self.url}{_extent(have, total)}")
            with open(self.part, "ab") as file:
                for chunk in _chunks(answer, have, total=total, say=self.say):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            if total is not None and self._have() < total:
                raise _Broken(f"the connection broke at {_size(self._have())} of {_size(total)}")
            return answer.headers

    def _open(self, headers: dict[str, str]) -> http.client.HTTPResponse:
        request = urllib.request.Request(self.url, headers=headers)
        try:
            return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:
                self.part.unlink(missing_ok=True)
            reason = f"{self.host} answers {error.code} {error.reason}"
            if error.code in PASSING:
                raise _Broken(reason) from error
            if error.code in (404, 410):
                raise InputError(f"there is no file {self.url}; check its name, or {_by_hand(self.target)}") from error
            raise InputError(f"cannot have {self.url} ({reason}); {_by_hand(self.target)}") from error
        except urllib.error.URLError as error:
            raise _Unreachable(getattr(error.reason, "strerror", None) or str(error.reason)) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(_why(error)) from error

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _check(self, sha256: str | None, md5: str | None) -> None:
        for algorithm, expected in (("sha256", sha256), ("md5", md5)):
            if expected is not None and (found := _digest(self.part, algorithm)) != expected.lower():
                self.part.unlink()
                raise InputError(
                    f"{self.url} came with the {algorithm} {found}, not {expected}, and was not kept; "
                    f"fetch it again, or {_by_hand(self.target)}"
                )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows where the server sends it, but never from https to anything else."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme not in ("https", req.type):
            raise urllib.error.HTTPError(newurl, code, f"and leads away from {req.type}, to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _chunks(
    answer: http.client.HTTPResponse, have: int, *, total: int | None, say: Callable[[str], None]
) -> Iterator[bytes]:
    """The bytes of an answer as they come, and now and then a sentence on how far it is."""
    task, said = Task("", total or 0, have), time.monotonic()
    while total is None or have < total:
        try:
            chunk = answer.read1(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(f"{_why(error)} at {_size(have)}") from error
        if not chunk:
            return
        yield chunk
        have += len(chunk)
        if time.monotonic() - said >= PROGRESS_S:
            said = time.monotonic()
            say(f"{have / total:.0%} of {_size(total)}, {task.time_left(have)}" if total else f"{_size(have)} came")


def _why(error: Exception) -> str:
    timed_out = isinstance(error, TimeoutError)
    return f"nothing came for {duration(TIMEOUT_S)}" if timed_out else "the connection broke"


def _validator(headers: Message) -> str:
    """What the server calls this version of the file; "" if it has no such name that Range requests may use."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _continues(headers: Message, have: int, known: str) -> bool:
    return headers.get("Content-Range", "").startswith(f"bytes {have}-") and _validator(headers) in ("", known)


def _google_md5(headers: Message) -> str | None:
    """The md5 in Google's `x-goog-hash: crc32c=…,md5=…`, base64 there, hexadecimal here."""
    sums = (item.strip() for value in headers.get_all("x-goog-hash", []) for item in value.split(","))
    return next((base64.b64decode(item[4:]).hex() for item in sums if item.startswith("md5=")), None)


def _digest(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _extent(have: int, total: int | None) -> str:
    if total is None:
        return ""
    return f": the last {_size(total - have)} of {_size(total)}" if have else f" ({_size(total)})"


@contextmanager
def _alone(target: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Keep other processes from bringing the same file; the lock falls with the process that holds it."""
    from huggingface_hub.utils import WeakFileLock

    lock = target.with_name(f".{target.name}.lock")
    with ExitStack() as stack:
        with _writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(WeakFileLock(lock, timeout=0.1))
            except TimeoutError:
                say(f"another process is downloading {target.name}; waiting for it")
                stack.enter_context(WeakFileLock(lock))
        yield


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {target} ({error.strerror or error}); make room there, "
            "or choose another folder with VITREOUS_CACHE"
        ) from error
