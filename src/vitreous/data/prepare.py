"""Before training: every image is looked at, bad ones and copies are set aside, and a part is held out."""

import csv
import hashlib
import io
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitreous.console import Console
from vitreous.data.data_config import MISSING, DataConfig
from vitreous.data.duplicates import Duplicates, find_duplicates
from vitreous.data.listing import Splits
from vitreous.data.source import Source
from vitreous.data.split import iterative, stratified
from vitreous.data.survey import Survey, survey
from vitreous.errors import InputError, some
from vitreous.files import csv_text

SHOWN = 20
COLUMNS = ("split", "file", "label", "note")
EXCLUDED, UNREADABLE = "excluded", "unreadable"
"""In place of a split, in split.csv."""


@dataclass(frozen=True)
class BadFile:
    """A file of the data set that gives no image."""

    name: str
    split: str
    reason: str


class BadData(InputError):
    """Too many files cannot be read; `bad` lists them all."""

    def __init__(self, message: str, bad: list[BadFile]):
        super().__init__(message)
        self.bad = bad


@dataclass(frozen=True)
class Excluded:
    """A readable image that is left out of training."""

    name: str
    label: str
    note: str


@dataclass(frozen=True)
class Prepared:
    """Data to train and measure on, and what there is to know about them."""

    train: Source
    val: Source | None
    test: Source | None
    classes: tuple[str, ...]
    summary: dict[str, Any]
    """Counts, sizes, formats, bad files and duplicates, as plain JSON."""
    bad: list[BadFile]
    excluded: list[Excluded]
    fingerprint: str
    """Equal for equal images, names, labels and splits."""
    stamp: str | None = None
    """Equal as long as `recall` may give this again; None where that cannot be told."""
    dev: Source | None = None
    """Training images held back to choose settings by; then there is neither `val` nor `test`."""

    @property
    def held_out(self) -> tuple[str, Source]:
        """The name and the images of the split to report on: dev or test where there is one, else val."""
        if self.dev is not None:
            return "dev", self.dev
        if self.test is not None:
            return "test", self.test
        assert self.val is not None, "prepare always holds something out"
        return "val", self.val

    def split_csv(self) -> str:
        """Every image with its split and label, or why it is not used; `reopen` and `recall` read it back."""
        rows: list[tuple[str, str, str, str]] = [COLUMNS]
        for split, source in _present(train=self.train, val=self.val, test=self.test, dev=self.dev).items():
            names = (source.name(i) for i in range(len(source)))
            rows += [(split, name, source.label(i), "") for i, name in enumerate(names)]
        rows += [(EXCLUDED, image.name, image.label, image.note) for image in self.excluded]
        rows += [(UNREADABLE, file.name, "", f"{file.split}: {file.reason}") for file in self.bad]
        return csv_text(rows)


def prepare(
    config: DataConfig,
    *,
    check: Callable[[Splits], None] = lambda opened: None,
    progress: Callable[[int, int], None] | None = None,
    console: Console | None = None,
    begun: dict[str, Any] | None = None,
) -> Prepared:
    """Look at every image that `config` names, and say what to train and what to measure on.

    Splits that exist are kept. Data in one piece are split by class, the held-out part is called test.
    Unreadable files are left out and counted; `duplicates` says which copies are. `check` may refuse the data before
    images are looked at. `progress` gets the number of images done and of all; `console` shows what is fetched. `begun`
    is the run.json of a run that goes on: it left out the shards that it will leave out, and stops where another is
    missing.

    Raises:
        BadData: if more than `max_bad_ratio` of the files are unreadable, unless `allow_bad`.
        InputError: if the data cannot be used; the message says why and what to do.
    """
    start = time.monotonic()
    opened = config.open(console=console, begun=begun)
    check(opened)
    for source in opened.named().values():
        source.bring()
    seen = _seen(opened, config)  # first, so that what changes while it is looked at is looked at again
    sources, notes, classes = opened.named(), list(opened.notes), opened.train.classes
    surveys = _survey_all(sources, progress)
    bad = [
        BadFile(sources[split].name(i), split, reason)
        for split, found in surveys.items()
        for i, reason in sorted(found.bad.items())
    ]
    _check_bad(bad, sum(map(len, sources.values())), config)
    bad += [BadFile(url, "", reason) for url, reason in opened.missing.items()]

    digests = {split: found.digests for split, found in surveys.items()}
    duplicates = find_duplicates(digests, {split: source.labels for split, source in sources.items()})
    groups = _groups(duplicates, sources)
    excluded = [
        Excluded(sources[split].name(i), sources[split].label(i), note)
        for (split, i), note in duplicates.excluded.items()
    ]
    rows = {split: _kept(found, split, duplicates) for split, found in surveys.items()}
    if list(rows) == ["train"]:
        rows = _hold_out(sources["train"], rows["train"], digests["train"], config, part="test")
        sources["test"], digests["test"] = sources["train"], digests["train"]
        notes.append(f"{len(rows['test'])} images are held out as test (seed {config.split_seed})")
    if config.dev_ratio:
        apart = " and ".join(f"{len(rows[split]):,} {split}" for split in rows if split != "train")
        rows = _hold_out(sources["train"], rows["train"], digests["train"], config, part="dev")
        sources["dev"], digests["dev"] = sources["train"], digests["train"]
        notes.append(f"{len(rows['dev']):,} training images are held back as dev; the {apart} images are not measured")
    if "val" in rows and "test" in rows:
        notes.append(f"the {len(rows['val']):,} val images are held out, too; what is measured is test")
    final = {split: sources[split].select(rows[split]) for split in rows}
    _check_classes(final["train"])
    for split, source in final.items():
        if not len(source):
            raise InputError(f"no image of {split} is usable; repair them or remove that split")

    summary = {
        "path": config.path,
        "num_images": sum(map(len, final.values())),
        "images": {split: len(source) for split, source in final.items()},
        "splits": {split: dict(zip(classes, source.class_counts().tolist())) for split, source in final.items()},
        "classes": list(classes),
        "multi_label": final["train"].multi_label,
        **_looks(list(surveys.values())),
        "bad": {"count": len(bad), "first": [vars(file) for file in bad[:SHOWN]]},
        **({MISSING: list(opened.missing)} if opened.missing else {}),
        "duplicates": groups,
        "excluded": len(excluded),
        "notes": notes,
        "seconds": round(time.monotonic() - start, 3),
    }
    fingerprint = _fingerprint({split: (final[split], digests[split][rows[split]]) for split in final})
    splits = (final["train"], final.get("val"), final.get("test"))
    prepared = Prepared(*splits, classes, summary, bad, excluded, fingerprint, dev=final.get("dev"))
    return replace(prepared, stamp=_stamp(seen, prepared.split_csv()))


