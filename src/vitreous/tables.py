"""Results as text for people: aligned columns, and which figures of an evaluation stand in them."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

NUMBER = re.compile(r"[\d,]+(\.\d+)?%?")


def figure_rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The headline figures of an evaluation."""
    rows: list[tuple[str, ...]] = []
    if figures.get("multi_label"):
        return _rows_of_several(figures)
    for name in ("top1", "top5"):
        if share := figures[name]:
            interval = f"95 % interval {share['low']:.2%} to {share['high']:.2%}"
            rows.append((f"top-{name[3:]}", f"{share['value']:.2%}", interval))
    if real := figures.get("real"):
        share, left = real["top1"], real["without_label"]
        said = f"95 % interval {share['low']:.2%} to {share['high']:.2%}; {left:,} images have no ReaL label"
        rows.append(("ReaL", f"{share['value']:.2%}", said))
    between = figures.get("intervals", {}).get("macro_f1")
    said = f"95 % interval {between['low']:.4f} to {between['high']:.4f}" if between else ""
    rows.append(("macro F1", f"{figures['macro_f1']:.4f}", said))
    rows.append(("calibration", f"{figures['ece']:.4f}", "expected error of the stated confidence (ECE)"))
    if scaled := figures.get("temperature"):
        rows.append(
            ("temperature", f"{scaled['temperature']:.3f}", f"ECE {scaled['ece']:.4f} once logits are divided by it")
        )
    rows.append(("images", f"{figures['num_images']:,}", f"{figures['split']}"))
    return rows


def _rows_of_several(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    between = {
        key: f"95 % interval {figures[key]['low']:.2%} to {figures[key]['high']:.2%}" for key in ("map", "exact_match")
    }
    above = f"above {figures['threshold']:g}"
    many = f"precision {figures['micro_precision']:.4f}, recall {figures['micro_recall']:.4f}, {above}"
    return [
        ("mAP", f"{figures['map']['value']:.2%}", between["map"]),
        ("micro AP", f"{figures['micro_ap']:.2%}", "all pairs of image and class together"),
        ("macro F1", f"{figures['macro_f1']:.4f}", f"mean over classes, {above}"),
        ("micro F1", f"{figures['micro_f1']:.4f}", many),
        ("exact match", f"{figures['exact_match']['value']:.2%}", f"{between['exact_match']}; all classes right"),
        ("images", f"{figures['num_images']:,}", f"{figures['split']}"),
    ]


def class_head(figures: Mapping[str, Any]) -> tuple[str, ...]:
    """The heading of `class_rows`."""
    return ("class", "images", *(["AP"] if figures.get("multi_label") else []), "precision", "recall", "F1")


def class_rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Precision, recall and F1 of each class that occurs; average precision too where images may show several."""
    return [
        (
            row["name"],
            f"{row['count']:,}",
            *([f"{row['ap']:.3f}"] if figures.get("multi_label") else []),
            f"{row['precision']:.3f}",
            f"{row['recall']:.3f}",
            f"{row['f1']:.3f}",
        )
        for row in figures["per_class"]
        if row["count"]
    ]


def confusion_rows(figures: Mapping[str, Any], *, most: int = 10) -> list[tuple[str, ...]]:
    """The largest numbers off the diagonal of the confusion matrix; none where images may show several classes."""
    if "confusion" not in figures:
        return []
    names = [row["name"] for row in figures["per_class"]]
    pairs = [
        (count, names[i], names[j])
        for i, row in enumerate(figures["confusion"])
        for j, count in enumerate(row)
        if i != j and count
    ]
    return [(true, taken, str(count)) for count, true, taken in sorted(pairs, reverse=True)[:most]]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns; a column of numbers, under its heading if it has one, stands to the right."""
    columns = list(itertools.zip_longest(*rows, fillvalue=""))
    widths = [max(map(len, column)) for column in columns]
    numeric = [all(NUMBER.fullmatch(text) for text in column[1:]) for column in columns]

    def cell(text: str, column: int) -> str:
        return text.rjust(widths[column]) if numeric[column] else text.ljust(widths[column])

    lines = ("  ".join(cell(text, i) for i, text in enumerate(row)).rstrip() for row in rows)
    return "\n".join(line.replace("\n", "\\n") for line in lines)  # class names may hold anything
