"""Looking at one checkpoint: every measure of this package, taken with one model on the same images."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

import torch

from vitreous.console import Console
from vitreous.data.source import Source
from vitreous.errors import InputError, did_you_mean
from vitreous.inspection.attention import attends
from vitreous.inspection.blocks import numbers
from vitreous.inspection.findings import Inspection
from vitreous.inspection.look import PARTS, Look
from vitreous.inspection.pictures import evenly
from vitreous.predict import Model, Picture
from vitreous.variants import title
from vitreous.vit import ViT


def inspect_checkpoint(
    model: Model,
    pictures: Sequence[Picture] = (),
    *,
    name: str = "model",
    files: Sequence[str] | None = None,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
    layers: Sequence[int] | None = (-1,),
    heads: Sequence[int] | None = None,
    gallery: Source | None = None,
    method: Literal["tsne", "umap"] = "tsne",
    max_images: int = 128,
    batch_size: int = 32,
    console: Console | None = None,
) -> Inspection:
    """Every part in `only` (all, if None) of what `PARTS` lists, as far as the model and the pictures allow.

    Args:
        files: names of `pictures`, where these are no paths.
        skip: parts not to look at, where `only` does not say.
        layers: whose attention is mapped, from 0 or backwards from -1; None for all. `heads` likewise.
        gallery: labelled images, among which the neighbours are looked for.
        method: of the layout.
        max_images: images to measure; of more, as many at even distances.

    Raises:
        InputError: if the model's tokens do not all attend to each other, an image cannot be read, or a part of
            `only` is unknown or cannot be had.
    """
    console, encoder = console or Console(quiet=True), model.module.encoder
    if not attends(model.module) or not isinstance(encoder, ViT):
        kind = title(model.module.config.encoder)
        raise InputError(f"inspect takes a ViT whose tokens all attend to each other, not {kind}")
    check_parts(only)
    if max_images < 1 or batch_size < 1:
        raise InputError(f"at least 1 image is needed, and 1 a batch, got {max_images} and {batch_size}")
    config, chosen = encoder.config, evenly(len(pictures), max_images)
    names = files or [str(p) if isinstance(p, str | Path) else f"image {i}" for i, p in enumerate(pictures)]
    pixels = [model.pixels(pictures[i]) for i in chosen]
    look = Look(
        model=model,
        config=config,
        pixels=torch.stack(pixels) if pixels else torch.zeros(0, 3, *model.view.shape, dtype=torch.uint8),
        layers=_once(numbers(layers, config.depth, "layers in a model")),
        heads=_once(numbers(heads, config.num_heads, "heads in a layer")),
        gallery=gallery,
        method=method,
        batch_size=batch_size,
        console=console,
    )
    found, left_out = {}, {}
    parts = [part for part in PARTS if part not in skip and (only is None or part in only)]
    with console.task("part", len(parts)) as task:
        for done, part in enumerate(parts, 1):
            try:
                found[part] = look.see(part)
            except InputError as error:
                if only is not None:
                    raise
                left_out[part] = str(error)
            task.update(done, part)
    return Inspection(
        name=name,
        title=title(config),
        parameters=_parameters(model),
        patch_size=config.patch_size,
        grid=look.grid,
        prefix=("class token",) * config.class_token + tuple(f"register {i + 1}" for i in range(config.num_registers)),
        layers=look.layers,
        heads=look.heads,
        classes=() if model.headless else model.classes,
        files=tuple(names[i] for i in chosen),
        mapped=tuple(look.mapped),
        pixels=look.pixels,
        predictions=() if model.headless else tuple(model.classify(look.pixels, batch_size=batch_size)),
        **found,
        left_out=left_out,
    )


def check_parts(only: Collection[str] | None) -> None:
    """Nothing, if every name is one of `PARTS`.

    Raises:
        InputError: if not; names the nearest.
    """
    for part in only or ():
        if part not in PARTS:
            raise InputError(f"there is no part {part!r} to look at{did_you_mean(part, PARTS)}")


def _once(chosen: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(chosen))


def _parameters(model: Model) -> dict[str, int]:
    """How many numbers each part of the model has learned."""
    encoder = model.module.encoder
    assert isinstance(encoder, ViT)
    parts = [*encoder.named_children(), ("pooling", model.module.pooling), ("head", model.module.head)]
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts}
    counts = {"prefix": encoder.prefix.numel(), **counts}
    return {name.replace("_", " "): count for name, count in counts.items() if count}
