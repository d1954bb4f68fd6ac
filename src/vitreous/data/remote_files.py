"""Files of a server as files of the cache folder: each is fetched once, whole, and then read like any other."""

import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from vitreous.cache import place
from vitreous.console import Console
from vitreous.data.shards import Files
from vitreous.errors import InputError
from vitreous.fetching import Broken, Fetcher, Unavailable, confirm

CONNECTIONS = 4


@dataclass(frozen=True)
class RemoteFile:
    """One file of a server, and what it must be, as far as that is known."""

    url: str
    size: int | None = None
    checksum: int | None = None
    """CRC-32 of the whole file."""

    def fetch(self, by: Fetcher) -> Path:
        """Its copy on this machine, which is brought if it is not there.

        Raises:
            Unavailable: if it cannot be had, or is another one than it must be.
            InputError: if the copy is, or cannot be written.
        """
        path = by.fetch(self.url, size=self.size, check=self._check)
        if self.size not in (None, length := path.stat().st_size):
            raise InputError(
                f"{path} has {length:,} bytes, its index says {self.size:,}; remove {path.parent} to fetch all again"
            )
        return path

    def _check(self, part: Path, _: Message) -> None:
        if self.checksum is None:
            return
        checksum = 0
        with open(part, "rb") as file:
            while block := file.read(1 << 20):
                checksum = zlib.crc32(block, checksum)
        if checksum != self.checksum:
            raise Broken("its bytes are not those that its index tells of (CRC-32)")


class RemoteFiles(Files):
    """Random access to files of a server: `bring` has them here, and what is not is fetched when it is first read."""

    def __init__(self, files: Sequence[RemoteFile], console: Console):
        super().__init__(place(file.url) for file in files)
        self.files, self.console = files, console

    def __getstate__(self):
        return self.files, self.console.quiet

    def __setstate__(self, state) -> None:
        files, quiet = state
        self.__init__(files, Console(quiet=quiet))  # with the cache folder of that machine

    def bring(self, numbers: Iterable[int]) -> None:
        """Have those files here, several at a time.

        Raises:
            InputError: if one cannot be had.
        """
        if absent := [self.files[number] for number in numbers if not os.path.isfile(self.paths[number])]:
            fetch_all(absent, console=self.console)

    def stamp(self, numbers: Iterable[int]) -> str:
        """What the index says of the files; where there is none, as of any files."""
        files = [self.files[number] for number in numbers]
        if any(file.checksum is None for file in files):
            return super().stamp(numbers)
        return hashlib.blake2b(repr(files).encode(), digest_size=16).hexdigest()

    def path(self, number: int) -> str:
        """Where the file is now."""
        return str(self.files[number].fetch(Fetcher(warn=self.console.say, patient=True, remember=True)))


def fetch_all(
    files: Sequence[RemoteFile], *, console: Console, skip: bool = False, ask: bool = False
) -> dict[str, str]:
    """Have all of `files` here, several at a time; the reason of each that is skipped, by its address.

    Args:
        skip: leave out what the server does not give, instead of ending with the first.
        ask: let the server say whether what was fetched before, and no index tells of, is what it has now.

    Raises:
        Unavailable: if one cannot be had and none may be skipped.
        InputError: if one has changed since it was fetched, or the cache cannot be written.
    """
    with console.task("fetching, MB", 0) as task:
        work = _Work(files, follow=task.follow, console=console, ask=ask)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            try:
                begun = {pool.submit(work.bring, file): file for file in files}
                skipped = {}
                for future in as_completed(begun):
                    try:
                        future.result()
                    except Unavailable as error:
                        if not skip:
                            raise
                        skipped[begun[future].url] = str(error)
            except BaseException:
                work.stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    return {file.url: skipped[file.url] for file in files if file.url in skipped}


class _Stopped(Exception):
    """Another transfer failed, or the user wants no more."""


class _Work:
    """What the connections share."""

    def __init__(self, files: Sequence[RemoteFile], *, follow: Callable[[int, int], None], console: Console, ask: bool):
        self.follow, self.console, self.ask = follow, console, ask
        self.stopped, self.lock = threading.Event(), threading.Lock()
        absent = [file for file in files if not place(file.url).is_file()]
        sizes = [file.size for file in absent if file.size is not None]
        self.num_files, self.num_known, self.expected, self.came = len(absent), len(sizes), sum(sizes), 0
        self.shown = (0, 0)

    def bring(self, file: RemoteFile) -> None:
        """One of the files; asks no more once nobody answers."""
        if place(file.url).is_file():
            if self.ask and file.checksum is None and (reason := confirm(file.url)):
                with self.lock:
                    say, self.ask = self.ask, False
                if say:
                    self.console.say(f"what was fetched before is used, {file.url} first ({reason})")
            return
        known, before = file.size is not None, 0

        def came(have: int, total: int | None) -> None:
            nonlocal known, before
            if self.stopped.is_set():
                raise _Stopped
            with self.lock:
                if total is not None and not known:
                    known, self.num_known, self.expected = True, self.num_known + 1, self.expected + total
                self.came, before = self.came + have - before, have
                whole = self.expected * self.num_files / max(self.num_known, 1)  # those to come are like the others
                shown = round(self.came / 1e6), round(whole / 1e6)
                if shown != self.shown:
                    self.shown = shown
                    self.follow(*shown)

        file.fetch(Fetcher(warn=self.console.say, came=came, pause=self.stopped.wait, patient=True, remember=True))
