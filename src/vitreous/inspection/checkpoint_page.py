"""A page on which a person asks each patch of an image whom it attends to; of one checkpoint, or of two side by side.

One file that opens anywhere: scripts but ours are refused by its own content security policy, and so is the network.
It stays below a limit of bytes; what did not fit, it names.
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from vitreous.inspection.attention import full_attention
from vitreous.inspection.distance import grid_distances
from vitreous.inspection.findings import Inspection
from vitreous.inspection.layer_chart import layer_chart
from vitreous.inspection.look import PARTS
from vitreous.inspection.packed_attention import packed, packed_attention
from vitreous.inspection.pictures import HEAT, data_uri, evenly, heat, picture
from vitreous.inspection.plots import Series
from vitreous.inspection.template import page_file, script_hash, template
from vitreous.predict import Model

PAGE_LIMIT = 30_000_000
"""Bytes of a page."""
RESERVE = 4_000  # bytes of tags around the attention
COSINE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # -1 to 1
SHOWN_CLASSES = 5


@dataclass(frozen=True)
class Kept:
    """The attention that fits on the page."""

    images: tuple[str, ...]
    """Of each image that fits, `packed_attention` of these layers and heads."""
    layers: tuple[int, ...]
    heads: tuple[int, ...]


def checkpoint_page(looks: Sequence[tuple[Model, Inspection]], *, command: str, limit: int = PAGE_LIMIT) -> bytes:
    """The page of one model, or of two on the same images, in at most `limit` bytes where one map fits.

    `command` is what to type to have images on it.
    """
    parts = [_describe(seen) for _, seen in looks]
    script = page_file("inspect.js")
    context = {
        "looks": [part["shown"] for part in parts],
        "command": command,
        "limit_mb": limit // 1_000_000,
        "names": PARTS,
        "css": Markup(page_file("report.css") + page_file("inspect.css")),
        "js": Markup(script),
        "js_hash": script_hash(script),
    }
    data = {"heat": HEAT, "cosine": COSINE, "models": [part["data"] for part in parts]}
    room = (limit - len(_rendered(context, data, [[] for _ in looks])) - RESERVE) // len(looks)
    kept = [keep(model, seen, room=room) for model, seen in looks]
    for model, part, fits in zip(data["models"], context["looks"], kept, strict=True):
        model |= {"layers": fits.layers, "heads": fits.heads, "num_images": len(fits.images)}
        part["kept"] = fits
    return _rendered(context, data, [fits.images for fits in kept])


def keep(model: Model, seen: Inspection, *, room: int) -> Kept:
    """As many images as fit into `room` bytes; where not even one does, fewer layers, and then fewer heads of it."""
    layers, heads, texts = seen.layers, seen.heads, []
    tokens = math.prod(seen.grid) + len(seen.prefix)
    most = max(2 * room // (len(heads) * tokens**2), 1)  # a weight takes about a byte; never form many times too much
    layers = tuple(layers[i] for i in evenly(len(layers), min(most, len(layers))))
    for file in seen.mapped:
        text = _attention(model, seen, file, layers=layers, heads=heads)
        while not texts and len(text) > room and (len(layers) > 1 or len(heads) > 1):
            most = int(len(layers) * len(heads) * room / len(text))
            if len(layers) > 1:
                layers = tuple(layers[i] for i in evenly(len(layers), min(max(most // len(heads), 1), len(layers) - 1)))
            else:
                heads = heads[: min(max(most, 1), len(heads) - 1)]
            text = _attention(model, seen, file, layers=layers, heads=heads)
        if sum(map(len, texts)) + len(text) > room:
            break
        texts.append(text)
    return Kept(tuple(texts), layers, heads)


def _attention(model: Model, seen: Inspection, file: int, *, layers: tuple[int, ...], heads: tuple[int, ...]) -> str:
    images = model.view.normalise(seen.pixels[file][None].to(model.world.device))
    return packed_attention(full_attention(model.module, images, layers=layers, heads=heads)[:, 0].cpu())


def _rendered(context: dict[str, Any], data: dict[str, Any], attention: Sequence[Sequence[str]]) -> bytes:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = template("inspect.html.jinja").render(**context, data=Markup(text), attention=attention)
    return page.encode("utf-8", "replace")  # a file name may hold bytes that are no text


def _describe(seen: Inspection) -> dict[str, Any]:
    """What the template shows of a model, and what the script draws from."""
    lens, positions = seen.lens, seen.positions
    images = [_image(seen, i) for i in range(len(seen.mapped))]
    return {
        "shown": {
            "name": seen.name,
            "title": seen.title,
            "pixels": " × ".join(str(side) for side in seen.pixels.shape[:1:-1]),
            "classes": len(seen.classes),
            "parameters": {name: count for name, count in seen.parameters.items() if count},
            "grid": seen.grid,
            "layers": seen.layers,
            "heads": seen.heads,
            "prefix": seen.prefix,
            "has_lens": lens is not None,
            "has_positions": positions is not None,
            "filters": _filters(seen),
            "charts": _charts(seen),
            "num_images": len(seen.files),
            "images": images,
            "left_out": seen.left_out,
            "kept": Kept((), (), ()),
        },
        "data": {
            "name": seen.name,
            "grid": seen.grid,
            "prefix": seen.prefix,
            "classes": seen.classes if lens is not None else (),
            "positions": None if positions is None else packed((127.5 * (positions + 1)).round().to(torch.uint8)),
            "lens": []
            if lens is None
            else [_lens(lens.classes[:, i], lens.probability[:, i]) for i in range(len(images))],
            "ranks": 0 if lens is None else lens.classes.shape[-1],
        },
    }


def _lens(classes: Tensor, probability: Float[Tensor, "layer token rank"]) -> str:
    """Class and probability in 1/65535, in turn."""
    pairs = torch.stack([classes, (65535 * probability).round().long()], dim=-1)
    return packed(torch.from_numpy(pairs.numpy().astype(np.uint16)))


def _image(seen: Inspection, i: int) -> dict[str, Any]:
    file = seen.mapped[i]
    maps = [] if seen.rollout is None else [("rollout", heat(seen.rollout[i].numpy()), None)]
    for name, explained in (seen.explanations or {}).items():
        tested = explained.faithfulness
        areas = tested.deletion_area[i].item(), tested.insertion_area[i].item()
        maps = [row for row in maps if row[0] != name] + [(name, heat(explained.maps[i].numpy()), areas)]
    return {
        "file": seen.files[file],
        "picture": picture(seen.shown(file), side=512),
        "top": seen.predictions[file].top[:SHOWN_CLASSES] if seen.predictions else (),
        "features": None if seen.features is None else _png(seen.features[i]),
        "maps": maps,
    }


def _charts(seen: Inspection) -> list[Markup]:
    charts = []

    def line(name: str, values: Tensor) -> Series:
        return Series(name, range(len(values)), values.tolist())

    if seen.distance is not None:
        pixels, nats, share = seen.distance.distance, seen.distance.entropy, seen.distance.prefix_share
        even = grid_distances(seen.grid, patch_size=seen.patch_size).mean().item()
        means = [[line("mean", values.mean(dim=1))] for values in (pixels, nats, share)]
        tokens = math.prod(seen.grid) + len(seen.prefix)
        charts.append(layer_chart(means[0], title="Attention distance", unit="px", heads=pixels, even=even))
        charts.append(layer_chart(means[1], title="Attention entropy", unit="nats", heads=nats, even=math.log(tokens)))
        if seen.prefix:
            charts.append(layer_chart(means[2], title="Attention to prefix tokens", unit="share", heads=share))
    if seen.norms is not None:
        lines = [line("median", seen.norms.median), line("largest", seen.norms.largest)]
        charts.append(layer_chart(lines, title="Norm of patch tokens", unit="", log=True))
    return charts


def _filters(seen: Inspection) -> list[str]:
    return [] if seen.filters is None else [_png(image) for image in seen.filters.images]


def _png(colours: Float[Tensor, "row column channel"]) -> str:
    pixels = (255 * colours.clamp(0, 1)).round().to(torch.uint8).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG", optimize=True)
    return data_uri("png", file.getvalue())
