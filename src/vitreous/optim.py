"""Optimizers and which parameters they decay."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from vitreous.config import BELOW_ONE, Config, check_ranges


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """Which optimizer moves the weights. Its learning rate comes from the run's schedule."""

    weight_decay: float = 0.0
    """Decay of matrices and convolutions, times the learning rate; vectors and positions are left alone."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient (the paper's Sec. B.1); None does not clip."""

    def __post_init__(self) -> None:
        check_ranges(self, weight_decay=(0, math.inf), clip_norm=(1e-12, math.inf))

    @abstractmethod
    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of these parameters, by their names; a step where its `found_inf` is 1 changes nothing."""

    def groups(self, parameters: Mapping[str, nn.Parameter]) -> list[dict]:
        """Parameters with decay and without."""
        decayed, free = [], []
        for name, parameter in parameters.items():
            token = "position" in name or name.endswith(("prefix", "probe"))
            (free if parameter.ndim < 2 or token else decayed).append(parameter)
        return [{"params": decayed, "weight_decay": self.weight_decay}, {"params": free, "weight_decay": 0.0}]


@dataclass(frozen=True, kw_only=True)
class AdamW(OptimizerConfig):
    """Adam with decoupled weight decay: pre-training, and training from scratch (the paper's Table 3)."""

    weight_decay: float = 0.1
    """Decay of matrices and convolutions, times the learning rate; vectors and positions are left alone."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Averaging of gradients and of their squares."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, betas=(0, BELOW_ONE))

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.groups(parameters), lr=0.0, betas=self.betas, fused=True)


@dataclass(frozen=True, kw_only=True)
class SGD(OptimizerConfig):
    """Stochastic gradient descent with momentum: fine-tuning (the paper's Table 4, no weight decay)."""

    momentum: float = 0.9
    """Averaging of gradients."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, momentum=(0, BELOW_ONE))

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(self.groups(parameters), lr=0.0, momentum=self.momentum, fused=True)
        if self.momentum:
            for parameter in parameters.values():
                # torch would leave it undefined if the first step is skipped; a first step from zero is the same
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.detach())
        return optimizer
