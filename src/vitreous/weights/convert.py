"""Trained models into the files of other projects, and the proof that they still say the same."""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitreous.errors import InputError, some
from vitreous.files import write_bytes, write_folder
from vitreous.weights import google, huggingface, torchvision
from vitreous.weights.mapping import Tensors
from vitreous.weights.open import open_model
from vitreous.weights.plain import refuse
from vitreous.weights.product import (
    CONFIG,
    WEIGHTS,
    Product,
    config_bytes,
    json_bytes,
    load_product,
    safetensors_bytes,
    save_product,
)
from vitreous.weights.read import SUFFIXES
from vitreous.weights.timm_config import lacks
from vitreous.weights.timm_tensors import to_timm

LAYOUTS = ("vitreous", "timm", "hf", "torchvision", "google")
ARRAYS = "model.npz"
FILES = frozenset({CONFIG, WEIGHTS, ARRAYS, huggingface.PREPROCESSOR})
"""What a folder that was written may have in it."""


@dataclass(frozen=True)
class Agreement:
    """How alike two models answer the same random images."""

    difference: float
    """Largest absolute difference of their logits, or of their features where they have no head."""
    largest: float
    """Largest absolute value among them."""
    same_class: int
    """Images for which the most probable class is the same."""
    images: int

    @property
    def holds(self) -> bool:
        """Whether they are one function: within 1 %, which another form of GELU keeps and a lost part does not."""
        return self.difference <= 0.01 * self.largest and self.same_class == self.images


def convert(
    source: str, destination: Path, *, to: str = "vitreous", progress: Callable[[str], None] | None = None
) -> Product:
    """Write the model that `source` means, any name `open_model` takes, in a layout, and return it.

    `destination` becomes a folder with config.json and model.safetensors, for Google model.npz; its preprocessing and
    its class names travel in config.json. Or it is one file: .safetensors, with all that in its metadata, or .npz, of
    tensors alone.

    Raises:
        InputError: if there is no such model, the layout has no place for a part of it, or nothing can be written.
    """
    if to not in LAYOUTS:
        raise InputError(f"no layout {to!r}; choose one of {', '.join(LAYOUTS)}")
    product = open_model(source, progress=progress)
    told = ("left", "assumed")  # `open_model` just did; from here on it is stated
    product = replace(product, extra={name: value for name, value in product.extra.items() if name not in told})
    write(product, destination, to=to)
    forgotten = google.forgets(product.classifier.config) if to == "google" and destination.suffix == ".npz" else []
    if forgotten and progress is not None:
        said = ", ".join(forgotten)
        progress(f"{destination} alone does not tell {said} and is read as Google's; a folder keeps it in {CONFIG}")
    return product


def write(product: Product, destination: Path, *, to: str) -> None:
    """`product` in a layout at `destination`, a folder or a file; as `convert`."""
    destination = Path(os.path.abspath(destination))
    suffix = ".npz" if to == "google" else ".safetensors"
    single = destination.suffix.lower() in SUFFIXES
    if single and destination.suffix != suffix:
        raise InputError(f"{destination}: the {to} layout is written as {suffix}, or as a folder; give one of these")
    if destination.name == "model" and (destination.parent / "run.json").is_file():
        raise InputError(f"cannot write {destination}: it is the model of a run; give another name")
    if destination.is_dir() == single and destination.exists():
        kind = "a folder" if destination.is_dir() else "a file"
        raise InputError(f"cannot write {destination}: it is {kind}; give another name")
    others = [entry.name for entry in destination.iterdir() if entry.name not in FILES] if destination.is_dir() else []
    if others:  # the folder is replaced as a whole
        raise InputError(f"cannot write {destination}: it has other things in it ({some(others)}); give another name")
    if Path.cwd().is_relative_to(destination):
        raise InputError(f"cannot write {destination}: you are in that folder; give another name")
    if to == "timm":
        refuse("timm", lacks(product.classifier.config), instead="vitreous")
    if to in ("vitreous", "timm") and not single:
        save_product(destination, product)
        return
    tensors = _tensors(product, to)
    documents: dict[str, dict[str, Any]] = {CONFIG: {}}
    if to == "hf":
        documents = huggingface.documents(product.classifier, product.view, product.classes)
    config = config_bytes(product, documents.pop(CONFIG))
    if to == "google":
        name, data = ARRAYS, _npz_bytes(tensors)
    else:
        name, data = WEIGHTS, safetensors_bytes(tensors, config=config if single else None)
    if single:
        write_bytes(destination, data)
        return
    write_folder(destination, {name: data, CONFIG: config} | {n: json_bytes(said) for n, said in documents.items()})


def _tensors(product: Product, to: str) -> Tensors:
    writers = {"timm": to_timm, "hf": huggingface.write, "torchvision": torchvision.write, "google": google.write}
    tensors = product.classifier.state_dict() if to == "vitreous" else writers[to](product.classifier)
    if product.extra.get("headless"):
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEADS[to])}
    return tensors


HEADS = {
    "vitreous": ("head.linear.",),
    "timm": ("head.",),
    "hf": ("classifier.",),
    "torchvision": ("heads.head.",),
    "google": ("head/", "resnet/head/"),
}
"""How the names of the last layer's tensors begin in each layout."""


def _npz_bytes(tensors: Tensors) -> bytes:
    file = io.BytesIO()
    arrays: dict[str, Any] = {n: np.ascontiguousarray(t.detach().float().cpu().numpy()) for n, t in tensors.items()}
    np.savez(file, **arrays)
    return file.getvalue()


@torch.no_grad()
def verify(product: Product, destination: Path, *, images: int = 4) -> Agreement:
    """`product` against what was written at `destination`, on normal random images of the model's size.

    Raises:
        InputError: if what was written cannot be read back.
    """
    single = destination.is_file()
    written = load_product(destination.parent, weights=destination.name) if single else load_product(destination)
    config, generator = product.classifier.config.encoder, torch.Generator().manual_seed(0)
    pixels = torch.randn(images, config.channels, *config.image_shape, generator=generator)
    headless = product.extra.get("headless", False)
    ours, theirs = (
        classifier.features(pixels) if headless else classifier(pixels)
        for classifier in (product.classifier, written.classifier)
    )
    return Agreement(
        difference=(ours - theirs).abs().max().item(),
        largest=ours.abs().max().item(),
        same_class=int((ours.argmax(-1) == theirs.argmax(-1)).sum()),
        images=images,
    )
