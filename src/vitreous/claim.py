"""Who writes into a folder: a lock where the file system has locks, and everywhere a number that the newest bears."""

import itertools
import json
import os
import platform
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from vitreous.errors import InputError
from vitreous.files import write_text, writing

CLAIM, LOCK, TICKET = "claim.json", ".lock", ".attempt-"
POLL_S = 0.1
"""How often a lock that is held is tried again."""
FRESH_S = 300.0
"""How long after its last sign of life a process of another machine is taken to live."""


class TakenOver(InputError):
    """Another process has claimed the folder since; this one must write nothing more into it."""


@dataclass(frozen=True)
class Claim:
    """What claim.json says: which process writes into `folder`, until another claims it."""

    folder: Path
    attempt: int
    """Counts the claims of the folder; no two have the same."""
    host: str
    pid: int
    started: str
    """UTC, ISO 8601."""

    def check(self) -> None:
        """See, right before a write, that no other claim has taken the place of this one; takes about 20 µs.

        Raises:
            TakenOver: if one has; the process named there writes now.
        """
        there = newest(self.folder)
        if there is not None and there != self:
            raise TakenOver(
                f"another process (host {there.host}, pid {there.pid}) has taken over {self.folder}; this one stops"
            )


def newest(folder: Path) -> Claim | None:
    """The claim that stands in `folder`; None if there is none, or it is damaged."""
    try:
        fields = json.loads((folder / CLAIM).read_bytes())
        claim = Claim(folder, fields["attempt"], fields["host"], fields["pid"], fields["started"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    numbers = type(claim.attempt) is type(claim.pid) is int and 0 < claim.attempt < 2**63
    words = isinstance(claim.host, str) and isinstance(claim.started, str) and claim.host.isprintable()
    return claim if numbers and words else None


@contextmanager
def locked(folder: Path, *, wait_s: float = 0.0) -> Iterator[Claim]:
    """Make `folder` and write into it alone.

    Where the file system has locks, a second process is refused. Where it has none, the later claim wins, and the
    earlier process is stopped by its next `Claim.check`.

    Args:
        wait_s: how long to wait for a process that is about to end.

    Raises:
        InputError: if another process holds it, or it cannot be written.
    """
    with writing(folder):
        descriptor = _lock(folder, wait_s)
    try:
        attempt = _draw(folder)
        try:
            yield _claim(folder, attempt)
        finally:
            with suppress(OSError):  # Windows removes no open file
                (folder / f"{TICKET}{attempt}").unlink(missing_ok=True)
                there = newest(folder)
                if there is None or there.attempt <= attempt:
                    (folder / LOCK).unlink()  # while it is held: whoever waits for it looks whether it is still there
    finally:
        os.close(descriptor)


def is_held(folder: Path, *, moved: float) -> bool:
    """Whether a process writes into `folder`, as far as can be known from here.

    Where locks say nothing, as between machines they may, it is held if something there moved lately.

    Args:
        moved: when something did, in Unix time.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except FileNotFoundError:  # who ends in good order removes it
        return False
    try:
        free = _try_lock(descriptor, shared=True)
    finally:
        os.close(descriptor)
    if free is False:
        return True
    claim = newest(folder)
    if free and (claim is None or claim.host == platform.node()):
        return False
    return time.time() - moved < FRESH_S


def _lock(folder: Path, wait_s: float) -> int:
    """A descriptor that holds the lock of `folder`, or just is open where there are no locks.

    The lock is on a file in the folder: between machines, NFS locks files and no folders.
    """
    deadline = time.monotonic() + max(wait_s, POLL_S)  # `is_held` holds it for an instant
    while True:
        with suppress(FileNotFoundError):  # a process that ended without a word took the folder away
            _make(folder)
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            if _try_lock(descriptor) is not False and _is_there(descriptor, folder / LOCK):
                return descriptor
            os.close(descriptor)
        if time.monotonic() >= deadline:
            claim = newest(folder)  # who holds it may not have written it yet, but removes the ticket of the last
            known = claim is not None and (folder / f"{TICKET}{claim.attempt}").exists()
            who = f" (host {claim.host}, pid {claim.pid})" if claim and known else ""
            raise InputError(
                f"another process{who} is writing into {folder}; wait until it ends, or choose another --out"
            )
        time.sleep(POLL_S)


def _make(folder: Path) -> None:
    """Make `folder` unless it is there; it may come and go meanwhile."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # a file; or a folder that was there, and was gone when pathlib looked
        with suppress(FileNotFoundError):
            if not stat.S_ISDIR(folder.lstat().st_mode):
                raise


def _try_lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Whether the lock was free and is now held; None where there are no locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_there(descriptor: int, path: Path) -> bool:
    """Whether the open file still bears that name: the one who held it before may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _claim(folder: Path, attempt: int) -> Claim:
    """A new claim, written down; it outdoes all before it."""
    claim = Claim(folder, attempt, platform.node(), os.getpid(), datetime.now(UTC).isoformat())
    fields = {name: value for name, value in asdict(claim).items() if name != "folder"}
    while True:
        with suppress(FileNotFoundError):  # where there are no locks, another has swept it away half written
            write_text(folder / CLAIM, json.dumps(fields) + "\n")
            break
    for ticket in folder.glob(f"{TICKET}*"):
        if _number(ticket) < attempt:
            ticket.unlink(missing_ok=True)
    return claim


def _draw(folder: Path) -> int:
    """A number above all found here, which nobody else gets who draws at the same moment.

    A damaged claim.json is made up for by what killed processes left: tickets and unfinished checkpoints.
    """
    before = None
    with suppress(OSError):  # it cannot be read, but replaced
        before = newest(folder)
    names = itertools.chain(folder.glob(f"{TICKET}*"), folder.glob("checkpoints/step-*.tmp-*"))
    largest = max([before.attempt if before else 0, *map(_number, names)])
    with writing(folder):
        for attempt in itertools.count(largest + 1):
            with suppress(FileExistsError):
                (folder / f"{TICKET}{attempt}").touch(exist_ok=False)
                return attempt
    raise AssertionError


def _number(path: Path) -> int:
    """N of a path that ends in -N, else 0."""
    text = path.name.rpartition("-")[2]
    return int(text) if text.isdecimal() and len(text) < 19 else 0
