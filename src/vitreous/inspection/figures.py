"""Figures of an inspected checkpoint for papers: matplotlib, as .pdf and .png. Needs `vitreous[plot]`.

Layers and heads count from 0, as they do in Python. Maps run from their lowest value (dark) to their 98th
percentile (bright): the few highest values are often artefacts (arXiv:2309.16588) that would darken the rest.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from vitreous.inspection import image_figures
from vitreous.inspection.distance import grid_distances
from vitreous.inspection.figure_style import (
    AMBER,
    GLASS,
    LINE,
    METHODS,
    draw_heads,
    drawn_files,
    image_grid,
    layer_axes,
    new_figure,
    some_layers,
)
from vitreous.inspection.findings import Inspection

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_files(seen: Inspection) -> dict[str, bytes]:
    """A .pdf and a .png of every figure that `seen` holds the numbers of, by file name.

    Raises:
        InputError: if matplotlib is not installed.
    """
    return drawn_files(lambda: figures(seen))


def figures(seen: Inspection) -> "Iterator[tuple[str, Figure]]":
    """Every figure that `seen` holds the numbers of, by name."""
    of_part: dict[str, tuple[Callable[[Inspection], Figure], ...]] = {
        "distance": (distance, entropy),
        "norms": (norms,),
        "positions": (positions,),
        "filters": (filters,),
        "rollout": (image_figures.rollout,),
        "features": (image_figures.features,),
        "lens": (image_figures.lens,),
        "explanations": (image_figures.explanations, faithfulness),
        "layout": (image_figures.layout,),
        "neighbours": (image_figures.neighbours,),
    }
    for part, draws in of_part.items():
        for draw in draws if getattr(seen, part) is not None else ():
            yield draw.__name__, draw(seen)
    if seen.attention is not None:
        for layer, maps in zip(seen.layers, seen.attention, strict=True):
            yield f"attention-layer-{layer}", image_figures.attention(seen, maps)


def distance(seen: Inspection) -> "Figure":
    """Mean attention distance of every head (the paper's Fig. 7, right, and Fig. 11)."""
    assert seen.distance is not None
    figure, axes = layer_axes("mean attention distance (px)")
    even = grid_distances(seen.grid, patch_size=seen.patch_size).mean().item()
    draw_heads(axes, seen.distance.distance)
    axes.axhline(even, color=LINE, linewidth=0.8, linestyle=(0, (4, 3)), label="even attention")
    axes.legend(loc="lower right")
    return figure


def entropy(seen: Inspection) -> "Figure":
    """Entropy of the attention of every head, below that of even attention to all tokens."""
    assert seen.distance is not None
    figure, axes = layer_axes("mean attention entropy (nats)")
    draw_heads(axes, seen.distance.entropy)
    even = math.log(math.prod(seen.grid) + len(seen.prefix))
    axes.axhline(even, color=LINE, linewidth=0.8, linestyle=(0, (4, 3)), label="even attention")
    axes.legend(loc="lower right")
    return figure


def norms(seen: Inspection) -> "Figure":
    """Lengths of patch tokens after each layer, and the share of those that stick out."""
    assert seen.norms is not None
    figure = new_figure(3.5, 3.6)
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    layers = range(len(seen.norms.median))
    above.plot(layers, seen.norms.largest.numpy(), color=AMBER, marker="o", markersize=3, linewidth=1, label="largest")
    above.plot(layers, seen.norms.median.numpy(), color=GLASS, marker="o", markersize=3, linewidth=1, label="median")
    above.set(yscale="log", ylabel="norm of patch tokens")
    above.legend()
    below.bar(layers, 100 * seen.norms.share.numpy(), color=GLASS, width=0.7)
    below.set(xlabel="layer", ylabel="high-norm tokens (%)", xticks=some_layers(layers))
    return figure


def positions(seen: Inspection) -> "Figure":
    """A tile for each patch: cosine of its position with those of all patches (Fig. 7, centre)."""
    assert seen.positions is not None
    figure = new_figure(4.0, 3.6)
    axes = figure.subplots()
    rows, columns = seen.grid
    gap = 1
    mosaic = np.full((rows * (rows + gap) - gap, columns * (columns + gap) - gap), np.nan)
    for i in range(rows):
        for j in range(columns):
            top, left = i * (rows + gap), j * (columns + gap)
            mosaic[top : top + rows, left : left + columns] = seen.positions[i, j].numpy()
    shown = axes.imshow(mosaic, vmin=-1, vmax=1, cmap="viridis", interpolation="nearest")
    for set_ticks, number in ((axes.set_xticks, columns), (axes.set_yticks, rows)):
        places = range(0, number, max(number // 7, 1))
        set_ticks([place * (number + gap) + (number - 1) / 2 for place in places], [str(place) for place in places])
    axes.set(xlabel="column of the patch", ylabel="row of the patch")
    axes.spines[:].set_visible(False)
    figure.colorbar(shown, ax=axes, label="cosine similarity", fraction=0.046)
    return figure


def filters(seen: Inspection) -> "Figure":
    """The first principal components of the first layer's filters (Fig. 7, left)."""
    assert seen.filters is not None
    images, explained = seen.filters.images, seen.filters.explained
    columns = 7
    rows = -(-len(images) // columns)
    figure, grid = image_grid(rows, columns, side=0.5)
    for axes, image in zip(grid.flat, images):
        axes.imshow(image.numpy(), interpolation="nearest")
    for axes in grid.flat[len(images) :]:
        axes.set_visible(False)
    figure.supxlabel(f"{len(images)} components, {explained.sum().item():.0%} of the filters' variance", fontsize=7)
    return figure


def faithfulness(seen: Inspection) -> "Figure":
    """Mean probability of the predicted class while patches are taken from the image or given to it, best first."""
    assert seen.explanations is not None
    figure = new_figure(5.6, 2.7)
    both = figure.subplots(1, 2, sharey=True)
    for colour, (name, explained) in zip(METHODS, seen.explanations.items()):
        tested = explained.faithfulness
        for axes, kind in zip(both, ("deletion", "insertion")):
            area = getattr(tested, f"{kind}_area").mean()
            mean = getattr(tested, kind).mean(dim=0)
            axes.plot(tested.steps.numpy(), mean.numpy(), color=colour, linewidth=1.2, label=f"{name}, area {area:.2f}")
    for axes, kind, words in zip(both, ("deletion, lower is better", "insertion, higher is better"), ("gone", "there")):
        axes.set(title=kind, xlabel=f"share of patches {words}", xlim=(0, 1), ylim=(0, 1))
        axes.legend()
    both[0].set_ylabel("probability of the class")
    return figure
