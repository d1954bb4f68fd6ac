"""Where a model attends, seen while it runs as it always does.

Fused attention never forms its weights. `watch` looks at each call of it, and computes softmax(q k / sqrt(d) + bias)
beside it from the very queries, keys and bias that the call was given: in float32, and for so few images at a time that
memory stays small. The output of the model is the same bit for bit.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vitreous.block import Axial
from vitreous.classifier import Classifier
from vitreous.errors import InputError
from vitreous.inspection.blocks import Images, numbers
from vitreous.inspection.targets import targets
from vitreous.packing import PackedLinear
from vitreous.pooling import FirstPrefix
from vitreous.tokens import Tokens
from vitreous.vit import ViT

Weights = Float[Tensor, "image head token token"]
"""Row = the token that attends, column = the token attended to; a row sums to 1."""
Seen = Callable[[int, slice, Weights], None]
"""Hears the layer, which images of the batch, and their weights."""
SeenWithGradients = Callable[[int, slice, Weights, Weights], None]
"""As `Seen`, and the gradients of the class scores with respect to the weights."""

PART_BYTES = 32 * 2**20
"""Weights are formed for as many images at a time as fit, at least one."""


@dataclass(frozen=True)
class Attended:
    """What a layer's fused attention was given, and what it gave."""

    query: Float[Tensor, "batch head token head_dim"]
    key: Float[Tensor, "batch head token head_dim"]
    value: Float[Tensor, "batch head token head_dim"]
    out: Float[Tensor, "batch head token head_dim"]
    bias: Float[Tensor, "#batch head token token"] | None

    def parts(self) -> Iterator[slice]:
        """The images of the batch, few at a time."""
        batch, heads, tokens, _ = self.query.shape
        step = max(PART_BYTES // (4 * heads * tokens**2), 1)
        return (slice(start, min(start + step, batch)) for start in range(0, batch, step))

    def weights(self, images: slice, heads: list[int] | None = None) -> Weights:
        """softmax(q k / sqrt(d) + bias) in float32; of all heads if None."""
        picked = slice(None) if heads is None else heads
        query, key = (x[images][:, picked].float() for x in (self.query, self.key))
        logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        if self.bias is not None:
            logits += self.bias.expand(self.query.shape[0], -1, -1, -1)[images][:, picked]
        return logits.softmax(dim=-1)

    def gradients(self, images: slice, of_out: Float[Tensor, "batch head token head_dim"]) -> Weights:
        """Of the weights, from those of `out` = weights @ `value`, in float32."""
        return of_out[images].float() @ self.value[images].float().transpose(-2, -1)


class _Calls(TorchFunctionMode):
    """Shows `see` every call of fused attention after its answer, and changes nothing."""

    def __init__(self, see: Callable[[Attended], None]) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            self.see(Attended(*args, out=answer, bias=kwargs["attn_mask"]))
        return answer


def watch(
    classifier: Classifier,
    images: Images,
    see: Seen,
    *,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
) -> Tokens:
    """The encoder's tokens, after showing `see` the weights of each of `layers` in the order they run.

    A batch is shown in parts: `see` hears the layer, which images they are, and their weights for `heads` in that
    order. None means all. Numbers count from 0, or backwards from -1, as a list's items do.

    Raises:
        InputError: if the model has no such layer or head, or is none whose tokens all attend to each other.
    """
    vit = attending(classifier)
    chosen = set(_layers(classifier, layers))
    picked = None if heads is None else numbers(heads, vit.config.num_heads, "heads in a layer")
    running = itertools.count()

    def look(call: Attended) -> None:
        if (layer := next(running)) in chosen:
            with torch.no_grad(), _exact(images):
                for part in call.parts():
                    see(layer, part, call.weights(part, picked))

    with _Calls(look):
        return vit(images)


def watch_gradients(
    classifier: Classifier, images: Images, see: SeenWithGradients, *, classes: Int[Tensor, " batch"] | None = None
) -> Tokens:
    """As `watch` of all layers and heads, with the gradients of each image's score (logit) of its class.

    `classes` are the most probable ones where none are given. Attention stays fused: what a weight's gradient is
    follows from that of the layer's output, out = weights @ value.

    Raises:
        InputError: as `watch`, or if there is no class for each image, or the model is packed.
    """
    vit, calls = attending(classifier), []
    if any(isinstance(part, PackedLinear) for part in classifier.modules()):
        raise InputError("a model packed for inference has no gradients; give the classifier that it was packed from")
    with torch.inference_mode(False), torch.enable_grad():
        with _Calls(calls.append):
            tokens = vit(images.clone().requires_grad_())  # so that a frozen model has gradients, too
        logits = classifier.head(classifier.pooling(tokens)).float()
        scores = logits.gather(1, targets(logits, classes)[:, None])
        of_outs = torch.autograd.grad(scores.sum(), [call.out for call in calls])
    with torch.no_grad(), _exact(images):
        for layer, (call, of_out) in enumerate(zip(calls, of_outs, strict=True)):
            for part in call.parts():
                see(layer, part, call.weights(part), call.gradients(part, of_out))
    return tokens


@torch.no_grad()
def full_attention(
    classifier: Classifier,
    images: Images,
    *,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
) -> Float[Tensor, "layer batch head token token"]:
    """The weights of `layers` and `heads` in the order asked, prefix tokens first; `watch` says what numbers mean."""
    chosen = _layers(classifier, layers)
    parts: dict[int, list[Tensor]] = {layer: [] for layer in chosen}
    watch(classifier, images, lambda layer, _, weights: parts[layer].append(weights), layers=chosen, heads=heads)
    return torch.stack([torch.cat(parts[layer]) for layer in chosen])


@torch.no_grad()
def attention_maps(
    classifier: Classifier, images: Images, *, layers: Iterable[int] = (-1,), heads: Iterable[int] | None = None
) -> Float[Tensor, "layer batch head row column"]:
    """How each head of `layers` shares the class token's attention among the patches; a map sums to 1.

    Where no class token is pooled: the attention that a patch receives, as a mean over all patches that give it.
    `watch` says what numbers mean; the order asked for is kept.

    Raises:
        InputError: as `watch`.
    """
    chosen = _layers(classifier, layers)
    parts: dict[int, list[Tensor]] = {layer: [] for layer in chosen}

    def see(layer: int, _: slice, weights: Weights) -> None:
        parts[layer].append(shares(read_out(classifier, weights)))

    grid = watch(classifier, images, see, layers=chosen, heads=heads).grid
    return torch.stack([torch.cat(parts[layer]) for layer in chosen]).unflatten(-1, grid)


def read_out(classifier: Classifier, weights: Float[Tensor, "*batch token token"]) -> Float[Tensor, "*batch patch"]:
    """The rows of the tokens that are pooled, as a mean, over patches only; a pooling that attends counts all alike."""
    prefix, pooling = attending(classifier).prefix.shape[0], classifier.pooling
    pooled = slice(pooling.number) if isinstance(pooling, FirstPrefix) else slice(prefix, None)
    return weights[..., pooled, prefix:].mean(dim=-2)


def shares(map_: Float[Tensor, "*batch patch"]) -> Float[Tensor, "*batch patch"]:
    """A map that is nowhere negative, scaled to sum to 1; one of zeros stays so."""
    return map_ / map_.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(map_.dtype).tiny)


def attends(classifier: Classifier) -> bool:
    """Whether the encoder is a ViT whose tokens all attend to each other."""
    return isinstance(classifier.encoder, ViT) and not isinstance(classifier.encoder.config.block, Axial)


def attending(classifier: Classifier) -> ViT:
    """The encoder, if `attends`.

    Raises:
        InputError: if not; says what it is instead.
    """
    encoder = classifier.encoder
    if not attends(classifier):
        kind = "one with axial blocks" if isinstance(encoder, ViT) else f"a {type(encoder).__name__}"
        raise InputError(f"attention maps need a ViT whose tokens all attend to each other, not {kind}")
    assert isinstance(encoder, ViT)
    return encoder


def _layers(classifier: Classifier, layers: Iterable[int] | None) -> list[int]:
    return numbers(layers, len(attending(classifier).blocks), "layers in a model")


def _exact(images: Tensor) -> torch.autocast:
    """Within it, products are in the precision of their factors."""
    device = images.device.type
    return torch.autocast(device if torch.amp.is_autocast_available(device) else "cpu", enabled=False)
