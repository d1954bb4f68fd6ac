"""How figures look: one style, one palette, axes without ticks for images."""

import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from vitreous.errors import InputError
from vitreous.inspection.pictures import HEAT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GLASS, AMBER, SOFT, LINE = "#0e7c86", "#d9731a", "#54656f", "#9fb0b8"
METHODS = (GLASS, AMBER, "#6b4fa0", "#4d6b2f")
STYLE: Any = {
    **{"font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7},
    **{"legend.fontsize": 7, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False},
    **{"axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "pdf.fonttype": 42},
    **{"axes.edgecolor": SOFT, "xtick.color": SOFT, "ytick.color": SOFT, "font.family": "DejaVu Sans"},
}
DPI = 200
SIDE = 1.05  # of an image, in inches


def check_matplotlib() -> None:
    """Nothing, if figures can be drawn.

    Raises:
        InputError: if matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("figures need matplotlib: pip install 'vitreous[plot]'; or take --page, which needs none")


def drawn_files(figures: "Callable[[], Iterator[tuple[str, Figure]]]") -> dict[str, bytes]:
    """A .pdf and a .png of every figure, by file name.

    Raises:
        InputError: if matplotlib is not installed.
    """
    check_matplotlib()
    import matplotlib

    content = {}
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for it
        for name, figure in figures():
            for kind, facts in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
                file = io.BytesIO()
                figure.savefig(file, format=kind, dpi=DPI, metadata=facts)
                content[f"{name}.{kind}"] = file.getvalue()
    return content


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of that size in inches, laid out so that nothing overlaps."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def layer_axes(y_label: str) -> "tuple[Figure, Axes]":
    """A figure of one chart over the layers."""
    figure = new_figure(3.5, 2.7)
    axes = figure.subplots()
    axes.set(xlabel="layer", ylabel=y_label)
    return figure, axes


def draw_heads(axes: "Axes", values: Tensor) -> None:
    """A dot for each head above its layer, and a line through their means."""
    depth, heads = values.shape
    layers = np.repeat(np.arange(depth), heads)
    axes.scatter(layers, values.flatten().numpy(), s=12, color=GLASS, alpha=0.65, linewidths=0, label="a head")
    axes.plot(np.arange(depth), values.mean(dim=1).numpy(), color=AMBER, linewidth=1.2, label="mean of heads")
    axes.set(xticks=some_layers(range(depth)), ylim=(0, None))


def image_grid(rows: int, columns: int, *, side: float = SIDE, text: float = 0.0) -> "tuple[Figure, Any]":
    """A figure of square axes without ticks; `text` is the room below each, in inches."""
    figure = new_figure(columns * side + 0.3, rows * (side + text) + 0.3)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure, grid


def draw_overlay(axes: "Axes", image: Any, map_: Tensor) -> None:
    """A map over its image."""
    axes.imshow(image)
    extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
    smooth: dict[str, Any] = {"interpolation": "bilinear", "extent": extent}
    axes.imshow(map_.numpy(), cmap=heat_colours(), vmax=brightest(map_), alpha=0.65, **smooth)


def as_image(map_: Tensor) -> Any:
    """A map as an image of floats, to be resized."""
    return Image.fromarray(map_.numpy().astype(np.float32))


def heat_colours() -> Any:
    """The colours of maps, dark to bright, as on the pages."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("heat", np.array(HEAT) / 255)


def brightest(map_: Tensor) -> float:
    """The value that is drawn brightest."""
    return max(float(np.percentile(map_.numpy(), 98)), float(map_.min()) + 1e-12)


def some_layers(layers: Sequence[int]) -> list[int]:
    """At most about twelve of them, for ticks."""
    return list(layers)[:: max(len(layers) // 12, 1)]


def shortened(name: str, *, most: int = 20) -> str:
    """A name that fits below an image."""
    return name if len(name) <= most else name[: most - 1] + "…"
