"""Files over HTTP: each comes once, whole and checked, and goes on where it broke off.

`urllib`, because huggingface-hub brings httpx or httpx2 by its version, so neither is there for certain. It heeds the
environment's proxies.
"""

import http.client
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

from vitreous.cache import alone, by_hand, offline, place, writing
from vitreous.console import Task, duration
from vitreous.errors import InputError
from vitreous.files import sync_folder

TIMEOUT_S = 20.0
SLOWEST = 1000.0
"""Bytes a second: who sends fewer for `TIMEOUT_S` stalls."""
ATTEMPTS = 5
"""In a row that bring less than `ENOUGH`."""
ENOUGH = 1 << 20
WAIT_S = 1.0
"""Before the second attempt; twice as long before each one after it, give or take a half."""
MAX_WAIT_S = 60.0
"""However long a server asks to be left alone."""
PROGRESS_S = 10.0
CHUNK = 1 << 20
PASSING = (408, 416, 425, 429, 500, 502, 503, 504)
"""Answers that another attempt may change; 416 says that the part at hand is not of this file."""
ABSENT = (404, 410)
_dice = random.SystemRandom()  # the seeded one belongs to the run


class Unavailable(InputError):
    """A server does not give a file, or not the one that is wanted."""

    def __init__(self, message: str, *, status: int | None = None, reached: bool = True):
        super().__init__(message)
        self.status, self.reached = status, reached


class Broken(Exception):
    """A transfer ended early, or brought damage; another attempt may end well."""

    def __init__(self, reason: str, *, wait_s: float = 0.0, reached: bool = True):
        super().__init__(reason)
        self.wait_s, self.reached = wait_s, reached


@dataclass(frozen=True)
class Fetcher:
    """How a file is brought, and who hears of it."""

    say: Callable[[str], None] = lambda _: None
    """Hears how large a file is, every ten seconds how far it came, and what goes wrong."""
    warn: Callable[[str], None] | None = None
    """Hears what goes wrong in place of `say`."""
    came: Callable[[int, int | None], None] = lambda have, total: None
    """Gets the bytes at hand and of all, as far as that is known; what it raises ends the transfer."""
    pause: Callable[[float], object] = time.sleep
    patient: bool = False
    """Try again where not even a connection comes about."""
    remember: bool = False
    """Keep what the server called this version beside the file, for `confirm`."""

    def fetch(
        self, url: str, *, size: int | None = None, check: Callable[[Path, Message], None] = lambda part, headers: None
    ) -> Path:
        """The file at `url`, at its `place`; nobody is asked where it is there.

        What came before a transfer broke off is kept, and used by the next call if the file is still the same.

        Args:
            size: how many bytes it must have, if that is known.
            check: looks at the whole file, and the headers of its last part, before it gets its name. It raises
                `Broken` where another attempt may help; then, and where it raises anything else, the file is not kept.

        Raises:
            Unavailable: if the server does not give it; says where to put it by hand.
            InputError: if `url` is no address, or the cache cannot be written.
        """
        url = quote(url, safe="%/:?#[]@!$&'()*+,;=~")
        target = place(url)
        if target.is_file():
            return target
        if offline():
            raise Unavailable(f"{url} is not on this machine and offline mode is on; {by_hand(target)}", reached=False)
        with alone(target, self.warn or self.say):
            if not target.is_file():  # another process may have brought it meanwhile
                _Transfer(url, target, self, size, check).run()
        return target


def confirm(url: str) -> str:
    """See whether the server still has what was brought with `remember`; "", or why that cannot be told.

    Raises:
        InputError: if it has another version now; says what to do.
    """
    url = quote(url, safe="%/:?#[]@!$&'()*+,;=~")
    target = place(url)
    tag = _tag(target)
    known = tag.read_text("utf-8") if tag.is_file() else ""
    if offline():
        return "offline mode is on"
    condition = {"If-None-Match" if known.startswith('"') else "If-Modified-Since": known} if known else {}
    try:
        with _answer(url, condition) as answer:
            if known == validator(answer.headers) and answer.length in (None, target.stat().st_size):
                return ""
    except urllib.error.HTTPError as error:
        error.close()
        return "" if error.code == 304 else f"the server answers {error.code} {error.reason}"
    except (OSError, http.client.HTTPException) as error:
        return _why(error)
    raise InputError(
        f"{url} has changed since it was fetched; to use what is there now, remove {target.parent}; "
        "to keep what was fetched, set VITREOUS_OFFLINE=1"
    )


