"""Copies of a task that have lost the original files: class folders with splits, and parquet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitreous.data.decode import BadImage
from vitreous.data.folders import list_folder
from vitreous.data.listing import number, split_name
from vitreous.data.source import Source
from vitreous.data.vtab.containers import library
from vitreous.data.vtab.tasks import Task
from vitreous.errors import InputError


def class_folders(path: Path) -> dict[str, Source] | None:
    """The splits of a folder with `train/cat/1.jpg`, `test/cat/2.jpg`, perhaps `val`; None if it is no such folder."""
    for name in ("train", "test"):
        if not (path / name).is_dir() or not any(entry.is_dir() for entry in (path / name).iterdir()):
            return None
    return list_folder(path).as_splits().named()


def parquet(path: Path, task: Task) -> dict[str, Source] | None:
    """The splits of parquet files called `train-00000-of-00001.parquet` or the like; None if there are no such files.

    Raises:
        InputError: if there is no train or no test file, or a file lacks `image` or `label`.
    """
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []
    if not files:
        return None
    parts: dict[str, list[Path]] = {}
    for file in files:
        parts.setdefault(split_name(file.name.replace(".", "-").split("-")[0]), []).append(file)
    if missing := [split for split in ("train", "test") if split not in parts]:
        raise InputError(f"{path} holds no {missing[0]} split; name its files {missing[0]}-*.parquet")
    labels = {split: _labels(parts[split]) for split in ("train", "val", "test") if split in parts}
    names = [str(label) for part in labels.values() for label in part]
    integers = all(isinstance(label, int) for part in labels.values() for label in part)
    classes = [str(label) for label in range(task.num_classes)] if integers else number(names)[0]
    position = {name: i for i, name in enumerate(classes)}
    if unknown := [name for name in names if name not in position]:
        raise InputError(f"{path} has the label {unknown[0]}; {task.title} has 0 to {task.num_classes - 1}")
    return {
        split: ParquetSource(parts[split], classes=classes, labels=np.array([position[str(label)] for label in part]))
        for split, part in labels.items()
    }


class ParquetSource(Source):
    """The column `image` of parquet files, read a row group at a time as it is asked for; the last one is kept."""

    def __init__(self, files: Sequence[Path], *, classes: Sequence[str], labels: np.ndarray):
        super().__init__(classes, labels)
        self.files = tuple(files)
        groups = [(i, group, count) for i, file in enumerate(files) for group, count in enumerate(_groups(file))]
        self.groups = [(i, group) for i, group, _ in groups]
        self.starts = np.cumsum([0] + [count for *_, count in groups])
        self._kept: tuple[int, list[Any]] = (-1, [])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": (-1, [])}

    def name(self, i: int) -> str:
        """The first file's name and the row."""
        return f"{self.files[0].name.split('.')[0]}/{self.rows[i]:05d}"

    def read(self, i: int) -> bytes:
        """The encoded image."""
        group = int(np.searchsorted(self.starts, self.rows[i], side="right")) - 1
        kept = self._kept  # another thread may replace it at any time
        if kept[0] != group:
            file, inner = self.groups[group]
            kept = self._kept = group, _column(self.files[file], "image", inner)
        cell = kept[1][self.rows[i] - self.starts[group]]
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise BadImage("its cell holds no bytes")
        return data


class HeldSource(Source):
    """Encoded images in memory, for few of them that are read again and again."""

    def __init__(self, source: Source):
        super().__init__(source.classes, source.labels)
        self.names = [source.name(i) for i in range(len(source))]
        order = np.argsort(source.rows)
        data = {int(i): source.read(int(i)) for i in order}
        self.data = [data[i] for i in range(len(source))]

    def name(self, i: int) -> str:
        """As in the source they come from."""
        return self.names[self.rows[i]]

    def read(self, i: int) -> bytes:
        """The encoded image."""
        return self.data[self.rows[i]]


def _labels(files: Sequence[Path]) -> list[Any]:
    return [label for file in files for group in range(len(_groups(file))) for label in _column(file, "label", group)]


def _groups(file: Path) -> list[int]:
    """Rows in each row group."""
    try:
        metadata = library("pyarrow.parquet").read_metadata(file)
    except InputError:
        raise
    except Exception as error:  # pyarrow has its own, and raises OSError too
        raise InputError(f"{file} is no whole parquet file ({error}); fetch it again") from None
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


def _column(file: Path, name: str, group: int) -> list[Any]:
    try:
        with library("pyarrow.parquet").ParquetFile(file) as opened:
            return opened.read_row_group(group, columns=[name]).column(name).to_pylist()
    except KeyError:
        raise InputError(f"{file} has no column {name}; it needs image and label") from None
    except OSError as error:
        raise InputError(f"cannot read {file} ({error}); fetch it again") from None
