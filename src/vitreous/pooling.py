"""Pooling: one vector from a token sequence. A variant is its config and its module, here."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.config import Config
from vitreous.errors import InputError
from vitreous.vit import Tokens, ViTConfig


@dataclass(frozen=True, kw_only=True)
class Pooling(Config):
    """Which pooling stands between encoder and head."""

    @abstractmethod
    def build(self, encoder: ViTConfig) -> nn.Module:
        """A module from `Tokens` to (batch, width)."""


@dataclass(frozen=True, kw_only=True)
class ClassToken(Pooling):
    """The class token (the paper's Eq. 4)."""

    def build(self, encoder: ViTConfig) -> nn.Module:
        if not encoder.class_token:
            raise InputError("class-token pooling needs an encoder with class_token=True; or pool with Mean()")
        return FirstPrefix()


class FirstPrefix(nn.Module):
    """The class token."""

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch width"]:
        return tokens.prefix[:, 0]


@dataclass(frozen=True, kw_only=True)
class Mean(Pooling):
    """The mean patch token ("GAP", the paper's App. D.3)."""

    def build(self, encoder: ViTConfig) -> nn.Module:
        return MeanPatch()


class MeanPatch(nn.Module):
    """The mean of the patches."""

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch width"]:
        return tokens.patches.mean(dim=1)


@dataclass(frozen=True, kw_only=True)
class AttentionPool(Pooling):
    """A learned query that attends to the patches ("MAP", Scaling ViT, arXiv:2106.04560, Sec. 3.3)."""

    def build(self, encoder: ViTConfig) -> nn.Module:
        return AttentionPooling(encoder)


class AttentionPooling(nn.Module):
    """Multi-head cross-attention of one probe, then a feed-forward layer with a residual."""

    def __init__(self, encoder: ViTConfig) -> None:
        super().__init__()
        width = encoder.width
        self.num_heads = encoder.num_heads
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=encoder.norm_eps)
        self.mlp = encoder.feed_forward.build(width, encoder.mlp_dim, dropout=0.0)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Xavier-uniform throughout, as in the paper's code."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                for weight in layer.weight.chunk(2) if layer is self.key_value else [layer.weight]:
                    nn.init.xavier_uniform_(weight)
                nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.probe[0])
        self.norm.reset_parameters()

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch width"]:
        patches = tokens.patches
        probe = self.probe.expand(patches.shape[0], -1, -1)
        q = self.query(probe).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.key_value(patches).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return (x + self.mlp(self.norm(x)))[:, 0]
