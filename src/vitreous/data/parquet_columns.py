"""Which columns of a parquet file are the image and the label, and what the labels are called."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitreous.data.label_sets import LabelSets
from vitreous.data.listing import class_name
from vitreous.errors import InputError, some

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "pixels", "image_bytes", "bytes")
LABEL_NAMES = (
    "label",
    "labels",
    "class",
    "target",
    "category",
    "fine_label",
    "cls",
    "class_name",
    "y",
    "classes",
    "tags",
)


@dataclass(frozen=True)
class Columns:
    """The two columns of a parquet file that count."""

    image: str
    leaves: tuple[str, ...]
    """What is read of the image: `image`, or `image.bytes` and `image.path` of one in parts."""
    label: str | None
    """None where the images have no labels."""
    classes: tuple[str, ...] | None
    """What the file calls the labels 0, 1, ...; None where a label is its own name."""
    notes: tuple[str, ...]


def columns_of(schema: Any, path: Path) -> Columns:
    """The column of images and the column of labels of a pyarrow `schema`.

    Raises:
        InputError: if one is absent, of a kind that is not understood, or cannot be told from others.
    """
    features = _features(schema)
    leaves = {field.name: found for field in schema if (found := _image_leaves(field))}
    image, _ = _choose(list(leaves), IMAGE_NAMES, _of_kind(features, "Image"), "images", "image", path, schema)
    named = _of_kind(features, "ClassLabel")
    labels = [
        field.name
        for field in schema
        if field.name not in leaves
        and (_is_label(field.type) or (_is_label_list(field.type) and field.name.lower() in (*LABEL_NAMES, *named)))
    ]
    if not labels:
        called = [f"{field.name} is {field.type}" for field in schema if field.name.lower() in LABEL_NAMES]
        note = "no column holds labels" + (f" ({some(called)})" if called else "")
        return Columns(image, leaves[image], None, None, (note,))
    label, others = _choose(labels, LABEL_NAMES, named, "labels", "label", path, schema)
    names = features.get(label, {}).get("names") if label in named else None
    notes = (f"labels are those of {label}, not of {some(others)}",) if others else ()
    return Columns(image, leaves[image], label, _classes(names), notes)


@dataclass(frozen=True)
class RowLabels:
    """What the rows of a file are labelled."""

    labels: np.ndarray
    """For each row the position of its label in `vocabulary`, or of its set in `sets`; -1 where there is none."""
    vocabulary: list[str]
    sets: LabelSets | None = None
    """Of lists of labels."""


def labels_of(file: Any, columns: Columns, path: Path) -> RowLabels:
    """The label, or the list of labels, of each row of a pyarrow ParquetFile.

    Raises:
        InputError: if a label has no name in the list of the file's own; names the row.
    """
    import pyarrow

    if columns.label is None:
        return RowLabels(np.full(file.metadata.num_rows, -1), [])
    if _is_label_list(file.schema_arrow.field(columns.label).type):
        return _lists_of(file, columns, path)
    codes, position, done = [], {name: i for i, name in enumerate(columns.classes or ())}, 0
    for batch in file.iter_batches(columns=[columns.label], use_threads=False):
        values = batch.column(0)
        if not pyarrow.types.is_dictionary(values.type):
            values = values.dictionary_encode()
        table = []
        for value in values.dictionary.to_pylist():
            table.append(_position(value, columns, position))
        inner = values.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        found = np.array([*table, -1])[inner]
        if (found < -1).any():
            row = int(np.flatnonzero(found < -1)[0])
            raise _unknown(path, done + row, values.dictionary[inner[row]], position)
        codes.append(found)
        done += len(found)
    labels = np.concatenate(codes) if codes else np.zeros(0, np.int64)
    known = columns.label.lower() in LABEL_NAMES or columns.classes is not None
    if not known and len(labels) > 2 and len(position) == len(labels):
        raise InputError(
            f"{path}: {columns.label} differs in every row, so it is no label; call the column of labels label"
        )
    return RowLabels(labels, list(position))


def _lists_of(file: Any, columns: Columns, path: Path) -> RowLabels:
    """The list of labels of each row; an empty list says that none applies, null that nothing is known."""
    position = {name: i for i, name in enumerate(columns.classes or ())}
    rows: list[list[int] | None] = []
    for batch in file.iter_batches(columns=[columns.label], use_threads=False):
        for values in batch.column(0).to_pylist():
            found = None if values is None else [_position(value, columns, position) for value in values]
            if found is not None and min(found, default=0) < 0:
                raise _unknown(path, len(rows), values, position)
            rows.append(found)
    sets, labels = LabelSets.of(row or () for row in rows)
    labels[[row is None for row in rows]] = -1
    return RowLabels(labels, list(position), sets)


def _unknown(path: Path, row: int, value: Any, position: Mapping[str, int]) -> InputError:
    return InputError(
        f"{path} row {row}: label {value} is none of the "
        f"{len(position)} classes that the file names; repair or remove the row"
    )


def _position(value: Any, columns: Columns, position: dict[str, int]) -> int:
    """Where a label stands among the classes, which grow unless the file names them; -2 if it has no place there."""
    if value is None or value == "":
        return -1
    if columns.classes is None:
        return position.setdefault(class_name(str(value)), len(position))
    if isinstance(value, str):
        return position.get(class_name(value), -2)
    return value if -1 <= value < len(columns.classes) else -2  # -1 is how the Hub writes an unknown label


def _features(schema: Any) -> Mapping[str, Any]:
    """What the `datasets` library noted of each column."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    found = found if isinstance(found, dict) else {}
    return {name: inner for name, kind in found.items() if isinstance(inner := _inner(kind), dict)}


