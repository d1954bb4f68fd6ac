"""Where a model attends: attention maps of single layers, and attention rollout through all of them.

Fused attention never forms its weights. A hook on the blocks asked for sees what their attention sees, and
softmax(q k / sqrt(d)) is computed a second time beside it; the model itself runs as it always does.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from vitreous.block import Attention, Axial
from vitreous.classifier import Classifier
from vitreous.errors import InputError
from vitreous.position import Where
from vitreous.tokens import Tokens
from vitreous.vit import ViT

Seen = Callable[[int, Float[Tensor, "batch head token token"]], None]


@torch.no_grad()
def attention_maps(
    classifier: Classifier,
    images: Float[Tensor, "batch channel height width_px"],
    *,
    layers: Iterable[int] = (-1,),
) -> Float[Tensor, "layer batch head row column"]:
    """How each head of `layers` shares the class token's attention among the patches; a map sums to 1.

    Without a class token: the attention that a patch receives, as a mean over all patches that give it.
    Layers count from 0, or backwards from -1, as a list's items do; the order asked for is kept.

    Raises:
        InputError: if the model has no such layer.
    """
    layers, maps = list(layers), {}
    blocks = range(len(_vit(classifier).blocks))
    try:
        chosen = [blocks[layer] for layer in layers]
    except IndexError:
        last = len(blocks) - 1
        raise InputError(f"no layers {layers} in a model of {len(blocks)}; give 0 to {last}") from None

    def see(layer: int, weights: Float[Tensor, "batch head token token"]) -> None:
        maps[layer] = _over_patches(classifier, weights)

    grid = _watch(classifier, images, chosen, see).grid
    return torch.stack([maps[layer] for layer in chosen]).unflatten(-1, grid)


@torch.no_grad()
def rollout(
    classifier: Classifier, images: Float[Tensor, "batch channel height width_px"]
) -> Float[Tensor, "batch row column"]:
    """Attention followed through all layers and residuals (Abnar & Zuidema, arXiv:2005.00928, Sec. 3).

    Each layer's mean over heads plus the identity, rows scaled to 1, is multiplied onto those below it (the
    authors' code; equal to their 0.5 A + 0.5 I). Read out as `attention_maps` are; a map sums to 1.
    """
    flow: Tensor | None = None

    def see(layer: int, weights: Float[Tensor, "batch head token token"]) -> None:
        nonlocal flow
        mixed = weights.mean(dim=1) + torch.eye(weights.shape[-1], device=weights.device)
        mixed = mixed / mixed.sum(dim=-1, keepdim=True)
        flow = mixed if flow is None else mixed @ flow

    grid = _watch(classifier, images, range(len(_vit(classifier).blocks)), see).grid
    assert flow is not None, "an encoder has at least one block"
    return _over_patches(classifier, flow).unflatten(-1, grid)


def attention_weights(
    attention: Attention, x: Float[Tensor, "batch token width"], where: Where
) -> Float[Tensor, "batch head token token"]:
    """softmax(q k / sqrt(d)) in float32: row = the token that attends, column = the token attended to."""
    q, k, _ = attention.heads(x, where)
    logits = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-2, -1)
    return (logits if where.bias is None else logits + where.bias(q).float()).softmax(dim=-1)


def _watch(classifier: Classifier, images: Tensor, layers: Iterable[int], see: Seen) -> Tokens:
    """The encoder's tokens, after showing `see` the weights of each of `layers` in the order they run."""

    def hook(layer: int, attention: Attention, inputs: tuple[Tensor, Where]) -> None:
        see(layer, attention_weights(attention, *inputs))

    blocks, handles = _vit(classifier).blocks, []
    try:
        for layer in set(layers):
            attention = blocks[layer].get_submodule("attention")
            handles.append(attention.register_forward_pre_hook(partial(hook, layer)))
        return classifier.encoder(images)
    finally:
        for handle in handles:
            handle.remove()


def _over_patches(
    classifier: Classifier, weights: Float[Tensor, "*batch token token"]
) -> Float[Tensor, "*batch patch"]:
    """The rows that stand for the image, over patches only, scaled to sum to 1."""
    vit = _vit(classifier)
    prefix = vit.prefix.shape[0]
    first, last = (0, 1) if vit.config.class_token else (prefix, None)
    map_ = weights[..., first:last, prefix:].mean(dim=-2)
    return map_ / map_.sum(dim=-1, keepdim=True)


def attends(classifier: Classifier) -> bool:
    """Whether the encoder is a ViT whose tokens all attend to each other."""
    return isinstance(classifier.encoder, ViT) and not isinstance(classifier.encoder.config.block, Axial)


def _vit(classifier: Classifier) -> ViT:
    encoder = classifier.encoder
    if not attends(classifier):
        kind = "one with axial blocks" if isinstance(encoder, ViT) else f"a {type(encoder).__name__}"
        raise InputError(f"attention maps need a ViT whose tokens all attend to each other, not {kind}")
    assert isinstance(encoder, ViT)
    return encoder