def recall(
    config: DataConfig, *, split_csv: str, record: dict[str, Any], console: Console | None = None
) -> Prepared | None:
    """What `prepare` gave when a run was begun, without looking at the images again; None if they may have changed.

    `split_csv` is the run's split.csv, `record` its run.json with the summary as `data`, `data_fingerprint` and
    `data_stamp`. Names, labels, sizes and times of change of the files, `config` and `split_csv` must all be as they
    were; of pixels in memory, the pixels.

    Raises:
        InputError: if the data are no longer where `config` says.
    """
    opened = config.open(console=console, begun=record)
    stamp = _stamp(_seen(opened, config), split_csv)
    if stamp is None or stamp != record.get("data_stamp") or not {"data", "data_fingerprint"} <= record.keys():
        return None
    splits, rows = _chosen(opened, config, split_csv)
    excluded = [Excluded(file, label, note) for file, label, note in rows.get(EXCLUDED, [])]
    notes = [(file, note.partition(": ")) for file, _, note in rows.get(UNREADABLE, [])]
    bad = [BadFile(file, split, reason) for file, (split, _, reason) in notes]
    sources = (splits["train"], splits.get("val"), splits.get("test"))
    classes, summary, fingerprint = opened.train.classes, record["data"], record["data_fingerprint"]
    return Prepared(*sources, classes, summary, bad, excluded, fingerprint, stamp, splits.get("dev"))


def reopen(config: DataConfig, split_csv: str, *, record: dict[str, Any] | None = None) -> dict[str, Source]:
    """The splits that `Prepared.split_csv` wrote, by name, without looking at the images again.

    `record` is the run.json beside it, which says what shards were left out.

    Raises:
        InputError: if the list is damaged, the data are no longer where `config` says or lack a file of it.
    """
    opened = config.open(begun=record or {})
    return _chosen(opened, config, split_csv)[0]


def _chosen(
    opened: Splits, config: DataConfig, split_csv: str
) -> tuple[dict[str, Source], dict[str, list[tuple[str, str, str]]]]:
    """The splits of `split_csv`, by name, and its rows of images that are in none."""
    header, *rows = csv.reader(io.StringIO(split_csv, newline="")) if split_csv else [[]]
    if tuple(header) != COLUMNS or not rows or any(len(row) != len(COLUMNS) for row in rows):
        raise InputError("split.csv of the run is damaged; begin again with another --out")
    listed: dict[str, list[tuple[str, str, str]]] = {}
    for split, file, label, note in rows:
        listed.setdefault(split, []).append((file, label, note))
    unused = {kind: listed.pop(kind) for kind in (EXCLUDED, UNREADABLE) if kind in listed}
    sources, found = opened.named(), {}
    for split, images in listed.items():
        source = sources.get(split, sources["train"])
        places: dict[str, list[int]] = {}
        for i in reversed(range(len(source))):  # a list may name a file twice, with two labels
            places.setdefault(source.name(i), []).append(i)
        names = [name for name, _, _ in images]
        if missing := [name for name, count in Counter(names).items() if count > len(places.get(name, []))]:
            raise InputError(f"{config.path} no longer has {some(missing, most=1)} of split.csv")
        found[split] = source.select([places[name].pop() for name in names])
    return found, unused