def _inner(feature: Any) -> Any:
    """What a feature of lists holds lists of, as old and new versions of `datasets` write it; another as it is."""
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    if isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList"):
        return feature.get("feature")
    return feature


def _of_kind(features: Mapping[str, Any], kind: str) -> list[str]:
    return [name for name, feature in features.items() if feature.get("_type") == kind]


def _classes(names: Any) -> tuple[str, ...] | None:
    """Names as classes; equal ones get their number behind."""
    if not isinstance(names, list) or not names:
        return None
    texts = [class_name(str(name)) for name in names]
    count = Counter(texts)
    return tuple(text if count[text] == 1 else f"{text} ({i})" for i, text in enumerate(texts))


def _choose(
    found: list[str], known: Sequence[str], told: list[str], meaning: str, name: str, path: Path, schema: Any
) -> tuple[str, list[str]]:
    """The one column of a meaning, and the others that the file says have the same."""
    told = [column for column in told if column in found]
    if len(told) == 1:
        return told[0], []
    for word in known:
        for column in found:
            if column.lower() == word:
                return column, [other for other in told if other != column]
    if len(found) == 1 and not told:
        return found[0], []
    columns = some([f"{field.name} ({field.type})" for field in schema], most=8) or "none"
    problem = f"several columns that may hold {meaning} ({some(found)})" if found else f"no column of {meaning}"
    raise InputError(f"{path} has {problem}; call the right one {name}; its columns are {columns}")


def _image_leaves(field: Any) -> tuple[str, ...]:
    """What to read of a column that may hold images; nothing of another."""
    import pyarrow

    if _is_binary(field.type):
        return (field.name,)
    if not pyarrow.types.is_struct(field.type):
        return ()
    parts = {part.name: part.type for part in field.type}
    kinds = {"bytes": _is_binary, "path": _is_text}
    return tuple(f"{field.name}.{name}" for name, fits in kinds.items() if name in parts and fits(parts[name]))


def _is_binary(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def _is_text(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def _is_list(kind: Any) -> bool:
    import pyarrow

    types = pyarrow.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_label_list(kind: Any) -> bool:
    return _is_list(kind) and _is_label(kind.value_type)


def _is_label(kind: Any) -> bool:
    import pyarrow

    types = pyarrow.types
    if types.is_dictionary(kind):
        return _is_label(kind.value_type)
    return types.is_integer(kind) or types.is_boolean(kind) or _is_text(kind)
