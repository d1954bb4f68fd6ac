"""Heads: class scores from one feature vector."""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.config import Config, check_ranges


@dataclass(frozen=True, kw_only=True)
class Head(Config):
    """Which head maps features to logits."""

    @abstractmethod
    def build(self, width: int, num_classes: int) -> nn.Module:
        """A module from (batch, width) to (batch, num_classes)."""


@dataclass(frozen=True, kw_only=True)
class LinearHead(Head):
    """One linear layer that starts at zero (the paper's Sec. 3.2), after an optional tanh layer (Sec. 3.1)."""

    representation: int | None = None
    """Channels of a hidden layer with tanh before the scores; the paper pre-trains with one."""
    bias: float = 0.0
    """Initial bias of every class; -10 suits many classes with a sigmoid loss."""

    def __post_init__(self) -> None:
        check_ranges(self, representation=(1, math.inf), bias=(-math.inf, math.inf))

    def build(self, width: int, num_classes: int) -> nn.Module:
        return ZeroLinear(self, width, num_classes)


@dataclass(frozen=True, kw_only=True)
class DistilledHead(Head):
    """One linear layer for the class token, one for the distillation token, their scores averaged (DeiT, Sec. 4)."""

    def build(self, width: int, num_classes: int) -> nn.Module:
        return TwoLinear(width, num_classes)


class TwoLinear(nn.Module):
    """Two linear layers that start at zero, each for one half of the features."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width // 2, num_classes)
        self.distillation = nn.Linear(width // 2, num_classes)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Zero scores."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch num_classes"]:
        class_token, distillation = features.chunk(2, dim=-1)
        return (self.linear(class_token) + self.distillation(distillation)) / 2


class ZeroLinear(nn.Module):
    """A linear layer that starts at zero."""

    def __init__(self, config: LinearHead, width: int, num_classes: int) -> None:
        super().__init__()
        self.initial_bias = config.bias
        self.representation = nn.Linear(width, config.representation) if config.representation else None
        self.linear = nn.Linear(config.representation or width, num_classes)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Zero scores, so that the first loss is log(num_classes), whatever the encoder."""
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, self.initial_bias)
        if self.representation is not None:
            nn.init.xavier_uniform_(self.representation.weight)
            nn.init.zeros_(self.representation.bias)

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch num_classes"]:
        if self.representation is not None:
            features = torch.tanh(self.representation(features))
        return self.linear(features)
