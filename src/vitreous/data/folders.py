"""Class folders: `cat/1.jpg`, or `train/cat/1.jpg` and `test/cat/2.jpg`."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vitreous.data.listing import IMAGE_SUFFIXES, Listing, class_name, is_junk, natural, number, split_name
from vitreous.data.source import FileSource
from vitreous.errors import InputError, some

SIDE_FILES = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".md", ".yaml", ".yml", ".html", ".pdf")


def list_folder(root: Path) -> Listing:
    """Every file in the class folders below `root`, at any depth.

    Classes are in natural order. Folders called train, val, test (or a synonym, in any case) that
    hold folders are splits. Hidden files and system files are skipped; whether a file is an image is
    for its content to say, later. Without class folders, images in `root` or in its splits are unlabelled: there a
    suffix tells them.

    Raises:
        InputError: if there are no images.
    """
    folders, files = children(root)
    splits = _split_folders(root, folders)
    notes: list[str] = []
    if splits and ("train" in splits or all(split_name(name) for name in folders)):
        others = [name for name in folders if name not in splits.values()]
        unlabelled = [name for name in others if split_name(name)]
        if unlabelled:
            notes.append(f"{some(unlabelled)} without class folders: images without labels are not used")
        if strangers := [name for name in others if not split_name(name)]:
            notes.append(f"folders beside the splits are not used: {some(strangers)}")
    elif not folders or all(split_name(name) for name in folders):
        return _unlabelled(root, folders, files)
    else:
        for split, folder in splits.items():
            inner = children(root / folder)[0]
            if both := [name for name in inner if name in folders]:
                raise InputError(
                    f"{root} holds the class {both[0]} and a {split} split {folder} with that class in it; "
                    "put the classes beside it into a folder train"
                )
        splits = {"": ""}
    if strays := [name for name in files if not name.lower().endswith(SIDE_FILES)]:
        notes.append(f"{len(strays)} files beside the folders are not used: {some(strays)}")

    names, labels, of_split = [], [], []
    for split, folder in splits.items():
        base = os.path.join(root, folder)
        inside, strays = children(Path(base))
        if split and strays:
            notes.append(f"{len(strays)} files beside the class folders of {folder} are not used: {some(strays)}")
        for name in inside:
            found = list(walk_files(base, name, notes))
            if not found:
                notes.append(f"class folder {os.path.join(folder, name)} is empty and no class")
            names += [os.path.join(folder, path) for path in found]
            labels += [class_name(name)] * len(found)
            of_split += [split] * len(found)
    if not names:
        raise InputError(f"the folders in {root} are empty; put the images of each class into its folder")
    classes, numbers = number(labels)
    names = [name.replace(os.sep, "/") for name in names]
    return Listing(str(root), FileSource(root, names, classes=classes, labels=numbers), of_split, notes)


def _unlabelled(root: Path, folders: list[str], files: list[str]) -> Listing:
    """The images in `root`, or where it has none, in its `folders`, which are splits."""
    names, splits = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)], []
    others = len(files) - len(names)
    if not names:
        for folder in folders:
            inside = children(root / folder)[1]
            images = [f"{folder}/{name}" for name in inside if name.lower().endswith(IMAGE_SUFFIXES)]
            names += images
            splits += [split_name(folder)] * len(images)
            others += len(inside) - len(images)
    if not names:
        raise InputError(_no_classes(root, files))
    notes = ["there are no class folders: the images have no labels"]
    if others:
        notes.append(f"{others} files without a suffix of images are not used")
    source = FileSource(root, names, classes=(), labels=np.full(len(names), -1))
    return Listing(str(root), source, splits or [""] * len(names), notes)


def children(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the other entries in `folder`, in natural order, without junk.

    Raises:
        InputError: if the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries if not is_junk(entry.name)]
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}; check its permissions") from None
    found.sort(key=lambda entry: natural(entry[0]))
    return [name for name, is_folder in found if is_folder], [name for name, is_folder in found if not is_folder]


def _split_folders(root: Path, folders: list[str]) -> dict[str, str]:
    """The folder of each split. One that holds no folders is taken for a class of that name."""
    splits: dict[str, str] = {}
    for folder in folders:
        split = split_name(folder)
        if split and children(root / folder)[0]:
            if split in splits:
                raise InputError(f"{root} has both {splits[split]} and {folder}; keep one of them")
            splits[split] = folder
    order = ("train", "val", "test")
    return {split: splits[split] for split in order if split in splits}


def walk_files(base: str, folder: str, notes: list[str]) -> Iterator[str]:
    """Paths relative to `base` of all files below `folder`, in natural order.

    A linked folder is followed, unless that would lead to files which are found without the link,
    or round in a circle.
    """
    seen: set[tuple[int, int]] = set()
    whole = Path(base).resolve()
    waiting = [folder]
    while waiting:
        folder = waiting.pop()
        here = os.path.join(base, folder)
        if os.path.islink(here):
            target = Path(here).resolve()
            if target.is_relative_to(whole) or whole.is_relative_to(target):
                notes.append(f"link {folder} leads to a folder that is read anyway, and is skipped")
                continue
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            notes.append(f"link {folder} leads to a folder that was read already, and is skipped")
            continue
        seen.add((status.st_dev, status.st_ino))
        folders, files = children(Path(here))
        yield from (os.path.join(folder, name) for name in files)
        waiting += [os.path.join(folder, name) for name in reversed(folders)]


def _no_classes(root: Path, files: list[str]) -> str:
    """Why `root` is no data set, and what to do about it."""
    for name in files:
        if name.lower().endswith((".tar", ".tar.gz", ".tgz", ".csv", ".tsv", ".jsonl")):
            return f"{root} holds no class folders; give the file in it itself, such as {root / name}"
    return f"{root} holds no images; give a folder with one folder of images for each class"
