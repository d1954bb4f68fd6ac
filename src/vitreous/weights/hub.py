"""The Hugging Face Hub: fetch a model once, and say at once when that cannot be."""

import errno
import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from vitreous.cache import cache_folder, offline
from vitreous.errors import InputError, some

COMPANIONS = ("config.json", "preprocessor_config.json")
INDEX = "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", INDEX, "pytorch_model.bin")
"""In order of preference; after them, an .npz that is the only one."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
PROBE_TIMEOUT_S = 4
ANSWER_TIMEOUT_S = 30


def weights_in(folder: Path) -> Path | None:
    """The weights file of a model folder: model.safetensors, else its index of shards, pytorch_model.bin or only .npz.

    None where there is none, or a shard of it is missing.
    """
    if not folder.is_dir():
        return None
    name = _preferred(entry.name for entry in folder.iterdir() if entry.is_file())
    if name is None or (name == INDEX and not all((folder / shard).is_file() for shard in shards(folder / name))):
        return None
    return folder / name


def shards(index: Path) -> list[str]:
    """The files that hold the tensors of a sharded model; they lie beside its index.

    Raises:
        InputError: if `index` names none.
    """
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is no index of shards; delete it and fetch the model again") from error
    plain = (isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors") for name in names)
    if not names or not all(plain):
        raise InputError(f"{index} names no files beside it; delete it and fetch the model again")
    return names


def _preferred(names: Iterable[str]) -> str | None:
    names = set(names)
    arrays = [name for name in names if name.endswith(".npz") and "/" not in name]
    return next((name for name in WEIGHTS if name in names), arrays[0] if len(arrays) == 1 else None)


def fetch(name: str, *, progress: Callable[[str], None] | None = None) -> Path:
    """A folder with the weights of the Hub's `owner/name`, and its config files, from disk where they are there.

    `owner/name@revision` is its branch, tag or commit. `weights_in` tells which file the weights are. `progress`
    hears one sentence before the Hub is asked. HF_HUB_OFFLINE and VITREOUS_OFFLINE forbid asking.

    Raises:
        InputError: if the Hub does not answer, has no such files, or sends other ones than it says; says where to
            put them by hand.
    """
    repository, at, revision = name.partition("@")
    owner, _, model = repository.partition("/")
    misplaced = (at and not revision) or revision.startswith("/")
    if not owner or not model or "/" in model or ".." in name or misplaced:
        raise InputError(f"{name!r} is no model of the Hub; give hub:OWNER/NAME or hub:OWNER/NAME@REVISION")
    by_hand = cache_folder() / name
    if weights_in(by_hand):
        return by_hand

    from huggingface_hub import errors

    try:
        cached, complete = _cached(repository, revision or "main")
    except errors.HFValidationError:
        raise InputError(f"{repository!r} is no name of the Hub; give hub:OWNER/NAME") from None
    if cached and (complete or offline()):
        return cached
    instead = (
        f"put config.json and model.safetensors in {by_hand}, or give a weights file or folder, or train from scratch"
    )
    if offline():
        raise InputError(f"{name} is not on this machine and offline mode is on; {instead}")
    try:
        return _download(repository, revision or "main", instead=instead, progress=progress)
    except InputError:
        if cached and weights_in(cached):  # whole, as far as anyone without the Hub can tell
            return cached
        raise


def _cached(repository: str, revision: str) -> tuple[Path | None, bool]:
    """The folder of a revision in the Hub's cache if its weights are there, and whether nothing else can be missing."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        folder = Path(hub.snapshot_download(repository, revision=revision, allow_patterns=[], local_files_only=True))
    except errors.LocalEntryNotFoundError:
        return None, False
    if not weights_in(folder):
        return None, False
    unknown = [file for file in COMPANIONS if hub.try_to_load_from_cache(repository, file, revision=revision) is None]
    return folder, not unknown


def _download(repository: str, revision: str, *, instead: str, progress: Callable[[str], None] | None) -> Path:
    """What `_bring` brings, if the Hub answers; in one sentence why not, if that fails."""
    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    try:  # the client itself tries for 23 s
        hub.get_session().head(constants.ENDPOINT, timeout=PROBE_TIMEOUT_S)
    except Exception as error:  # httpx's or httpx2's, by the version of huggingface_hub
        raise InputError(f"cannot reach the Hub at {constants.ENDPOINT} for {repository}; {instead}") from error
    if progress is not None:
        progress(f"downloading {repository} from {constants.ENDPOINT}")
    try:
        return _bring(repository, revision, instead=instead)
    except InputError:
        raise
    except errors.GatedRepoError as error:
        raise InputError(f"{repository} asks for consent: accept its terms on the Hub and set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"the Hub has no model {repository} (or it is private: set HF_TOKEN)") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{repository} has no revision {revision!r}; give a branch, tag or commit of it") from error
    except errors.LocalEntryNotFoundError as error:  # the network broke off; a kind of EntryNotFoundError
        raise InputError(f"the Hub did not deliver {repository} (the connection broke); {instead}") from error
    except errors.EntryNotFoundError as error:
        raise InputError(f"{repository} lacks files that its index names; {instead}") from error
    except Exception as error:  # also the HTTP client's and the Xet client's
        if isinstance(error, OSError) and error.errno in FULL:
            raise InputError(
                f"cannot write to {constants.HF_HUB_CACHE} ({error.strerror}); make room there, "
                "or choose another folder with HF_HUB_CACHE"
            ) from error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"the Hub did not deliver {repository} ({reason}); {instead}") from error


def _bring(repository: str, revision: str, *, instead: str) -> Path:
    """The folder in the Hub's cache with the files of the commit that is now `revision`."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    info = hub.HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=ANSWER_TIMEOUT_S)
    sums = {file.rfilename: None if file.lfs is None else file.lfs.sha256 for file in info.siblings or ()}
    weights = _preferred(sums)
    if weights is None:
        raise InputError(_lacking(repository, sums, instead=instead))

    def take(file: str) -> Path:
        path = Path(hub.hf_hub_download(repository, file, revision=info.sha or revision))
        if (expected := sums.get(file)) is not None:
            _check(path, expected, instead=instead)
        return path

    for file in COMPANIONS:
        if file in sums:
            take(file)
        else:
            with suppress(errors.EntryNotFoundError):  # the cache remembers that there is none
                take(file)
    path = take(weights)
    if weights == INDEX:
        for shard in shards(path):
            take(shard)
    if revision != info.sha:  # last, so that the cache knows a branch only when its files are there
        hub.hf_hub_download(repository, COMPANIONS[0] if COMPANIONS[0] in sums else weights, revision=revision)
    return path.parent


def _lacking(repository: str, names: Iterable[str], *, instead: str) -> str:
    arrays = sorted(name for name in names if name.endswith(".npz") and "/" not in name)
    if arrays:
        return f"{repository} has several weights ({some(arrays)}); download the right one and give its path"
    kinds = f"{', '.join(WEIGHTS)} or a single .npz"
    return f"{repository} lacks weights ({kinds}), so vitreous cannot read it; {instead}"


def _check(path: Path, expected: str, *, instead: str) -> None:
    """Compare a file's sha256 with the Hub's; one that differs leaves the cache, with all that it links to."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == expected:
        return
    link = path
    while link.is_symlink():
        target = link.parent / link.readlink()
        link.unlink()
        link = target
    link.unlink(missing_ok=True)
    raise InputError(
        f"{path.name} came with the sha256 {found}, not {expected}, and was not kept; fetch it again, or {instead}"
    )
