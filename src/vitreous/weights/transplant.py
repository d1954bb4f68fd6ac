"""Transplants: a trained encoder in a classifier for other classes or another image size."""

import dataclasses

import torch
from torch import Tensor

from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.errors import InputError
from vitreous.pooling import Mean
from vitreous.position import EveryLayer, Position, Trained
from vitreous.relative import RelativeBias, RelativeKeys
from vitreous.resampling import resample
from vitreous.tokens import Encoder
from vitreous.variants import title
from vitreous.vit import ViTConfig
from vitreous.weights.mapping import Tensors, check
from vitreous.weights.product import Product

MAY_DIFFER = frozenset(
    (
        *("image_size", "pad", "class_token", "initialisation", "layer_scale"),
        *("drop_path", "dropout", "attention_dropout"),
        *("patch_size", "width", "depth", "mlp_dim", "channels", "num_registers", "units", "multiplier"),
    )
)
"""What a transplant can change, what only training knows, and what the shapes of tensors tell."""


@torch.no_grad()
def fit_encoder(config: ClassifierConfig, product: Product) -> Classifier:
    """A classifier of `config` that starts from the encoder of `product`, its head at zero (Sec. 3.2).

    Positions with a table are resampled to the new grid. A class token the new model cannot use is left behind;
    the place of one that has none any more is added to it. Pooling of the same kind comes along.

    Raises:
        InputError: if the two encoders are not the same function; names the tensors or the field.
    """
    source, target = product.classifier.config, config
    name = title(target.encoder)
    _check_same_function(source.encoder, target, name=name)
    classifier = config.build()
    encoder = product.classifier.encoder.state_dict()
    if isinstance(source.encoder, ViTConfig) and isinstance(target.encoder, ViTConfig):
        encoder = _adapted(encoder, source.encoder, target.encoder)
    check(encoder, classifier.encoder.state_dict(), model=name)
    classifier.encoder.load_state_dict(encoder)
    pooling, ours = product.classifier.pooling.state_dict(), classifier.pooling.state_dict()
    if pooling.keys() == ours.keys():
        check(pooling, ours, model=name)
        classifier.pooling.load_state_dict(pooling)
    return classifier


def _check_same_function(source: Encoder, target: ClassifierConfig, *, name: str) -> None:
    """See that what tensors do not tell is the same."""
    if type(source) is not type(target.encoder):
        raise InputError(f"these weights do not fit {name}: they are a {title(source)}")
    for field in dataclasses.fields(source):
        theirs, wanted = getattr(source, field.name), getattr(target.encoder, field.name)
        if field.name == "position":
            theirs, wanted = _kind(theirs), _kind(wanted)
        if field.name == "final_norm" and theirs and isinstance(target.pooling, Mean) and target.pooling.norm:
            continue  # the pooling has a norm of its own, so the encoder has none (MAE's fine-tuning)
        if field.name not in MAY_DIFFER and theirs != wanted:
            raise InputError(
                f"these weights do not fit {name}: they were trained with {field.name} {theirs}, not {wanted}"
            )


def _kind(position: Position) -> Position:
    """A position embedding without what a transplant can change."""
    if isinstance(position, Trained):
        return dataclasses.replace(position, class_token_slot=True, resampling="aligned_bilinear")
    if isinstance(position, RelativeBias):
        return dataclasses.replace(position, resampling="aligned_bilinear")
    if isinstance(position, EveryLayer):
        return dataclasses.replace(position, kind=_kind(position.kind))
    return position


def _adapted(tensors: Tensors, source: ViTConfig, target: ViTConfig) -> Tensors:
    tensors = dict(tensors)
    slot = tensors.get("position.class_token")
    if slot is not None and not (target.class_token and getattr(target.position, "class_token_slot", False)):
        del tensors["position.class_token"]
        tensors["prefix"] = torch.cat([tensors["prefix"][:1] + slot, tensors["prefix"][1:]])
    if source.class_token and not target.class_token:
        tensors["prefix"] = tensors["prefix"][1:]
        of_it = [name for name in tensors if name.startswith("position.") and name.endswith(".class_token")]
        tensors = {name: tensor for name, tensor in tensors.items() if name not in of_it}
    wants_slot = target.class_token and getattr(target.position, "class_token_slot", False)
    if wants_slot and source.class_token and slot is None:
        tensors["position.class_token"] = tensors["prefix"].new_zeros(1, source.width)
    if not target.final_norm:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("norm.")}
    for name in [name for name in tensors if name.startswith("position.")]:
        tensors[name] = _resized(name, tensors[name], source=source, target=target)
    return tensors


def _resized(name: str, tensor: Tensor, *, source: ViTConfig, target: ViTConfig) -> Tensor:
    """A tensor of the position embedding for the grid of `target`."""
    rows, columns = target.grid
    position = source.position.kind if isinstance(source.position, EveryLayer) else source.position
    if isinstance(position, RelativeKeys) and source.grid != target.grid:
        raise InputError(f"relative keys are of the grid they were trained on; take image_size {source.image_size}")
    grids = {"table": (rows, columns), "row": (rows, 1), "column": (1, columns)}
    if isinstance(position, RelativeBias):
        grids = {"table": (2 * rows - 1, 2 * columns - 1)}
    grid = grids.get(name.rpartition(".")[2])
    return tensor if grid is None else resample(tensor, grid, getattr(position, "resampling", "aligned_bilinear"))
