"""Figures of an evaluation for papers: matplotlib, as .pdf and .png. Needs `vitreous[plot]`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitreous.files import write_bytes
from vitreous.inspection.figure_style import AMBER, GLASS, LINE, SOFT, drawn_files, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CLASSES = 40
"""More make a confusion matrix whose names nobody can read."""
CURVES = {
    "resolution": ("height", "image side (px)"),
    "patch_drop": ("drop_ratio", "part of the patches dropped"),
    "patch_shuffle": ("cells", "cells a side, shuffled"),
}
"""What lies along the curve of an evaluation of robustness."""
GRIDS = {
    "logistic": ("path", "penalty", "penalty of squared weights"),
    "linear": ("grid", "learning_rate", "learning rate"),
    "attentive": ("grid", "learning_rate", "learning rate"),
    "fine_tune": ("grid", "learning_rate", "learning rate"),
}
"""What the held-back images chose from."""


def write_figures(folder: Path, measured: Mapping[str, Any]) -> list[str]:
    """Write a .pdf and a .png of every figure of what `vitreous evaluate --json` tells; the names of the files.

    Raises:
        InputError: if matplotlib is not installed, or the folder cannot be written.
    """
    files = drawn_files(lambda: measurement_figures(measured))
    for name, content in files.items():
        write_bytes(folder / name, content)
    return list(files)


def measurement_figures(measured: Mapping[str, Any]) -> "Iterator[tuple[str, Figure]]":
    """Every figure of what `vitreous evaluate --json` tells, by name."""
    if "reliability" in measured:
        yield "reliability", reliability(measured)
    if 1 < len(measured.get("confusion", ())) <= MOST_CLASSES:
        yield "confusion", confusion(measured)
    for name, found in measured.get("evaluations", {}).items():
        if name == "few_shot":
            yield "few-shot", few_shot(found)
        elif name == "knn":
            points = [(int(k), one["top1"]) for k, one in found["k"].items()]
            yield "knn", curve(points, x_label="neighbours", log=True)
        elif name in CURVES:
            key, label = CURVES[name]
            yield name.replace("_", "-"), curve([(p[key], p["top1"]) for p in found["curve"]], x_label=label)
        elif name in GRIDS:
            yield name.replace("_", "-"), grid(found, *GRIDS[name])


def reliability(measured: Mapping[str, Any]) -> "Figure":
    """Accuracy by confidence, as the model says it and once its temperature is fitted (arXiv:1706.04599, Fig. 4)."""
    parts = [("as it is", measured["ece"], measured["reliability"])]
    if scaled := measured.get("temperature"):
        parts.append((f"temperature {scaled['temperature']:.3g}", scaled["ece"], scaled["reliability"]))
    figure = new_figure(2.6 * len(parts), 3.0)
    grid = figure.subplots(2, len(parts), squeeze=False, sharex=True, height_ratios=[1, 3])
    for column, (name, ece, bins) in enumerate(parts):
        counts, axes = grid[:, column]
        filled = [b for b in bins if b["count"]]
        left, width = [b["low"] for b in filled], [b["high"] - b["low"] for b in filled]
        counts.bar(left, [b["count"] for b in filled], width, align="edge", color=LINE, edgecolor="white")
        counts.set(title=f"{name}: ECE {ece:.3f}", ylabel="images" if not column else "")
        axes.bar(left, [b["accuracy"] for b in filled], width, align="edge", color=GLASS, edgecolor="white")
        accuracy = [b["accuracy"] for b in filled]
        gaps = [b["confidence"] - b["accuracy"] for b in filled]
        axes.bar(left, gaps, width, bottom=accuracy, align="edge", color=AMBER, alpha=0.45, label="gap")
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle="--")
        axes.set(xlabel="confidence", ylabel="accuracy" if not column else "", xlim=(0, 1), ylim=(0, 1))
        axes.legend(loc="upper left")
    return figure


def confusion(measured: Mapping[str, Any]) -> "Figure":
    """Share of the images of each true class (row) that are taken for each class (column)."""
    names = [shortened(row["name"]) for row in measured["per_class"]]
    counts = np.asarray(measured["confusion"], dtype=float)
    side = 1.6 + 0.22 * len(names)
    figure = new_figure(side + 0.6, side)
    axes = figure.subplots()
    drawn = axes.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="BuPu", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(drawn, ax=axes, label="share of the true class", shrink=0.8)
    return figure


def few_shot(found: Mapping[str, Any]) -> "Figure":
    """Top-1 by images a class: every draw, and the mean over draws."""
    shots = [int(name) for name in found["shots"]]
    figure, axes = _axes("images of each class", "top-1 (%)")
    for count, one in zip(shots, found["shots"].values()):
        scores = [100 * draw["top1"] for draw in one["draws"]]
        axes.scatter([count] * len(scores), scores, s=12, color=GLASS, alpha=0.65, linewidths=0)
    means = [100 * one["top1"] for one in found["shots"].values()]
    axes.plot(shots, means, color=AMBER, linewidth=1.2, label="mean of draws")
    axes.set_xscale("log")
    axes.set_xticks(shots, [str(count) for count in shots])
    axes.minorticks_off()
    axes.legend(loc="lower right")
    return figure


def curve(points: Sequence[tuple[float, Mapping[str, float]]], *, x_label: str, log: bool = False) -> "Figure":
    """Top-1 with its 95 % interval."""
    figure, axes = _axes(x_label, "top-1 (%)")
    x = [place for place, _ in points]
    value, low, high = (np.array([100 * share[key] for _, share in points]) for key in ("value", "low", "high"))
    bars = [value - low, high - value]
    axes.errorbar(x, value, bars, color=GLASS, marker="o", markersize=3, linewidth=1.2, capsize=2)
    if log:
        axes.set_xscale("log")
    axes.set_xticks(x, [f"{place:g}" for place in x])
    axes.minorticks_off()
    return figure


def grid(found: Mapping[str, Any], points: str, key: str, x_label: str) -> "Figure":
    """Top-1 of the images that chose, for every setting, and the choice."""
    figure, axes = _axes(x_label, "top-1 of held-back images (%)")
    x = [point[key] for point in found[points]]
    axes.plot(x, [100 * point["dev_top1"] for point in found[points]], color=GLASS, marker="o", markersize=3)
    axes.axvline(found[key], color=AMBER, linewidth=1.0, linestyle="--", label=f"chosen: {found[key]:g}")
    axes.set_xscale("log")
    axes.legend()
    return figure


def _axes(x_label: str, y_label: str) -> "tuple[Figure, Axes]":
    figure = new_figure(3.5, 2.7)
    axes = figure.subplots()
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure, axes
