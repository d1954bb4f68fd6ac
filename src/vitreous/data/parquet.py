"""Parquet files, as the Hugging Face Hub keeps images: a column of images and a column of labels."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitreous.data.decode import BadImage, read_file
from vitreous.data.folders import children
from vitreous.data.label_sets import LabelSets
from vitreous.data.listing import IMAGE_SUFFIXES, Listing, number, split_name
from vitreous.data.parquet_columns import Columns, columns_of, labels_of
from vitreous.data.parquet_rows import MAX_GROUP_BYTES, Reader, opened, reading
from vitreous.data.source import Source, sizes_and_times
from vitreous.errors import InputError, some

PARQUET_SUFFIX = ".parquet"
LARGE_GROUP_BYTES = 32_000_000
MOST_FOLDERS = 3  # above a file, below what was given: a configuration, data, a split
PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.parquet$")


class ParquetSource(Source):
    """Rows of parquet files; images are called `data/train-00000-of-00002.parquet#17`, by file and row."""

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        *,
        columns: Sequence[Columns],
        groups: Sequence[np.ndarray],
        classes: Sequence[str],
        labels: np.ndarray,
        stamped: bool,
    ):
        super().__init__(classes, labels)
        self.root = os.fspath(root)
        self.files = tuple(files)
        self.columns = tuple(columns)
        self.groups = tuple(groups)
        """Of each file, the number of rows up to the end of each row group."""
        self.starts = np.cumsum([0, *(rows[-1] if len(rows) else 0 for rows in groups)])
        self.stamped = stamped
        """Whether all images are in the parquet files themselves."""
        self.reader = Reader()

    def name(self, i: int) -> str:
        """File and row, from 0."""
        file, row = self._place(i)
        return f"{self.files[file]}#{row}"

    def read(self, i: int) -> bytes:
        """The bytes in the row, or the file that it names."""
        file, row = self._place(i)
        group = int(np.searchsorted(self.groups[file], row, side="right"))
        first = int(self.groups[file][group - 1]) if group else 0
        path = os.path.join(self.root, self.files[file])
        data, beside = self.reader.cell(path, self.columns[file], group=group, row=row - first)
        if data is not None:
            return data
        if beside is None:
            raise BadImage("the row holds no image")
        if os.path.isabs(beside) or ".." in Path(beside).parts:
            raise BadImage(f"the row holds a path alone, which leads out of the folder of the parquet: {beside}")
        return read_file(os.path.join(os.path.dirname(path), beside))

    def stamp(self) -> str | None:
        """A digest of the size and the time of change of every parquet file; None if one names other files."""
        return sizes_and_times(os.path.join(self.root, file) for file in self.files) if self.stamped else None

    def _place(self, i: int) -> tuple[int, int]:
        row = int(self.rows[i])
        file = int(np.searchsorted(self.starts, row, side="right")) - 1
        return file, row - int(self.starts[file])


def list_parquet(path: Path) -> Listing:
    """The rows of the parquet file at `path`, or of all in that folder; the first word of a file's name is its split.

    Where that is none, a folder above it may be. Rows without a label are left out with a note, unless all are.

    Raises:
        InputError: if a file is damaged or has no column of images or of labels; says which columns there are.
    """
    single = path.is_file()
    root = path.parent if single else path
    files = [path.name] if single else parquet_files(path)
    parts, notes = [_Footer(root, file) for file in files], _missing_parts(files)
    if not sum(len(file.found.labels) for file in parts):
        raise InputError(f"{path} has no rows; it needs one for each image")
    labels, classes, sets = _numbered(parts)
    source = ParquetSource(
        root,
        files,
        columns=[file.columns for file in parts],
        groups=[file.groups for file in parts],
        classes=classes,
        labels=labels,
        stamped=all(file.whole for file in parts),
    )
    source.sets = sets
    splits = [split for file in parts for split in [_split(file.name) if not single else ""] * len(file.found.labels)]
    notes += sorted({note for file in parts for note in file.columns.notes})
    if largest := max((file.largest for file in parts), default=0):
        notes.append(
            f"row groups hold up to {largest / 1e6:.0f} MB, all read for one image: in random order that is slow; "
            "pack them first: vitreous data pack"
        )
    if 0 < len(unlabelled := np.flatnonzero(labels < 0)) < len(labels):
        where = Counter(splits[i] or "all" for i in unlabelled)
        counts = ", ".join(f"{count:,} of {split}" for split, count in where.items())
        notes.append(f"rows without a label are not used: {counts}")
        kept = np.flatnonzero(labels >= 0)
        source, splits = source.select(kept), [splits[i] for i in kept]
    return Listing(str(path), source, splits, notes)


def parquet_files(root: Path) -> list[str]:
    """Parquet files in `root` and in a few folders below it, in natural order; none if it rather is class folders.

    Raises:
        InputError: if they are several sets, as the configurations of one on the Hub; names them.
    """
    found: list[str] = []
    waiting, has_images = [""], False
    while waiting:
        folder = waiting.pop(0)
        name = os.path.basename(folder)
        if has_images and name != "data" and not split_name(name):
            continue
        folders, files = children(root / folder)
        found += [os.path.join(folder, name) for name in files if name.lower().endswith(PARQUET_SUFFIX)]
        has_images |= bool(folder) and any(name.lower().endswith(IMAGE_SUFFIXES) for name in files)
        if len(Path(folder).parts) < MOST_FOLDERS:
            waiting += [os.path.join(folder, name) for name in folders]
    found = [file.replace(os.sep, "/") for file in found]
    if has_images and not any(PART.search(file) or _split(file) for file in found):
        return []  # a table beside class folders
    sets = {Path(*(part for part in Path(file).parts[:-1] if not split_name(part))) for file in found}
    if len(sets) > 1:
        names = sorted(map(str, sets))
        raise InputError(f"{root} holds several sets in parquet: {some(names)}; give one, such as {root / names[-1]}")
    return found


class _Footer:
    """What the footer and the labels of one file say."""

    def __init__(self, root: Path, name: str):
        self.name, path = name, root / name
        file = opened(path)
        with reading(path), file:
            metadata = file.metadata
            if metadata.num_rows > os.path.getsize(path):
                size = os.path.getsize(path)
                raise InputError(f"{path} claims {metadata.num_rows:,} rows in {size:,} bytes; fetch it again")
            self.columns = columns_of(file.schema_arrow, path)
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            chunks = [[group.column(k) for k in range(group.num_columns)] for group in groups]
            images = [[c for c in chunk if c.path_in_schema in self.columns.leaves] for chunk in chunks]
            sizes = [sum(c.total_uncompressed_size for c in chunk) for chunk in images]
            if max(sizes, default=0) > MAX_GROUP_BYTES:
                raise InputError(
                    f"{path} has a row group of {max(sizes) / 1e6:,.0f} MB, all of which would be read for one image; "
                    "write it again with row groups of 100 rows (pyarrow: row_group_size=100)"
                )
            self.largest = max((size for size in sizes if size > LARGE_GROUP_BYTES), default=0)
            held = [leaf for leaf in self.columns.leaves if not leaf.endswith(".path")]
            data = [c.statistics for chunk in images for c in chunk if c.path_in_schema in held]
            self.whole = bool(held) and all(s is not None and s.null_count == 0 for s in data)
            self.groups = np.cumsum([group.num_rows for group in groups], dtype=np.int64)
            self.found = labels_of(file, self.columns, path)
        if len(self.found.labels) != metadata.num_rows or (len(groups) and self.groups[-1] != metadata.num_rows):
            raise InputError(f"{path} is damaged: its row groups do not add up; fetch it again")


def _numbered(parts: Sequence[_Footer]) -> tuple[np.ndarray, list[str], LabelSets | None]:
    """Labels that count in one list of classes: the one that all files name, else all labels in natural order.

    Beside the classes the sets, if a file holds lists of labels: then labels are positions of sets.
    """
    first = parts[0].columns.classes
    if first is not None and all(file.columns.classes == first for file in parts):
        classes = list(first)
    else:
        classes = number([text for file in parts for text in file.found.vocabulary])[0]
    position = {name: i for i, name in enumerate(classes)}
    tables = [np.array([*(position[text] for text in file.found.vocabulary), -1]) for file in parts]
    if all(file.found.sets is None for file in parts):
        labels = np.concatenate([table[file.found.labels] for table, file in zip(tables, parts)])
        return labels, classes, None
    own = [file.found.sets or LabelSets.of((i,) for i in range(len(file.found.vocabulary)))[0] for file in parts]
    sets, places = LabelSets.of(one for table, of in zip(tables, own) for one in of.renumbered(table))
    starts = np.cumsum([0, *map(len, own)])
    labels = [np.where(file.found.labels < 0, -1, file.found.labels + start) for file, start in zip(parts, starts)]
    return np.append(places, -1)[np.concatenate(labels)], classes, sets


def _split(file: str) -> str:
    *folders, name = file.split("/")
    return next(filter(None, (split_name(word) for word in (re.split(r"[-_.]", name)[0], *reversed(folders)))), "")


def _missing_parts(files: Sequence[str]) -> list[str]:
    """A note on each file in parts, as `train-00000-of-00002.parquet`, that lacks some."""
    parts = Counter((match[1], int(match[2])) for file in files if (match := PART.search(file)))
    return [
        f"only {there} of the {of} files {name}-*.parquet are here" for (name, of), there in parts.items() if there < of
    ]
