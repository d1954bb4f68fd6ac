"""Data of a server: packed shards by their index, tars by their headers, or one parquet file.

With an index, shards are fetched when they are first needed; without one, to read their headers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from email.message import Message
from pathlib import Path
from urllib.parse import urlsplit

from vitreous.cache import place
from vitreous.console import Console
from vitreous.data.archives import TAR_SUFFIXES, list_archive
from vitreous.data.listing import Listing
from vitreous.data.parquet import PARQUET_SUFFIX, list_parquet
from vitreous.data.remote_files import RemoteFile, RemoteFiles, fetch_all
from vitreous.data.shard_index import INDEX, Index, read_index
from vitreous.data.shard_listing import braces, indexed_shards, named_split, plain_shards
from vitreous.errors import InputError, some
from vitreous.fetching import Unavailable

ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
NO_INDEX = (401, 403, 404, 410)
"""What servers answer where there is no file; a store whose folders may not be listed says 403."""


@dataclass(frozen=True)
class Remote:
    """How data of a server are fetched, and what becomes of shards that cannot be had."""

    skip: bool = False
    """Leave them out; else the first is an error."""
    without: frozenset[str] = frozenset()
    """Addresses of shards that were left out when the run was begun, and are again."""
    console: Console = field(default_factory=Console)


def is_url(text: str) -> bool:
    """Whether `text` is an address, of whatever kind."""
    return ADDRESS.match(text) is not None


def list_remote(url: str, remote: Remote) -> Listing:
    """The images of a folder of packed shards (its address ends in /), of tars in braces, of a tar or a parquet file.

    Raises:
        InputError: if it is none of these, cannot be had, or holds no labelled images.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"{url} is no address that data are fetched from; give https://HOST/PATH")
    path = urlsplit(url).path
    if path.endswith("/"):
        index = _index(url, remote.console)
        if index is None:
            raise InputError(
                f"{url} holds no {INDEX}; pack the data by vitreous data pack, "
                "or give the names of the tars: train-{000000..000012}.tar"
            )
        return _packed(url, index, range(len(index.shards)), given=url, remote=remote)
    urls = list(dict.fromkeys(braces(url)))
    suffixes = (".tar",) if len(urls) > 1 else (*TAR_SUFFIXES, PARQUET_SUFFIX)
    if strange := [url for url in urls if not urlsplit(url).path.lower().endswith(suffixes)]:
        raise InputError(
            f"{strange[0]} is no data set; give {' or '.join(suffixes)}, "
            "or the address of a folder of packed shards, which ends in /"
        )
    if path.lower().endswith(".tar") and (listing := _by_index(urls, given=url, remote=remote)) is not None:
        return listing
    return _by_headers(urls, given=url, remote=remote)


def _by_index(urls: Sequence[str], *, given: str, remote: Remote) -> Listing | None:
    """The images of tars that the index in their folder tells of; None if there is none, or it does not name all."""
    folders = {_beside(url, "") for url in urls}
    try:
        index = _index(folders.pop(), remote.console) if len(folders) == 1 else None
    except Unavailable as error:
        if error.reached or not all(place(url).is_file() for url in urls):
            raise
        index = None  # all that it could tell of was fetched without it
    numbers = {shard.name: k for k, shard in enumerate(index.shards)} if index is not None else {}
    names = [place(url).name for url in urls]
    if index is None or any(name not in numbers for name in names):
        return None
    return _packed(urls[0], index, sorted({numbers[name] for name in names}), given=given, remote=remote)


def _packed(url: str, index: Index, chosen: Sequence[int], *, given: str, remote: Remote) -> Listing:
    shards = [index.shards[k] for k in chosen]
    files = [RemoteFile(_beside(url, shard.name), shard.num_bytes, shard.checksum) for shard in shards]
    missing = _fetched(files, given=given, remote=remote) if remote.skip else _left_out(files, remote)
    there = [number for number, file in enumerate(files) if file.url not in missing]
    part = index.only([chosen[number] for number in there])
    listing = indexed_shards(part, RemoteFiles([files[number] for number in there], remote.console), given=given)
    return _noted(listing, files, missing)


def _by_headers(urls: Sequence[str], *, given: str, remote: Remote) -> Listing:
    files = [RemoteFile(url) for url in urls]
    missing = _fetched(files, given=given, remote=remote)
    there = [file for file in files if file.url not in missing]
    paths = [place(file.url) for file in there]
    try:
        if "{" in given:
            listing = plain_shards(paths, given=given, files=RemoteFiles(there, remote.console))
        else:
            listing = list_parquet(paths[0]) if paths[0].suffix.lower() == PARQUET_SUFFIX else list_archive(paths[0])
    except InputError as error:
        raise InputError(
            f"{error} ({given} was fetched into {paths[0].parent}; remove it there to fetch it again)"
        ) from None
    return _noted(replace(listing, path=given), files, missing)


def _fetched(files: Sequence[RemoteFile], *, given: str, remote: Remote) -> dict[str, str]:
    """Have all files here but those that are left out: with the reason of each."""
    missing = _left_out(files, remote)
    wanted = [file for file in files if file.url not in missing]
    missing |= fetch_all(wanted, console=remote.console, skip=remote.skip, ask=True)
    lost = {named_split(place(url).name) for url in missing}
    kept = {named_split(place(file.url).name) for file in files if file.url not in missing}
    if lost - kept:
        url, reason = next(iter(missing.items()))
        which = f"shards of {' and '.join(sorted(lost - kept))}" if lost - kept != {""} else "shards"
        raise InputError(f"{given}: none of the {which} can be had ({place(url).name}: {reason})")
    return missing


def _left_out(files: Sequence[RemoteFile], remote: Remote) -> dict[str, str]:
    return {file.url: "was left out when the run was begun" for file in files if file.url in remote.without}


def _noted(listing: Listing, files: Sequence[RemoteFile], missing: dict[str, str]) -> Listing:
    if missing:  # the reasons may differ the next time, and what is noted must not
        names = [place(url).name for url in missing]
        listing.notes.append(
            f"{len(names):,} of {len(files):,} shards could not be had and are left out: {some(names)}"
        )
    return replace(listing, missing=missing)


def _index(url: str, console: Console) -> Index | None:
    """The index in the folder of `url`; None if the server has none.

    Raises:
        Unavailable: if it does not say.
    """
    file = _IndexFile(_beside(url, INDEX))
    try:
        fetch_all([file], console=console, ask=True)
    except Unavailable as error:
        if error.status in NO_INDEX:
            return None
        raise
    return read_index(place(file.url))


class _IndexFile(RemoteFile):
    """An index, not a page that says in words that there is none."""

    def _check(self, part: Path, _: Message) -> None:
        with open(part, "rb") as file:
            if file.read(2) != b"PK":
                raise Unavailable(f"{self.url} is no index", status=NO_INDEX[0])


def _beside(url: str, name: str) -> str:
    """The address of `name` in the folder of `url`."""
    parts = urlsplit(url)
    return parts._replace(path=parts.path.rpartition("/")[0] + "/" + name).geturl()
