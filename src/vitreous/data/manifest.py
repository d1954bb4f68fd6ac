"""Lists of images and labels: CSV, TSV, or one JSON object per line."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

from vitreous.data.listing import IMAGE_SUFFIXES, Listing, class_name, number, split_name
from vitreous.data.source import FileSource
from vitreous.errors import InputError

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl")
IMAGE_COLUMNS = ("image", "path", "file", "file_name", "filename", "image_path", "image_id", "id")
LABEL_COLUMNS = ("label", "class", "target")
SPLIT_COLUMN = "split"


def list_manifest(path: Path) -> Listing:
    """The images that the manifest at `path` names, with its labels and, if it has that column, splits.

    Paths count from the manifest's folder, or from the folder beside it with its name (`train.csv`,
    `train/`); a name without a suffix (Kaggle's `id`) also finds the image with one.

    Raises:
        InputError: if a column or a file is missing, or a row is not whole; names the line.
    """
    names, labels, splits, missing = [], [], [], []
    for line, row in _rows(path):
        image = _column(row, IMAGE_COLUMNS, "the image", path)
        label = _column(row, LABEL_COLUMNS, "the label", path)
        split = row.get(SPLIT_COLUMN, "")
        if not row[image] or not row[label]:
            raise InputError(
                f"{path} line {line}: {image if not row[image] else label} is empty; fill it or drop the row"
            )
        if split and not split_name(split):
            raise InputError(f"{path} line {line}: split {split!r} is none of train, val, test")
        found = _find(path, row[image])
        if found is None:
            missing.append((line, row[image]))
        names.append(found or "")
        labels.append(class_name(row[label]))
        splits.append(split_name(split))
    if missing:
        line, name = missing[0]
        raise InputError(
            f"{path} line {line}: no such file {name} ({len(missing)} of {len(names)} files are missing); "
            f"paths count from {path.parent}"
        )
    if not names:
        raise InputError(f"{path} has no rows; it needs a line with the columns image and label, then one per image")
    classes, numbers = number(labels)
    return Listing(str(path), FileSource(path.parent, names, classes=classes, labels=numbers), splits, [])


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells of each row, columns in lower case."""
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
                        yield (line, {str(key).strip().lower(): _text(value) for key, value in cells.items()})
                return
            first = file.readline()
            delimiter = max("\t,;", key=first.count)  # spreadsheets of some countries write semicolons
            header = [name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter), [])]
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


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _column(row: dict[str, str], names: tuple[str, ...], meaning: str, path: Path) -> str:
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
