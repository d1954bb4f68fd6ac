"""Lists of images and labels: CSV, TSV, or one JSON object per line."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

from vitreous.data.label_sets import Label
from vitreous.data.listing import IMAGE_SUFFIXES, Listing, class_name, numbered, split_name
from vitreous.data.source import FileSource
from vitreous.errors import InputError, some

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl")
IMAGE_COLUMNS = ("image", "path", "file", "file_name", "filename", "image_path", "image_id", "id")
LABEL_COLUMNS = ("label", "class", "target", "labels", "classes", "tags")
SPLIT_COLUMN = "split"
SEPARATORS = ("|", ";")
"""Between the classes of an image in a cell: the first of them that any cell of the list holds."""
ZERO_ONE = ("0", "1", "0.0", "1.0")

Cell = str | list[str]
Row = dict[str, Cell]


def list_manifest(path: Path) -> Listing:
    """The images that the manifest at `path` names, with its labels and, if it has that column, splits.

    Paths count from the manifest's folder, or from the folder beside it with its name (`train.csv`,
    `train/`); a name without a suffix (Kaggle's `id`) also finds the image with one. An image shows several classes
    where a cell holds them with | or ; between, a JSON list them all, or each class is a column of 0 and 1; then a
    cell may be empty. Without any of these the images are unlabelled.

    Raises:
        InputError: if a column or a file is missing, or a row is not whole; names the line.
    """
    lines, cells, names, splits, missing = [], [], [], [], []
    column = None
    for line, row in _rows(path):
        column = column or next((name for name in LABEL_COLUMNS if name in row), None)
        image = _column(row, IMAGE_COLUMNS, "the image", path)
        name, split = row[image], row.get(SPLIT_COLUMN, "")
        if not name:
            raise InputError(f"{path} line {line}: {image} is empty; fill it or drop the row")
        if isinstance(name, list) or isinstance(split, list):
            raise InputError(f"{path} line {line}: {image} and split hold one name each; give no list")
        if split and not split_name(split):
            raise InputError(f"{path} line {line}: split {split!r} is none of train, val, test")
        found = _find(path, name)
        if found is None:
            missing.append((line, name))
        lines.append(line)
        cells.append(row.get(column, "") if column else row)
        names.append(found or "")
        splits.append(split_name(split))
    if missing:
        line, name = missing[0]
        raise InputError(
            f"{path} line {line}: no such file {name} ({len(missing)} of {len(names)} files are missing); "
            f"paths count from {path.parent}"
        )
    if not names:
        raise InputError(f"{path} has no rows; it needs a line with the columns image and label, then one per image")
    labels, notes = _labels(path, lines, cells, column=column) if column else _labels_of_columns(cells)
    classes, numbers, sets = numbered(labels)
    source = FileSource(path.parent, names, classes=classes, labels=numbers)
    source.sets = sets
    return Listing(str(path), source, splits, notes)


def _labels(path: Path, lines: list[int], cells: list[Cell], *, column: str) -> tuple[list[Label], list[str]]:
    """The label that each cell of that column holds, and what to note of them."""
    texts = [] if path.suffix.lower() == ".jsonl" else [cell for cell in cells if isinstance(cell, str)]
    between = next((mark for mark in SEPARATORS if any(mark in text for text in texts)), None)
    lists = any(isinstance(cell, list) for cell in cells)
    found: list[Label] = []
    for line, cell in zip(lines, cells, strict=True):
        if isinstance(cell, list) or between is not None:
            names = cell if isinstance(cell, list) else cell.split(between)
            found.append(tuple(class_name(name.strip()) for name in names if name.strip()))
        elif cell or lists:
            found.append(class_name(cell) if cell else ())
        else:
            raise InputError(f"{path} line {line}: {column} is empty; fill it or drop the row")
    return found, [f"cells of {column} hold several classes with {between} between"] if between else []


def _labels_of_columns(rows: list[Row]) -> tuple[list[Label], list[str]]:
    """Labels where each class is a column of 0 and 1; unlabelled if there are no two of these.

    If every row has 1 in one column alone, the classes exclude one another.
    """
    named = dict.fromkeys(name for row in rows for name in row if name not in (*IMAGE_COLUMNS, SPLIT_COLUMN))
    columns = [name for name in named if all(row.get(name) in ZERO_ONE for row in rows)]
    others = [name for name in named if name not in columns]
    if len(columns) < 2:
        return [None] * len(rows), [f"no column is one of {', '.join(LABEL_COLUMNS)}; there are {', '.join(rows[0])}"]
    groups = [tuple(class_name(name) for name in columns if float(str(row[name]))) for row in rows]
    notes = [f"columns of 0 and 1 are classes: {some(columns)}"]
    if others:
        notes.append(f"columns that are not used: {some(others)}")
    if all(len(group) == 1 for group in groups):
        return [group[0] for group in groups], notes
    return list(groups), notes


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Line number and cells of each row, columns that have a meaning in lower case."""
    line = 1
    with open(path, "rb") as raw:
        if raw.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{path} is UTF-16; save it as UTF-8")
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        try:
            if path.suffix.lower() == ".jsonl":
                for line, text in enumerate(file, start=1):
                    if text.strip():
                        cells = json.loads(text)
                        if not isinstance(cells, dict):
                            raise InputError(f"{path} line {line}: not a JSON object; write one {{...}} per line")
                        yield line, {_heading(str(key)): _text(value) for key, value in cells.items()}
                return
            first = file.readline()
            delimiter = max("\t,;", key=first.count)  # spreadsheets of some countries write semicolons
            header = [_heading(name) for name in next(csv.reader([first], delimiter=delimiter), [])]
            reader = csv.reader(file, delimiter=delimiter)
            for cells in reader:
                if any(cells):
                    if len(cells) > len(header):
                        raise InputError(
                            f"{path} line {reader.line_num + 1}: {len(cells)} cells for {len(header)} columns; "
                            "put cells that hold the separator in quotes"
                        )
                    cells += [""] * (len(header) - len(cells))
                    yield reader.line_num + 1, {name: cell.strip() for name, cell in zip(header, cells)}
        except json.JSONDecodeError as error:
            raise InputError(f"{path} line {line}: not JSON ({error.msg})") from None
        except RecursionError:
            raise InputError(f"{path} line {line}: nested too deeply; write one flat object per line") from None
        except csv.Error as error:
            raise InputError(f"{path} is not well-formed ({error}); write it as UTF-8 text") from None


def _heading(name: str) -> str:
    lower = name.strip().lower()
    return lower if lower in (*IMAGE_COLUMNS, *LABEL_COLUMNS, SPLIT_COLUMN) else name.strip()


def _text(value: object) -> Cell:
    return [str(item) for item in value] if isinstance(value, list) else "" if value is None else str(value)


def _column(row: Row, names: tuple[str, ...], meaning: str, path: Path) -> str:
    for name in names:
        if name in row:
            return name
    raise InputError(
        f"{path} has no column for {meaning} (one of {', '.join(names)}); its columns are {', '.join(row) or 'none'}"
    )


def _find(path: Path, name: str) -> str | None:
    """`name` as a path from the manifest's folder that exists, or None."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half a character, as JSON can hold
        return None
    for folder in ("", path.stem):
        for suffix in ("", *IMAGE_SUFFIXES):
            candidate = os.path.join(folder, name + suffix)
            if os.path.lexists(os.path.join(path.parent, candidate)):
                return candidate.replace(os.sep, "/")
    return None
