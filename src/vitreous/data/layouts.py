"""From what the user names to sources: folders, tars, manifests, addresses and the data sets known by name."""

import difflib
import os
import re
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from vitreous.console import Console
from vitreous.data import imagenet, named
from vitreous.data.archives import TAR_SUFFIXES, list_archive
from vitreous.data.folders import list_folder
from vitreous.data.listing import NO_LABELS, Listing, Splits
from vitreous.data.manifest import MANIFEST_SUFFIXES, list_manifest
from vitreous.data.parquet import PARQUET_SUFFIX, list_parquet, parquet_files
from vitreous.data.remote import Remote, is_url, list_remote
from vitreous.data.shard_listing import braces, list_indexed, list_shard_folder, list_shards
from vitreous.data.source import Source
from vitreous.errors import InputError, did_you_mean, some

NAMED_FOLDERS = {
    "cifar10": named.cifar10,
    "fashion-mnist": named.fashion_mnist,
    **{name: partial(imagenet.imagenet_set, name) for name in imagenet.CLASSES},
}


def open_data(path_or_name: str, *, val: str | None = None, remote: Remote | None = None) -> Splits:
    """The data at a path, or of a known name, in the splits it comes with; looks at names, not at images.

    Classes are in natural order (`class 9` before `class 10`, case ignored), except where a named data
    set has its own. `val` names other data to measure on, in place of what the first holds out; its classes are
    matched by name to those of the first, and of its own splits val counts, else test. `remote` says how what is an
    address is fetched.

    Raises:
        InputError: if nothing usable is there; says what was found and what is needed.
    """
    remote = remote or Remote()
    splits = _named(path_or_name) or _listing(path_or_name, remote).as_splits()
    if val is not None:
        for name in ("val", "test"):
            if getattr(splits, name) is not None:
                splits.notes.append(f"the {name} images of {path_or_name} are not used, since {val} is given")
        other = _named(val)
        if other is not None:
            held_out, notes = (other.val or other.test or other.train).with_classes(splits.train.classes), other.notes
        else:
            listing = _listing(val, remote)
            held_out, notes = listing.as_held_out(splits.train.classes), listing.notes
            splits.missing = {**splits.missing, **listing.missing}
        splits.train, held_out = _alike(splits.train, held_out, val)
        splits.val, splits.test = held_out, None
        splits.notes += [f"{val}: {note}" for note in notes]
    for split, source in splits.named().items():
        absent = [name for name, count in zip(source.classes, source.class_counts()) if not count]
        if absent:
            splits.notes.append(f"{split} has no images of {some(absent)}")
    return splits


def open_held_out(path_or_name: str, *, console: Console | None = None) -> tuple[str, Source, list[str]]:
    """The images at a path, or of a known name, to measure a model on: name of their split, images, notes.

    Of several splits test counts, else val, else train; data in one piece are called `all`. One class is
    enough. Classes are those of the images, in natural order. `console` shows what is fetched.

    Raises:
        InputError: if nothing usable is there or it has no labels; says what was found and what is needed.
    """
    if (splits := _named(path_or_name)) is not None:
        name, source = list(splits.named().items())[-1]
        return ("all" if name == "train" else name), source, splits.notes
    listing = _listing(path_or_name, Remote(console=console or Console()))
    for split in ("test", "val", "", "train"):
        if (source := listing.part(split)) is not None:
            present = [source.classes[label] for label in np.flatnonzero(source.class_counts())]
            if not present:
                raise InputError(f"{path_or_name} has no labels to measure by ({NO_LABELS})")
            return split or "all", source.with_classes(present), listing.notes
    raise InputError(f"{path_or_name} holds no labelled images; give class folders with images in them")


def _alike(train: Source, held_out: Source, val: str) -> tuple[Source, Source]:
    """Both with labels of one kind; positions of sets count in the same for both."""
    if train.classes and (held_out.labels < 0).any():
        raise InputError(f"{val} has no labels to measure by ({NO_LABELS})")
    if not train.multi_label and held_out.multi_label:
        raise InputError(f"the images of {val} show several classes, the training images one each; give one kind")
    if not train.multi_label:
        return train, held_out
    held_out = held_out.as_multi_label(train.sets)
    return train.as_multi_label(held_out.sets), held_out


def absolute(path_or_name: str, folder: Path) -> str:
    """`path_or_name` with its path, if it has one, counted from `folder` and resolved."""
    name, colon, path = path_or_name.partition(":")
    if colon and name in NAMED_FOLDERS:
        return f"{name}:{absolute(path, folder)}"
    if _is_digits(path_or_name) or is_url(path_or_name):
        return path_or_name
    return os.path.realpath(folder / os.path.expanduser(path_or_name))


def short_name(path_or_name: str) -> str:
    """One word for the data, such as a run may be called by; "" for the root of the file system."""
    name, colon, _ = path_or_name.partition(":")
    if (colon and name in NAMED_FOLDERS) or _is_digits(path_or_name):
        return name
    path = urlsplit(path_or_name).path if is_url(path_or_name) else path_or_name
    return re.split(r"[-_]?\{|\.", Path(os.path.realpath(path)).name)[0]


def _is_digits(text: str) -> bool:
    return text == "digits" and not os.path.exists(text)


def _named(text: str) -> Splits | None:
    """The data set of that name, or None if `text` is a path."""
    if not text:
        raise InputError("the name of the data is empty; give a folder, a tar, a list or a known name")
    name, colon, folder = text.partition(":")
    if _is_digits(text):
        return named.digits()
    if colon and name in NAMED_FOLDERS:
        return NAMED_FOLDERS[name](Path(os.path.expanduser(folder)))
    if name in NAMED_FOLDERS and not os.path.exists(text):
        raise InputError(f"{name} needs the folder of its files: give {name}:PATH")
    return None


def _listing(text: str, remote: Remote) -> Listing:
    if is_url(text):
        return list_remote(text, remote)
    path = Path(os.path.expanduser(text))
    if path.is_dir():
        shards = list_shard_folder(path)
        return shards or (list_parquet(path) if parquet_files(path) else list_folder(path))
    if "{" in text and not path.exists():
        return list_shards([Path(os.path.expanduser(name)) for name in braces(text)], given=text)
    if not path.exists():
        raise InputError(f"no such file or folder: {text}{_suggestion(path, text)}")
    if not path.is_file():
        raise InputError(f"{text} is neither a folder nor a regular file; give one of the two")
    if path.name.lower().endswith(TAR_SUFFIXES):
        return list_indexed([path], given=text) or list_archive(path)
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        return list_manifest(path)
    if path.suffix.lower() == PARQUET_SUFFIX:
        return list_parquet(path)
    raise InputError(
        f"{text} is no data set; give a folder of class folders, a tar ({', '.join(TAR_SUFFIXES)}; "
        f"unpack other archives), parquet or a list of images ({', '.join(MANIFEST_SUFFIXES)})"
    )


def _suggestion(path: Path, text: str) -> str:
    """Near names in the folder where `path` should be, or of the data sets we know."""
    if ":" in text or not path.parent.name:
        known = [name.partition(":")[0] for name in named.NAMES]
        if difflib.get_close_matches(text.partition(":")[0].lower(), known):
            return did_you_mean(text.partition(":")[0], named.NAMES)
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, 2)
    if near:
        return f"; did you mean {' or '.join(str(path.with_name(name)) for name in near)}?"
    return f"; known by name are {', '.join(named.NAMES)}"
