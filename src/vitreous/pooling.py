"""Pooling: one vector from a token sequence. A variant is its config and its module, here."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.config import Config
from vitreous.errors import InputError
from vitreous.tokens import Encoder, Tokens
from vitreous.vit import ViTConfig


@dataclass(frozen=True, kw_only=True)
class Pooling(Config):
    """Which pooling stands between encoder and head."""

    @abstractmethod
    def build(self, encoder: Encoder) -> nn.Module:
        """A module from `Tokens` to (batch, `features`)."""

    def features(self, encoder: Encoder) -> int:
        """Channels of the vector."""
        return encoder.features


def _vit(encoder: Encoder, pooling: str, *, prefix: int) -> ViTConfig:
    """`encoder`, if it is a ViT with a class token and so many prefix tokens."""
    if not isinstance(encoder, ViTConfig):
        raise InputError(f"{pooling} pooling needs a ViT, not {type(encoder).__name__}; pool with Mean()")
    if prefix and not (encoder.class_token and 1 + encoder.num_registers >= prefix):
        more = "" if prefix == 1 else " and num_registers=1"
        raise InputError(f"{pooling} pooling needs an encoder with class_token=True{more}; or pool with Mean()")
    return encoder


@dataclass(frozen=True, kw_only=True)
class ClassToken(Pooling):
    """The class token (the paper's Eq. 4)."""

    def build(self, encoder: Encoder) -> nn.Module:
        _vit(encoder, "class-token", prefix=1)
        return FirstPrefix(1)


@dataclass(frozen=True, kw_only=True)
class ClassAndDistillation(Pooling):
    """Class token and distillation token, the first register, side by side (DeiT, arXiv:2012.12877, Sec. 4)."""

    def build(self, encoder: Encoder) -> nn.Module:
        _vit(encoder, "class-and-distillation", prefix=2)
        return FirstPrefix(2)

    def features(self, encoder: Encoder) -> int:
        """Twice the encoder's."""
        return 2 * encoder.features


class FirstPrefix(nn.Module):
    """The first tokens of the prefix, side by side."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch features"]:
        return tokens.prefix[:, : self.number].flatten(1)


@dataclass(frozen=True, kw_only=True)
class Mean(Pooling):
    """The mean patch token ("GAP", the paper's App. D.3)."""

    norm: bool = False
    """Whether a norm follows, as in MAE's fine-tuning; the encoder then has final_norm=False."""

    def build(self, encoder: Encoder) -> nn.Module:
        if not self.norm:
            return MeanPatch(nn.Identity())
        vit = _vit(encoder, "normed mean", prefix=0)
        return MeanPatch(vit.norm(vit.width))


class MeanPatch(nn.Module):
    """The mean of the patches, then a norm or nothing."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch width"]:
        return self.norm(tokens.patches.mean(dim=1))


@dataclass(frozen=True, kw_only=True)
class AttentionPool(Pooling):
    """A learned query that attends to the patches ("MAP", Scaling ViT, arXiv:2106.04560, Sec. 3.3)."""

    def build(self, encoder: Encoder) -> nn.Module:
        return AttentionPooling(_vit(encoder, "attention", prefix=0))


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
        self.norm = encoder.norm(width)
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
        self.norm.reset_parameters()  # pyright: ignore[reportCallIssue]

    def forward(self, tokens: Tokens) -> Float[Tensor, "batch width"]:
        patches = tokens.patches
        probe = self.probe.expand(patches.shape[0], -1, -1)
        q = self.query(probe).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.key_value(patches).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return (x + self.mlp(self.norm(x)))[:, 0]
