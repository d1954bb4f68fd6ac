"""Opening a trained model by whatever name the user has for it."""

import os
from collections.abc import Callable
from pathlib import Path

from vitreous.errors import InputError, did_you_mean, some
from vitreous.variants import PUBLISHED, encoder
from vitreous.weights import hub
from vitreous.weights.dcp import METADATA
from vitreous.weights.download import download, google
from vitreous.weights.product import CONFIG, WEIGHTS, Product, load_product
from vitreous.weights.read import SUFFIXES, read_config

PREFIXES = {"timm:": "timm/", "hub:": "", "hf:": "", "hf-hub:": "", "hf_hub:": ""}
FORMS = "a run folder, a weights file, timm:NAME.TAG, hf:OWNER/NAME or google:DIRECTORY/NAME.npz"


def open_model(name: str, *, progress: Callable[[str], None] | None = None) -> Product:
    """The trained model that `name` means, on the CPU, in float32 and evaluation mode.

    `name` is a run folder, a product folder, a weights file, "timm:NAME.TAG", "hf:OWNER/NAME" (or "hub:..."), each
    with "@REVISION" if need be, or "google:DIRECTORY/NAME.npz" of the paper's own bucket. `progress` hears one
    sentence before anything slow, and one on what had to be assumed or stays behind.

    Raises:
        InputError: if there is none, or it cannot be read; says what to give.
    """
    if not name:
        raise InputError(f"the name of the model is empty; give {FORMS}")
    product = _opened(name, progress)
    for key in ("assumed", "left"):
        if progress is not None and key in product.extra:
            progress(f"{name}: {product.extra[key]}")
    return product


def _opened(name: str, progress: Callable[[str], None] | None) -> Product:
    for prefix, owner in PREFIXES.items():
        if name.startswith(prefix):
            return load_product(hub.fetch(owner + name.removeprefix(prefix), progress=progress))
    if name.startswith("google:"):
        file = download(google(name.removeprefix("google:")), progress=progress)
        return load_product(file.parent, weights=file.name)
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return load_product(path.parent, weights=path.name)
    raise InputError(f"there is no model {name!r}{_hint(name, path)}")


def _open_folder(folder: Path) -> Product:
    if (folder / "model" / CONFIG).is_file():
        return load_product(folder / "model")
    if (folder / METADATA).is_file():
        return load_product(folder, weights=".")
    if (folder / CONFIG).is_file():
        if hub.weights_in(folder) is None:
            if (folder / hub.INDEX).is_file():
                missing = [shard for shard in hub.shards(folder / hub.INDEX) if not (folder / shard).is_file()]
                raise InputError(f"{folder} lacks {some(missing)}, which {hub.INDEX} names; copy all files of a model")
            raise InputError(f"{folder} has {CONFIG} but no {WEIGHTS}; copy both files of a model")
        return load_product(folder)
    if (folder / "run.json").is_file():
        command = read_config(folder / "run.json").get("command", "the command that began it")
        raise InputError(f"the run {folder} is not finished, so it has no model yet; go on with: {command}")
    weights = sorted(file.name for file in folder.iterdir() if file.suffix in SUFFIXES)
    more = f"; give one of its files: {', '.join(weights[:5])}" if weights else ""
    raise InputError(f"{folder} is neither a run nor a model folder ({CONFIG}, {WEIGHTS}){more}")


def _hint(name: str, path: Path) -> str:
    try:
        encoder(name)
    except InputError:
        siblings = [str(path.parent / entry.name) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = did_you_mean(name, [*siblings, *PUBLISHED])
        forms = f"; give {FORMS}"
        return near if "did you mean" in near else forms
    return ": that is a shape without weights, for --model; trained weights are timm:NAME.TAG or a path"
