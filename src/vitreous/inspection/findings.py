"""What was seen of a checkpoint: numbers and names, ready to be drawn, written or shown in a notebook."""

import dataclasses
import html
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from vitreous.inspection.distance import AttentionStatistics
from vitreous.inspection.faithfulness import Faithfulness
from vitreous.inspection.filters import FilterComponents
from vitreous.inspection.norms import TokenNorms
from vitreous.inspection.pictures import heat, picture
from vitreous.predict import Prediction
from vitreous.tables import table


@dataclass(frozen=True)
class Lens:
    """What the head reads from each token after each layer; probabilities in [0, 1]."""

    classes: Int[Tensor, "layer image token rank"]
    """The most probable classes, best first."""
    probability: Float[Tensor, "layer image token rank"]
    predicted: Float[Tensor, "layer image token"]
    """Of the class that the model predicts for the image."""


@dataclass(frozen=True)
class Explanation:
    """One way to say what a prediction rests on: a map for each image, and its test."""

    maps: Float[Tensor, "image row column"]
    faithfulness: Faithfulness


@dataclass(frozen=True)
class Nearest:
    """The images of a gallery that are nearest to each mapped image, nearest first."""

    files: tuple[tuple[str, ...], ...]
    labels: tuple[tuple[str, ...], ...]
    similarity: Float[Tensor, "image rank"]
    """Cosine, in [-1, 1]."""
    pixels: UInt8[Tensor, "image rank 3 height width"]


@dataclass(frozen=True)
class Inspection:
    """What was seen of a checkpoint; a part that was not looked at is None.

    `image` counts the mapped images, of which there are few, but for `layout`, `pixels` and `predictions`,
    which have a row for each of `files`.
    """

    name: str
    title: str
    parameters: dict[str, int]
    """By part of the model."""
    patch_size: int
    grid: tuple[int, int]
    """Rows and columns of patches."""
    prefix: tuple[str, ...]
    """The tokens before the patches."""
    layers: tuple[int, ...]
    """Whose attention is mapped, from 0."""
    heads: tuple[int, ...]
    classes: tuple[str, ...]
    """Empty for an encoder without a head."""
    files: tuple[str, ...]
    """The images measured."""
    mapped: tuple[int, ...]
    """Positions in `files` of those that have maps."""
    pixels: UInt8[Tensor, "file 3 height width"]
    """What the model saw."""
    predictions: tuple[Prediction, ...]
    positions: Float[Tensor, "rows columns rows columns"] | None = None
    filters: FilterComponents | None = None
    distance: AttentionStatistics | None = None
    norms: TokenNorms | None = None
    attention: Float[Tensor, "layer image head row column"] | None = None
    rollout: Float[Tensor, "image row column"] | None = None
    features: Float[Tensor, "image row column 3"] | None = None
    """Colours in [0, 1]."""
    lens: Lens | None = None
    explanations: dict[str, Explanation] | None = None
    layout: Float[Tensor, "file 2"] | None = None
    neighbours: Nearest | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    """Why a part is missing, by its name."""

    def numbers(self) -> dict[str, Any]:
        """Everything but pixels and the norm of each single patch, ready for JSON; numbers to six digits."""
        return _plain(self)

    def shown(self, file: int) -> Image.Image:
        """What the model saw of the image at this position in `files`."""
        return Image.fromarray(self.pixels[file].permute(1, 2, 0).numpy())

    def by_layer(self) -> list[dict[str, float]]:
        """Figures of each layer, by name; none without images."""
        if self.distance is None:
            return []
        pixels, nats, share = self.distance.distance, self.distance.entropy, self.distance.prefix_share
        columns = {
            "distance_px": pixels.mean(dim=1),
            "lowest_px": pixels.amin(dim=1),
            "highest_px": pixels.amax(dim=1),
            "entropy_nats": nats.mean(dim=1),
            "prefix_share": share.mean(dim=1),
        }
        if self.norms is not None:
            columns["high_norm_share"] = self.norms.share
        lines = zip(*(values.tolist() for values in columns.values()))
        return [{"layer": layer, **dict(zip(columns, line))} for layer, line in enumerate(lines)]

    def rows(self) -> list[tuple[str, ...]]:
        """`by_layer` as a table for people; without images the parameters."""
        if not (layers := self.by_layer()):
            return [("part", "parameters"), *((name, f"{count:,}") for name, count in self.parameters.items())]
        forms = {
            "layer": ("layer", "{:.0f}"),
            "distance_px": ("distance, px", "{:.1f}"),
            "lowest_px": ("lowest", "{:.1f}"),
            "highest_px": ("highest", "{:.1f}"),
            "entropy_nats": ("entropy, nats", "{:.3f}"),
            "prefix_share": ("to prefix", "{:.1%}"),
            "high_norm_share": ("high-norm tokens", "{:.2%}"),
        }
        head = tuple(forms[name][0] for name in layers[0])
        return [head, *(tuple(forms[name][1].format(value) for name, value in line.items()) for line in layers)]

    def _repr_html_(self) -> str:
        size = 'width="112" style="image-rendering:pixelated"'
        maps = [] if self.rollout is None else self.rollout
        seen = " ".join(f'<img {size} src="{picture(self.shown(i), side=224)}">' for i in self.mapped)
        flow = " ".join(f'<img {size} src="{heat(map_.numpy())}">' for map_ in maps)
        said = html.escape(f"{self.name}: {self.title}, {sum(self.parameters.values()):,} parameters")
        return f"<p><b>{said}</b></p><p>{seen}</p><p>{flow}</p><pre>{html.escape(table(self.rows()))}</pre>"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        bulky = {"norms"} if isinstance(value, TokenNorms) else {"pixels"}
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name not in bulky}
        return {name: _plain(part) for name, part in fields.items()}
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    return float(f"{value:.6g}") if isinstance(value, float) else value
