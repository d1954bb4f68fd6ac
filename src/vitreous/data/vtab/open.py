"""From the name of a task and a folder to its 800 training, 200 validation and all test images."""

from dataclasses import dataclass, field
from pathlib import Path

from vitreous import seeding
from vitreous.data.source import Source
from vitreous.data.vtab import copies, ids, natural, specialized, structured
from vitreous.data.vtab.files import Files
from vitreous.data.vtab.records import cut
from vitreous.data.vtab.tasks import FOLDERS, NUM_TRAIN, NUM_VAL, TASKS, Task, find_task
from vitreous.errors import InputError

READERS = {
    "caltech101": natural.caltech101,
    "cifar100": natural.cifar100,
    "dtd": natural.dtd,
    "flowers102": natural.flowers102,
    "pets": natural.pets,
    "sun397": natural.sun397,
    "svhn": natural.svhn,
    "camelyon": specialized.camelyon,
    "eurosat": specialized.eurosat,
    "resisc45": specialized.resisc45,
    "retinopathy": specialized.retinopathy,
    "clevr-count": structured.clevr,
    "clevr-dist": structured.clevr,
    "dmlab": structured.dmlab,
    "dsprites-loc": structured.dsprites,
    "dsprites-ori": structured.dsprites,
    "kitti": structured.kitti,
    "snorb-azim": structured.smallnorb,
    "snorb-elev": structured.smallnorb,
}


@dataclass(frozen=True)
class VtabTask:
    """The images of one task; all three sources count labels in the same classes."""

    task: Task
    train: Source
    val: Source
    test: Source
    official: bool
    """Whether these are VTAB-1k's own images, and not a choice of ours."""
    split: str
    """Where the choice of images comes from, in a sentence."""
    notes: list[str] = field(default_factory=list)
    """What else a person who compares figures must know, one line each."""

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of the labels."""
        return self.train.classes


def find_tasks(folder: Path) -> dict[str, Path]:
    """The folder of each task that is below `folder`, by the task's name, in the order of the paper's table.

    Raises:
        InputError: if there is none.
    """
    if not folder.is_dir():
        raise InputError(f"vtab:{folder}: no such folder; give one that holds a folder for each task")
    found = {}
    for name in TASKS:
        places = (folder / called for called in (name, *FOLDERS.get(name, ())))
        if (place := next((place for place in places if place.is_dir()), None)) is not None:
            found[name] = place
    if not found:
        raise InputError(f"vtab:{folder} holds no folder of a task; call them {', '.join(TASKS)}")
    return found


def open_task(
    name: str, folder: Path, *, seed: int = 0, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL
) -> VtabTask:
    """The task called `name` from what lies in `folder`; nothing is downloaded or unpacked to disk.

    Looked for in this order: id lists (`train800.txt` and so on), parquet files, class folders in `train` and `test`,
    the original files. `vitreous.data.vtab.records` says which images are taken and when they are the official ones.

    Raises:
        InputError: if the name is unknown, or a file is missing or damaged; says which, and where it comes from.
    """
    task = find_task(name)
    try:
        opened = _open(task, Path(folder), seed=seed, num_train=num_train, num_val=num_val)
        for source in (opened.train, opened.val, opened.test):
            if len(source) == 0 or source.labels.min() < 0 or source.labels.max() >= len(source.classes):
                raise InputError(
                    f"labels in {folder} are not those of {len(source.classes)} classes: files are damaged"
                )
    except InputError as error:
        raise InputError(f"{task.title} of VTAB: {error} (the files are from {task.url})") from None
    opened.notes.extend([task.note] * bool(task.note))
    if len(opened.classes) != task.num_classes:
        opened.notes.append(f"{len(opened.classes)} classes are here, of {task.num_classes}")
    if len(opened.test) != task.num_test:
        opened.notes.append(f"{len(opened.test):,} images to test on are here, of {task.num_test:,}")
    return opened


def _open(task: Task, path: Path, *, seed: int, num_train: int, num_val: int) -> VtabTask:
    lists = ids.read_lists(path)
    if lists is not None and (sources := ids.listed_files(lists, path, task)):
        train, val, test = sources
        return VtabTask(task, train, val, test, lists.official, _listed(lists))
    splits = None if lists is not None else copies.parquet(path, task) or copies.class_folders(path)
    if splits is not None:
        return _drawn(task, splits, seed=seed, num_train=num_train, num_val=num_val)

    files = Files(task, path)
    records = READERS[task.name](files, seed)
    if lists is None:
        parts = cut(records, task, seed=seed, num_train=num_train, num_val=num_val)
        train, val, test, official, split = parts.train, parts.val, parts.test, parts.official, parts.split
    else:
        records, train, val, test = ids.listed_in(records, lists, task)
        official, split = lists.official, _listed(lists)
    of = {name: part.source for name, part in records.items()}
    train, val, test = of["train"].select(train), of[task.val[0]].select(val), of[task.test[0]].select(test)
    return VtabTask(task, train, val, test, official, split, [note for part in files.opened for note in part.notes])


def _listed(lists: ids.Lists) -> str:
    """The sentence on a split that was given."""
    if lists.official:
        return f"from the id lists {lists.files}, as many as VTAB-1k's"
    return f"from {lists.files}, with {len(lists.train)} and {len(lists.val)} images: not VTAB-1k's ids"


def _drawn(task: Task, splits: dict[str, Source], *, seed: int, num_train: int, num_val: int) -> VtabTask:
    """A choice of ours from splits whose images have lost their names."""
    order = {
        name: seeding.generator(seed, f"vtab {task.name} {name}").permutation(len(source))
        for name, source in splits.items()
    }
    pool, start = ("val", 0) if "val" in splits else ("train", num_train)
    train, val = order["train"][:num_train], order[pool][start : start + num_val]
    if len(train) < num_train or len(val) < num_val:
        raise InputError(
            f"it holds {len(order['train']):,} images to train on; VTAB takes {num_train} and {num_val} to validate on"
        )
    chosen = [splits["train"].select(train), splits[pool].select(val)]
    chosen = [copies.HeldSource(part) if isinstance(part, copies.ParquetSource) else part for part in chosen]
    return VtabTask(task, *chosen, splits["test"], False, f"drawn here with seed {seed}: not the official ids")
