"""Predictions of files and folders, and tables of them."""

import importlib.util
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vitreous.console import Console
from vitreous.data.decode import BadImage
from vitreous.data.folders import walk_files
from vitreous.data.listing import IMAGE_SUFFIXES
from vitreous.errors import InputError
from vitreous.files import check_writable, csv_text, write_bytes, write_text
from vitreous.predict import Model, Prediction

TABLES = (".csv", ".jsonl", ".parquet")


def image_files(paths: Sequence[str], *, console: Console) -> Iterator[Path]:
    """The files among `paths`, and in the folders among them those with a suffix of images, by name.

    Other files in folders are counted, hidden ones are not.

    Raises:
        InputError: if a path is not there, or a folder holds no images.
    """
    for text in paths:
        path = Path(text)
        if path.is_dir():
            notes: list[str] = []
            shown = [Path(os.path.normpath(path / name)) for name in walk_files(text, ".", notes)]
            for note in notes:
                console.say(f"{path}: {note}")
            images = [p for p in shown if p.suffix.lower() in IMAGE_SUFFIXES]
            if others := len(shown) - len(images):
                console.say(f"{path}: {others:,} files without a suffix of images are left out")
            if not images:
                raise InputError(f"{path} holds no images; give image files or a folder of them")
            yield from images
        elif path.exists():
            yield path
        else:
            raise InputError(f"there is no file {text}; give image files or a folder of them")


def predict_files(
    model: Model, paths: Sequence[str], *, top: int, console: Console
) -> tuple[list[Prediction], list[str]]:
    """Predictions of all readable images, and for each unreadable file one sentence with its name."""
    files = list(image_files(paths, console=console))
    readable, unreadable = [], []
    with console.task("image", len(files)) as task:

        def read() -> Iterator[Tensor]:
            for number, file in enumerate(files, 1):
                try:
                    pixels = model.pixels(file)
                except BadImage as error:
                    unreadable.append(str(error))
                    continue
                readable.append(str(file))
                yield pixels
                task.update(number)

        said = list(model.classify(read(), top=top))
        task.update(len(files))
    return [replace(one, file=name) for one, name in zip(said, readable, strict=True)], unreadable


def check_table(path: Path, suffixes: Sequence[str] = TABLES) -> None:
    """See before long work that a table can be written at `path`.

    Raises:
        InputError: if the suffix is none of `suffixes`, the package that writes parquet is missing, or the place
            cannot be written.
    """
    if path.suffix not in suffixes:
        raise InputError(f"cannot write {path}: give a name that ends in {', '.join(suffixes)}")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InputError("writing parquet needs pyarrow: pip install 'vitreous[data]'; or write .csv")
    check_writable(path)


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """A table with a row an image: file, label_1, score_1, label_2, ...; by suffix CSV, JSON lines or parquet.

    Of a model for several classes an image, labels stands behind file: the classes above one half, with | between.

    Raises:
        InputError: as `check_table`, or if the disk refuses.
    """
    check_table(path)
    rows = [
        {"file": prediction.file}
        | ({} if prediction.labels is None else {"labels": " | ".join(prediction.labels)})
        | {
            key: value
            for rank, (label, score) in enumerate(prediction.top, 1)
            for key, value in ((f"label_{rank}", label), (f"score_{rank}", score))
        }
        for prediction in predictions
    ]
    if path.suffix == ".csv":
        write_text(path, csv_text([list(rows[0]) if rows else ["file"], *(list(row.values()) for row in rows)]))
    elif path.suffix == ".jsonl":
        write_text(path, "".join(_json(row) + "\n" for row in rows))
    else:
        import pyarrow
        import pyarrow.parquet

        sink = io.BytesIO()
        for row in rows:  # bytes of a name that are no Unicode become a replacement sign
            row["file"] = row["file"] and str(row["file"]).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        write_bytes(path, sink.getvalue())


def _json(row: dict[str, Any]) -> str:
    """`row` as JSON that is valid UTF-8: bytes of a name that are none become an escape, as Python reads it back."""
    text = json.dumps(row, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(row)
