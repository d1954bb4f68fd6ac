"""The Hugging Face Hub: fetch a model once, and say at once when that cannot be."""

import os
from collections.abc import Callable
from pathlib import Path

from vitreous.errors import InputError

FILES = ("config.json", "model.safetensors")
PROBE_TIMEOUT_S = 4


def cache_folder() -> Path:
    """Where a model fetched by hand is looked for: $VITREOUS_CACHE, or vitreous/ among the user's caches."""
    if folder := os.environ.get("VITREOUS_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitreous"


def offline() -> bool:
    """Whether HF_HUB_OFFLINE or VITREOUS_OFFLINE forbids asking the Hub."""
    chosen = (os.environ.get(name, "").lower() for name in ("HF_HUB_OFFLINE", "VITREOUS_OFFLINE"))
    return any(value in ("1", "true", "yes", "on") for value in chosen)


def fetch(repository: str, *, progress: Callable[[str], None] | None = None) -> Path:
    """A folder with config.json and model.safetensors of the Hub's `owner/name`, from disk where it is there.

    `progress` hears one sentence before the Hub is asked. HF_HUB_OFFLINE and VITREOUS_OFFLINE forbid asking.

    Raises:
        InputError: if the Hub does not answer or has no such files; says where to put them by hand.
    """
    owner, _, name = repository.partition("/")
    if not owner or not name or "/" in name or ".." in repository:
        raise InputError(f"{repository!r} is no model of the Hub; give hub:OWNER/NAME")
    by_hand = cache_folder() / owner / name
    if (by_hand / FILES[1]).is_file():
        return by_hand

    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    try:
        cached = [hub.try_to_load_from_cache(repository, file) for file in FILES]
    except errors.HFValidationError:
        raise InputError(f"{repository!r} is no name of the Hub; give hub:OWNER/NAME") from None
    if all(isinstance(path, str) for path in cached):
        return Path(str(cached[1])).parent
    instead = f"put {' and '.join(FILES)} in {by_hand}, or give a weights file or folder, or train from scratch"
    if offline():
        raise InputError(f"{repository} is not on this machine and offline mode is on; {instead}")
    try:  # the client itself tries for 23 s
        hub.get_session().head(constants.ENDPOINT, timeout=PROBE_TIMEOUT_S)
    except Exception as error:  # httpx's or httpx2's, by the version of huggingface_hub
        raise InputError(f"cannot reach the Hub at {constants.ENDPOINT} for {repository}; {instead}") from error
    if progress is not None:
        progress(f"downloading {repository} from {constants.ENDPOINT}")
    try:
        paths = [hub.hf_hub_download(repository, file) for file in FILES]
    except errors.GatedRepoError as error:
        raise InputError(f"{repository} asks for consent: accept its terms on the Hub and set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"the Hub has no model {repository} (or it is private: set HF_TOKEN)") from error
    except errors.LocalEntryNotFoundError as error:  # the network broke off; a kind of EntryNotFoundError
        raise InputError(f"the Hub did not deliver {repository} (the connection broke); {instead}") from error
    except errors.EntryNotFoundError as error:
        raise InputError(f"{repository} lacks {' or '.join(FILES)}, so vitreous cannot read it; {instead}") from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise InputError(
            f"the Hub did not deliver {repository} ({str(error).partition(chr(10))[0]}); {instead}"
        ) from error
    return Path(paths[1]).parent