def _present(**sources: Source | None) -> dict[str, Source]:
    return {name: source for name, source in sources.items() if source is not None}


def _survey_all(sources: dict[str, Source], progress: Callable[[int, int], None] | None) -> dict[str, Survey]:
    total, before, surveys = sum(map(len, sources.values())), 0, {}
    for split, source in sources.items():

        def advance(done: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        surveys[split] = survey(source, progress=advance)
        before += len(source)
    return surveys


def _check_bad(bad: list[BadFile], num_images: int, config: DataConfig) -> None:
    if len(bad) < num_images and (config.allow_bad or len(bad) <= config.max_bad_ratio * num_images):
        return
    first = "; ".join(f"{file.name}: {file.reason}" for file in bad[:3])
    advice = (
        "give images"
        if len(bad) == num_images
        else "repair or remove them, or go on without by --allow-bad (train: --data.allow_bad true)"
    )
    raise BadData(
        f"{len(bad)} of {num_images} files give no image ({first}{'; ...' if bad[3:] else ''}); {advice}", bad
    )


def _kept(found: Survey, split: str, duplicates: Duplicates) -> np.ndarray:
    """Positions of the images of `split` that are readable and no unwanted copies."""
    unwanted = [i for name, i in duplicates.excluded if name == split]
    return np.setdiff1d(found.usable, np.array(unwanted, dtype=np.int64))


def _hold_out(
    source: Source, rows: np.ndarray, digests: np.ndarray, config: DataConfig, *, part: str
) -> dict[str, np.ndarray]:
    """`rows` of `source` in two parts, train and `part`."""
    labels, digests, classes, seed = source.labels[rows], digests[rows], source.classes, config.split_seed
    _check_classes(source.select(rows))
    ratio = config.dev_ratio if part == "dev" else config.holdout_ratio
    if source.sets is None:
        held_out = stratified(labels, digests=digests, classes=classes, ratio=ratio, seed=seed)
    else:
        held_out = iterative(labels, source.sets, digests=digests, num_classes=len(classes), ratio=ratio, seed=seed)
    return {"train": rows[~held_out], part: rows[held_out]}


def _check_classes(train: Source) -> None:
    if empty := [name for name, count in zip(train.classes, train.class_counts()) if not count]:
        are = f"class {empty[0]} is" if len(empty) == 1 else f"classes {some(empty)} are"
        raise InputError(
            f"{are} left without a usable training image "
            "(unreadable, or a copy of a held-out or otherwise labelled image); "
            "add images or remove the class"
        )


def _looks(surveys: list[Survey]) -> dict[str, Any]:
    """Sizes, formats and modes over all splits."""
    sizes = {}
    for side in ("width", "height"):
        values = np.concatenate([getattr(found, f"{side}s")[found.usable] for found in surveys])
        sizes[side] = {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}
    return {
        "sizes": sizes,
        "formats": dict(sum((found.formats for found in surveys), Counter()).most_common()),
        "modes": dict(sum((found.modes for found in surveys), Counter()).most_common()),
        "rotated": sum(found.rotated for found in surveys),
    }


def _groups(duplicates: Duplicates, sources: dict[str, Source]) -> dict[str, Any]:
    shown = {}
    for kind in ("within", "across_splits", "across_classes"):
        groups = getattr(duplicates, kind)
        named = [[{"split": split, "name": sources[split].name(i)} for split, i in group] for group in groups[:SHOWN]]
        shown[kind] = {"count": len(groups), "first": named}
    return shown


def _fingerprint(splits: dict[str, tuple[Source, np.ndarray]]) -> str:
    lines = sorted(
        "\t".join((source.name(i), source.label(i), digests[i].decode(), split))
        for split, (source, digests) in splits.items()
        for i in range(len(source))
    )
    return hashlib.blake2b("\n".join(lines).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _seen(opened: Splits, config: DataConfig) -> str | None:
    """A digest of all that `prepare` goes by, with sizes and times of files in place of their content."""
    digest = hashlib.blake2b(
        repr((replace(config, path="", val=None, more=(), shares=()), opened.notes)).encode(), digest_size=16
    )
    for split, source in opened.named().items():
        if (stamp := source.stamp()) is None:
            return None
        digest.update(repr((split, source.classes, stamp)).encode())
        if source.sets is not None:
            digest.update(repr(list(source.sets)).encode())
        for i, label in enumerate(source.labels):
            digest.update(f"{source.name(i)}\0{label}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _stamp(seen: str | None, split_csv: str) -> str | None:
    """A digest of the data as they were seen and of what was made of them."""
    text = f"{seen}\n{split_csv}".encode("utf-8", "surrogateescape")
    return seen and hashlib.blake2b(text, digest_size=16).hexdigest()
