"""Weights from plain addresses, checked by the sums that are known of them."""

import base64
import hashlib
import os
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from urllib.parse import quote

from vitreous.cache import by_hand, plain
from vitreous.errors import InputError
from vitreous.fetching import Fetcher

GOOGLE = "https://storage.googleapis.com/vit_models"


def google(name: str) -> str:
    """The address of a checkpoint that Google published, such as augreg/….npz or imagenet21k/ViT-B_16.npz.

    VITREOUS_GOOGLE_ENDPOINT, the address of a copy of that bucket, replaces its own.

    Raises:
        InputError: if `name` is no path of an .npz file.
    """
    if not name.endswith(".npz") or ":" in name or not plain(name):
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
    came = False

    def check(part: Path, headers: Message) -> None:
        nonlocal came
        came = True
        for algorithm, expected in (("sha256", sha256), ("md5", _google_md5(headers))):
            if expected is not None and (found := _digest(part, algorithm)) != expected.lower():
                name = part.with_name(part.name.removeprefix(".").removesuffix(".part"))
                raise InputError(
                    f"{url} came with the {algorithm} {found}, not {expected}, and was not kept; "
                    f"fetch it again, or {by_hand(name)}"
                )

    target = Fetcher(say=progress or (lambda _: None)).fetch(url, check=check)
    if not came and sha256 is not None and (found := _digest(target, "sha256")) != sha256.lower():
        raise InputError(f"{target} has the sha256 {found}, not {sha256}; delete it, and it is fetched again")
    return target


def _google_md5(headers: Message) -> str | None:
    """The md5 in Google's `x-goog-hash: crc32c=…,md5=…`, base64 there, hexadecimal here."""
    sums = (item.strip() for value in headers.get_all("x-goog-hash", []) for item in value.split(","))
    return next((base64.b64decode(item[4:]).hex() for item in sums if item.startswith("md5=")), None)


def _digest(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
