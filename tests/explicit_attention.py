"""A small ViT, and the same with its attention written out in float64: what inspection is compared to."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vitreous.block import Parallel
from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.pooling import ClassToken, Mean
from vitreous.position import EveryLayer, Learned2d, RoPE2d
from vitreous.relative import RelativeBias, RelativeKeys
from vitreous.resnet import ResNetStem
from vitreous.vit import ViTConfig

IMAGES = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
GRID = 2, 3
KINDS: dict[str, dict[str, Any]] = {
    "class token": {},
    "class token and registers": {"num_registers": 2},
    "rotary": {"position": RoPE2d(), "num_registers": 1},
    "no class token": {"class_token": False, "num_registers": 1},
    "mean beside a class token": {"pooling": Mean()},
    "normed queries and keys": {"qk_norm": True, "position": RoPE2d()},
    "relative": {"position": RelativeBias(), "num_registers": 1, "image_size": (8, 12)},
    "relative keys": {"position": RelativeKeys(), "num_registers": 1, "image_size": (8, 12)},
    "positions in every layer": {"position": EveryLayer(kind=Learned2d())},
    "parallel": {"block": Parallel()},
    "hybrid": {"stem": ResNetStem(units=())},
}


def tiny(**changes: Any) -> Classifier:
    """Three layers of four heads, all weights random."""
    torch.manual_seed(0)
    shape = {"patch_size": 4, "width": 32, "depth": 3, "num_heads": 4, "mlp_dim": 48, "image_size": 12, **changes}
    pooling = shape.pop("pooling", ClassToken() if shape.get("class_token", True) else Mean())
    classifier = ClassifierConfig(encoder=ViTConfig(**shape), pooling=pooling, num_classes=5).build().eval()
    for parameter in classifier.parameters():  # a fresh head gives zeros, whatever the encoder does
        torch.nn.init.normal_(parameter, std=0.2)
    return classifier


@dataclass(frozen=True)
class Explicit:
    """What was computed, in a graph that autograd can follow."""

    weights: list[Tensor]
    """Of each layer (batch, head, token, token)."""
    logits: Tensor
    classifier: Classifier

    def gradients(self, classes: Tensor) -> list[Tensor]:
        """Of the scores of these classes, with respect to each layer's weights."""
        scores = self.logits.gather(1, classes[:, None]).sum()
        return list(torch.autograd.grad(scores, self.weights))

    def read(self, matrix: Tensor) -> Tensor:
        """The mean row of the pooled tokens over the patches, as (batch, row, column)."""
        prefix = self.classifier.encoder.prefix.shape[0]
        pooled = matrix[:, :1] if isinstance(self.classifier.config.pooling, ClassToken) else matrix[:, prefix:]
        return pooled[..., prefix:].mean(dim=1).unflatten(-1, GRID)


def explicit(classifier: Classifier, images: Tensor = IMAGES) -> Explicit:
    """Each head by itself, from the definition."""
    model = deepcopy(classifier).double()
    encoder, weights = model.encoder, []
    tokens = encoder.embed(images.double())
    num_prefix, position = tokens.prefix.shape[1], encoder.position
    x = torch.cat([tokens.prefix, tokens.patches], dim=1)
    for layer, block in enumerate(encoder.blocks):
        x = position.before_block(x, layer, tokens)
        parallel = isinstance(encoder.config.block, Parallel)
        normed = (block.norm if parallel else block.norm1)(x)
        q, k, v = block.attention.qkv(normed).chunk(3, dim=-1)
        logits = []
        for head, (q_h, k_h) in enumerate(zip(q.split(8, -1), k.split(8, -1))):
            q_h, k_h = block.attention.query_norm(q_h), block.attention.key_norm(k_h)
            if isinstance(encoder.config.position, RoPE2d):
                angles = position.angles(tokens.coords).double()
                q_h, k_h = (_turn(side, angles, num_prefix) for side in (q_h, k_h))
            products = torch.einsum("bqd,bkd->bqk", q_h, k_h) / 8**0.5
            if isinstance(encoder.config.position, RelativeBias):
                products = products + _bias(position.layers[layer], head, num_prefix)
            if isinstance(encoder.config.position, RelativeKeys):
                products = products + _key_bias(position.layers[layer], q_h, head, num_prefix)
            logits.append(products)
        attention = torch.softmax(torch.stack(logits, dim=1), dim=-1)
        weights.append(attention)
        mixed = torch.cat([attention[:, head] @ v_h for head, v_h in enumerate(v.split(8, -1))], dim=-1)
        attended = block.attention.out(mixed)
        x = x + attended + block.mlp(normed) if parallel else x + attended
        x = x if parallel else x + block.mlp(block.norm2(x))
    x = encoder.norm(x)
    tokens = replace(tokens, prefix=x[:, :num_prefix], patches=x[:, num_prefix:])
    return Explicit(weights, model.head(model.pooling(tokens)), model)


def _turn(x: Tensor, angles: Tensor, num_prefix: int) -> Tensor:
    """Each pair (i, i + 4) of the patch tokens as a complex number, turned by its angle."""
    turned = torch.complex(x[..., :4], x[..., 4:])[:, num_prefix:] * torch.exp(1j * angles)
    return torch.cat([x[:, :num_prefix], torch.cat([turned.real, turned.imag], dim=-1)], dim=1)


def _bias(layer: torch.nn.Module, head: int, num_prefix: int) -> Tensor:
    """A head's bias for a class token, a register and the patches of a grid like the trained one, pair by pair."""
    table, (rows, columns) = layer.table, GRID
    patches = [(i, j) for i in range(rows) for j in range(columns)]
    bias = torch.zeros(num_prefix + len(patches), num_prefix + len(patches), dtype=torch.float64)
    for q, (i, j) in enumerate(patches):
        for k, (r, s) in enumerate(patches):
            bias[num_prefix + q, num_prefix + k] = table[i - r + rows - 1, j - s + columns - 1, head]
    bias[0], bias[:, 0], bias[0, 0] = layer.class_token[:, head]
    return bias


def _key_bias(layer: torch.nn.Module, queries: Tensor, head: int, num_prefix: int) -> Tensor:
    """The product of each patch's query with the key of each offset, pair by pair."""
    number = GRID[0] * GRID[1]
    bias = torch.zeros(queries.shape[0], num_prefix + number, num_prefix + number, dtype=torch.float64)
    for q in range(number):
        for k in range(number):
            key = layer.keys[q - k + number - 1, head]
            bias[:, num_prefix + q, num_prefix + k] = queries[:, num_prefix + q] @ key / 8**0.5
    return bias


def timm_attention(model: torch.nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """The attention weights of each block of a timm model, in a graph, and its logits; fused attention is off."""
    found = []
    attentions: list[Any] = [part for part in model.modules() if hasattr(part, "attn_drop")]
    handles = []
    for part in attentions:
        part.fused_attn = False
        handles.append(part.attn_drop.register_forward_hook(lambda module, inputs, out: found.append(out)))
    logits = model(images)
    for handle in handles:
        handle.remove()
    return found, logits