def validator(headers: Message) -> str:
    """What the server calls this version of the file; "" if it has no such name that Range requests may use."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


@dataclass
class _Transfer:
    """One file on its way: the bytes that came, in a hidden file beside the target, and what they were part of."""

    url: str
    target: Path
    by: Fetcher
    size: int | None
    check: Callable[[Path, Message], None]

    def __post_init__(self) -> None:
        self.host = urlsplit(self.url).netloc
        self.part = self.target.with_name(f".{self.target.name}.part")
        self.tag = _tag(self.target)

    def run(self) -> None:
        """Bring the file, in several attempts if need be, and give it its name."""
        self.by.say(f"asking {self.host} for {self.target.name}")
        failed, furthest = 0, self._have()
        while True:
            try:
                self._attempt()
                break
            except Broken as broken:
                reason = broken
            if self._have() >= furthest + ENOUGH:
                failed, furthest = 0, self._have()
            failed += 1
            if not reason.reached and not self.by.patient:
                raise Unavailable(
                    f"cannot reach {self.host} for {self.url} ({reason}); {by_hand(self.target)}", reached=False
                ) from reason
            if failed == ATTEMPTS:
                again = f"run again to go on from {_size(have)}" if (have := self._have()) else "try again later"
                raise Unavailable(
                    f"{self.url} did not come in {ATTEMPTS} attempts ({reason}); {again}, or {by_hand(self.target)}",
                    reached=reason.reached,
                ) from reason
            wait_s = min(max(WAIT_S * 2 ** (failed - 1) * _dice.uniform(0.5, 1.5), reason.wait_s), MAX_WAIT_S)
            (self.by.warn or self.by.say)(f"{reason}; trying again in {duration(wait_s)}")
            self.by.pause(wait_s)
        with writing(self.target):
            os.replace(self.part, self.target)
            if not self.by.remember:
                self.tag.unlink(missing_ok=True)
            sync_folder(self.target.parent)

    def _attempt(self) -> None:
        have, known = self._have(), self.tag.read_text("utf-8") if self.tag.is_file() else ""
        resume = {"Range": f"bytes={have}-", "If-Range": known} if have and known else {}
        with self._open(resume) as answer, writing(self.target):
            total = None if answer.length is None else answer.length + (have if answer.status == 206 else 0)
            if None not in (total, self.size) and total != self.size:
                raise Broken(f"the server has {total:,} bytes of {self.size:,}")  # or shows a page of its own
            if answer.status != 206:
                have = 0
                self.part.write_bytes(b"")  # before the tag, which thus never is that of older bytes
                self.tag.write_text(validator(answer.headers), "utf-8")
            elif not _continues(answer.headers, have, known):
                self.part.unlink()
                raise Broken(f"{self.host} did not go on where the transfer broke off")
            self.by.say(f"downloading {self.url}{_extent(have, total)}")
            with open(self.part, "ab") as file:
                for chunk in self._chunks(answer, have, total):
                    file.write(chunk)
                    file.flush()  # a killed process has saved all that came
                os.fsync(file.fileno())
            if (wanted := total or self.size) is not None and self._have() < wanted:
                raise Broken(f"the connection broke at {_size(self._have())} of {_size(wanted)}")
            try:
                self.check(self.part, answer.headers)
            except BaseException:
                self.part.unlink()
                raise

    def _open(self, headers: dict[str, str]) -> http.client.HTTPResponse:
        try:
            return _answer(self.url, headers)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:
                self.part.unlink(missing_ok=True)
            reason = f"{self.host} answers {error.code} {error.reason}"
            if error.code in PASSING:
                raise Broken(reason, wait_s=_retry_after(error.headers)) from error
            words = f"cannot have {self.url} ({reason});"
            if error.code in ABSENT:
                words = f"there is no file {self.url}; check its name, or"
            raise Unavailable(f"{words} {by_hand(self.target)}", status=error.code) from error
        except urllib.error.URLError as error:
            raise Broken(_why(error), reached=False) from error
        except (OSError, http.client.HTTPException) as error:
            raise Broken(_why(error)) from error

    def _chunks(self, answer: http.client.HTTPResponse, have: int, total: int | None) -> Iterator[bytes]:
        """The bytes of an answer as they come, and now and then a sentence on how far it is."""
        task, said = Task("", total or 0, have), time.monotonic()
        before, since = have, said
        self.by.came(have, total)
        while total is None or have < total:
            try:
                chunk = answer.read1(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise Broken(f"{_why(error)} at {_size(have)}") from error
            if not chunk:
                return
            yield chunk
            have += len(chunk)
            self.by.came(have, total)
            now = time.monotonic()
            if now - said >= PROGRESS_S:
                said = now
                left = (
                    f"{have / total:.0%} of {_size(total)}, {task.time_left(have)}" if total else f"{_size(have)} came"
                )
                self.by.say(left)
            if now - since >= TIMEOUT_S:
                if have - before < SLOWEST * (now - since) and have != total:
                    raise Broken(f"only {have - before:,} bytes came in {duration(now - since)}")
                before, since = have, now

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows where the server sends it, but never from https to anything else."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme not in ("https", req.type):
            raise urllib.error.HTTPError(newurl, code, f"and leads away from {req.type}, to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _answer(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "vitreous", **headers})
    return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT_S)


def _why(error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(error, urllib.error.URLError) and not isinstance(cause, TimeoutError):
        return getattr(cause, "strerror", None) or str(cause)
    return f"nothing came for {duration(TIMEOUT_S)}" if isinstance(cause, TimeoutError) else "the connection broke"


def _retry_after(headers: Message) -> float:
    """The seconds in Retry-After, which may also be a date; 0 where it says nothing."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0


def _continues(headers: Message, have: int, known: str) -> bool:
    return headers.get("Content-Range", "").startswith(f"bytes {have}-") and validator(headers) in ("", known)


def _tag(target: Path) -> Path:
    return target.with_name(f".{target.name}.tag")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _extent(have: int, total: int | None) -> str:
    if total is None:
        return ""
    return f": the last {_size(total - have)} of {_size(total)}" if have else f" ({_size(total)})"
