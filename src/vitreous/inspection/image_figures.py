"""Figures that show images: what the model saw of each, and what it made of it."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from vitreous.inspection.figure_style import (
    LINE,
    as_image,
    brightest,
    draw_overlay,
    heat_colours,
    image_grid,
    new_figure,
    shortened,
)
from vitreous.inspection.findings import Inspection
from vitreous.inspection.pictures import evenly

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LENS_LAYERS = 6
MOST_NAMED_CLASSES = 10


def attention(seen: Inspection, maps: Tensor) -> "Figure":
    """The image and a map for each head, of one layer; an image a row."""
    figure, grid = image_grid(len(seen.mapped), 1 + len(seen.heads))
    grid[0, 0].set_title("image")
    for axes, head in zip(grid[0, 1:], seen.heads):
        axes.set_title(f"head {head}")
    for row, file, heads in zip(grid, seen.mapped, maps):
        row[0].imshow(seen.shown(file))
        for axes, map_ in zip(row[1:], heads):
            axes.imshow(map_.numpy(), cmap=heat_colours(), vmax=brightest(map_), interpolation="nearest")
    return figure


def rollout(seen: Inspection) -> "Figure":
    """Images, and under each what attention rollout leaves bright of it (Fig. 6 and 14)."""
    assert seen.rollout is not None
    figure, grid = image_grid(2, len(seen.mapped))
    for axes, below, file, map_ in zip(*grid, seen.mapped, seen.rollout):
        image = seen.shown(file)
        mask = np.asarray(as_image(map_ / map_.max()).resize(image.size, 2), dtype=np.float32)
        axes.imshow(image)
        below.imshow(np.asarray(image) / 255 * mask.clip(0, 1)[..., None])
    grid[0, 0].set_ylabel("input")
    grid[1, 0].set_ylabel("rollout")
    return figure


def features(seen: Inspection) -> "Figure":
    """Images, and under each its patches coloured by three components of their features, one basis for all."""
    assert seen.features is not None
    figure, grid = image_grid(2, len(seen.mapped))
    for axes, below, file, colours in zip(*grid, seen.mapped, seen.features):
        axes.imshow(seen.shown(file))
        below.imshow(colours.numpy(), interpolation="nearest")
    grid[0, 0].set_ylabel("input")
    grid[1, 0].set_ylabel("features")
    return figure


def lens(seen: Inspection) -> "Figure":
    """Where in the image the predicted class can be read, layer by layer; below, the first token's best class.

    Colours run from 0 to the highest probability in the row, on a square-root scale.
    """
    from matplotlib.colors import PowerNorm

    assert seen.lens is not None
    depth = seen.lens.predicted.shape[0]
    layers = evenly(depth, MOST_LENS_LAYERS)
    figure, grid = image_grid(len(seen.mapped), 1 + len(layers), text=0.2)
    for axes, layer in zip(grid[0, 1:], layers):
        axes.set_title(f"layer {layer}")
    for i, (row, file) in enumerate(zip(grid, seen.mapped)):
        row[0].imshow(seen.shown(file))
        row[0].set_xlabel(shortened(seen.predictions[file].label), fontsize=6)
        scale = PowerNorm(0.5, 0, seen.lens.predicted[:, i, len(seen.prefix) :].max().item())
        for axes, layer in zip(row[1:], layers):
            map_ = seen.lens.predicted[layer, i, len(seen.prefix) :].unflatten(0, seen.grid)
            axes.imshow(map_.numpy(), cmap=heat_colours(), norm=scale, interpolation="nearest")
            best, share = seen.lens.classes[layer, i, 0, 0], seen.lens.probability[layer, i, 0, 0]
            axes.set_xlabel(f"{shortened(seen.classes[best], most=13)} {share:.0%}", fontsize=5.5)
    return figure


def explanations(seen: Inspection) -> "Figure":
    """Four maps over each image, with the areas under their deletion and insertion curves."""
    assert seen.explanations is not None
    figure, grid = image_grid(len(seen.mapped), 1 + len(seen.explanations), text=0.2)
    grid[0, 0].set_title("image")
    for column, (name, explained) in enumerate(seen.explanations.items(), 1):
        grid[0, column].set_title(name)
        tested = explained.faithfulness
        for i, (axes, file) in enumerate(zip(grid[:, column], seen.mapped)):
            draw_overlay(axes, seen.shown(file), explained.maps[i])
            areas = f"del {tested.deletion_area[i]:.2f}  ins {tested.insertion_area[i]:.2f}"
            axes.set_xlabel(areas, fontsize=6)
    for axes, file in zip(grid[:, 0], seen.mapped):
        axes.imshow(seen.shown(file))
        axes.set_xlabel(shortened(seen.predictions[file].label), fontsize=6)
    return figure


def layout(seen: Inspection) -> "Figure":
    """All images where their features put them, framed in the colours of the classes predicted most."""
    from matplotlib.lines import Line2D
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    assert seen.layout is not None
    figure = new_figure(5.6, 4.6)
    axes = figure.subplots()
    labels = [said.label for said in seen.predictions]
    common = sorted(set(labels), key=lambda name: (-labels.count(name), name))[:MOST_NAMED_CLASSES]
    colours = {name: f"C{i}" for i, name in enumerate(common)}
    axes.scatter(*seen.layout.T.numpy(), s=1, color="none")
    for file, place in enumerate(seen.layout.tolist()):
        image = seen.shown(file)
        image.thumbnail((64, 64))
        colour = colours.get(labels[file], LINE) if labels else LINE
        drawn = OffsetImage(np.asarray(image), zoom=18 / max(image.size))
        box = AnnotationBbox(drawn, place, pad=0.1, bboxprops={"edgecolor": colour, "linewidth": 1.2})
        axes.add_artist(box)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.margins(0.06)
    keys = [Line2D([], [], color=colour, marker="s", linestyle="", markersize=4) for colour in colours.values()]
    figure.legend(keys, [shortened(name) for name in colours], loc="outside lower center", ncols=5)
    return figure


def neighbours(seen: Inspection) -> "Figure":
    """Each image with the nearest of the gallery, and the cosine of their features."""
    found = seen.neighbours
    assert found is not None
    figure, grid = image_grid(len(seen.mapped), 1 + found.similarity.shape[1], text=0.2)
    grid[0, 0].set_title("image")
    for i, (row, file) in enumerate(zip(grid, seen.mapped)):
        row[0].imshow(seen.shown(file))
        for rank, axes in enumerate(row[1:]):
            axes.imshow(found.pixels[i, rank].permute(1, 2, 0).numpy())
            axes.set_xlabel(f"{shortened(found.labels[i][rank], most=14)} {found.similarity[i, rank]:.2f}", fontsize=6)
    return figure
