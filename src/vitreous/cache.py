"""Where on this machine lies what was fetched, by whom it is written, and whether anyone may be asked for more."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vitreous.errors import InputError


def cache_folder() -> Path:
    """Where what was fetched is kept: $VITREOUS_CACHE, or vitreous/ among the user's caches."""
    if folder := os.environ.get("VITREOUS_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitreous"


def offline() -> bool:
    """Whether HF_HUB_OFFLINE or VITREOUS_OFFLINE forbids asking anyone."""
    chosen = (os.environ.get(name, "").lower() for name in ("HF_HUB_OFFLINE", "VITREOUS_OFFLINE"))
    return any(value in ("1", "true", "yes", "on") for value in chosen)


def place(url: str) -> Path:
    """Where the file at `url` belongs: downloads/HOST/PATH of the cache folder.

    One that a query chooses lies there in a folder named for the query.

    Raises:
        InputError: if `url` is no address of a file over http or https.
    """
    wrong = InputError(f"{url!r} is no address of a file; give https://HOST/PATH")
    try:
        parts = urlsplit(url)
        host = f"{parts.hostname}_{parts.port}" if parts.port else parts.hostname or ""
    except ValueError:  # a port that is no number
        raise wrong from None
    path = host.replace(":", "_") + unquote(parts.path)
    if parts.scheme not in ("https", "http") or parts.username is not None or not plain(path):
        raise wrong
    target = cache_folder() / "downloads" / path
    chosen = hashlib.sha256(parts.query.encode()).hexdigest()[:8] if parts.query else ""
    return target.parent / chosen / target.name


def plain(path: str) -> bool:
    """Whether a path leads down, to a file in a folder."""
    parts = path.split("/")
    return path.isprintable() and "\\" not in path and len(parts) > 1 and not {"", ".", ".."} & set(parts)


def by_hand(target: Path) -> str:
    """What helps where a server does not."""
    return f"put the file at {target}"


@contextmanager
def alone(target: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Keep other processes from bringing the same file; the lock falls with the process that holds it."""
    from huggingface_hub.utils import WeakFileLock

    lock = target.with_name(f".{target.name}.lock")
    with ExitStack() as stack:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(WeakFileLock(lock, timeout=0.1))
            except TimeoutError:
                say(f"another process is downloading {target.name}; waiting for it")
                stack.enter_context(WeakFileLock(lock))
        yield


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn the system's refusal to write `target` into an `InputError` that says what to do."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {target} ({error.strerror or error}); make room there, "
            "or choose another folder with VITREOUS_CACHE"
        ) from error
