"""Stochastic gradient descent."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from vitreous.config import BELOW_ONE, check_ranges
from vitreous.errors import InputError
from vitreous.optim.base import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class SGD(OptimizerConfig):
    """Stochastic gradient descent with momentum: fine-tuning (the paper's Table 4, no weight decay)."""

    momentum: float = 0.9
    """Averaging of gradients."""
    nesterov: bool = False
    """Whether the step looks ahead along the momentum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, momentum=(0, BELOW_ONE))
        if self.nesterov and not self.momentum:
            raise InputError("nesterov looks ahead along the momentum, which is 0; give --optimizer.momentum 0.9")

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        groups = self.groups(parameters)
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=self.momentum, nesterov=self.nesterov, fused=True)
        if self.momentum:
            for parameter in parameters.values():
                # torch would leave it undefined if the first step is skipped; a first step from zero is the same
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.detach())
        return optimizer
