"""The sets that test a classifier of ImageNet on other images, as they are handed out: `imagenet-a:PATH` and so on."""

from pathlib import Path

from vitreous.data.folders import list_folder
from vitreous.data.listing import Splits
from vitreous.data.source import Source
from vitreous.errors import InputError

CLASSES = {"imagenet-a": 200, "imagenet-r": 200, "imagenet-sketch": 1000, "imagenet-v2": 1000}
"""Natural adversarial examples (arXiv:1907.07174), renditions (arXiv:2006.16241), sketches (arXiv:1905.13549), and
new photos collected as the first were (arXiv:1902.10811)."""
SUBSETS = ("imagenet-a", "imagenet-r")
"""Those whose score counts among their own classes alone."""
NUMBERED = ("imagenet-v2",)
"""Those whose folders are called by the number of the class instead of its WordNet name."""
SEVERITIES = ("1", "2", "3", "4", "5")


def imagenet_set(name: str, folder: Path) -> Splits:
    """The images of a set in `CLASSES`, in one piece; classes are called as the folders are.

    Raises:
        InputError: if the folder is not there, or has not the classes of that set.
    """
    if not folder.is_dir():
        raise InputError(f"{name}:{folder}: no such folder; give the folder of its class folders")
    listing = list_folder(folder)
    if len(listing.source.classes) != CLASSES[name]:
        raise InputError(
            f"{name} has {CLASSES[name]} classes, {folder} has {len(listing.source.classes)}; give the whole set"
        )
    return Splits(listing.source, notes=listing.notes)


def corruptions(folder: Path) -> dict[str, dict[int, Source]]:
    """The images of ImageNet-C (arXiv:1903.12261) by corruption and severity: CORRUPTION/SEVERITY/CLASS/*.JPEG.

    Raises:
        InputError: if there are none.
    """
    if not folder.is_dir():
        raise InputError(f"imagenet-c:{folder}: no such folder; give the folder of its corruptions")
    found = {}
    for kind in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        if levels := [level for level in SEVERITIES if (kind / level).is_dir()]:
            found[kind.name] = {int(level): list_folder(kind / level).source for level in levels}
    if not found:
        raise InputError(f"imagenet-c:{folder} holds no CORRUPTION/SEVERITY/CLASS folders; give the folder above them")
    return found
