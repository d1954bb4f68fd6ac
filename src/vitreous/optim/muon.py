"""Muon: matrices are moved along the nearest orthogonal matrix to their momentum, the rest by AdamW."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from vitreous.config import BELOW_ONE, check_ranges
from vitreous.errors import InputError
from vitreous.optim.base import Decoupled


@dataclass(frozen=True, kw_only=True)
class Muon(Decoupled):
    """Muon for the matrices of the blocks; AdamW for the stem, vectors, positions and the head.

    Steps of matrices are scaled to the size of AdamW's (arXiv:2502.16982, Sec. 2.2), so that its learning rates and
    decays suit both.
    """

    weight_decay: float = 0.1
    """Decay of matrices and convolutions, times the learning rate; vectors and positions are left alone."""
    momentum: float = 0.95
    """Averaging of the gradients of matrices."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Averaging of gradients and of their squares, in AdamW."""

    heeds_found_inf: ClassVar[bool] = False
    needs_whole_matrices: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, momentum=(0, BELOW_ONE), betas=(0, BELOW_ONE))

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        def chosen(name: str) -> bool:
            return parameters[name].ndim == 2 and ".blocks." in name

        matrices = {name: parameter for name, parameter in parameters.items() if chosen(name)}
        rest = {name: parameter for name, parameter in parameters.items() if not chosen(name)}
        if not matrices:
            raise InputError("Muon moves the matrices of a ViT's blocks, which this encoder lacks; take AdamW")
        return Both(
            torch.optim.Muon(self.groups(matrices), lr=0.0, momentum=self.momentum, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(self.groups(rest), lr=0.0, betas=self.betas, fused=True),
        )


class Both(torch.optim.Optimizer):
    """Two optimizers of different parameters as one: groups and state are theirs."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        super().__init__([*first.param_groups, *second.param_groups], {})
        self.parts = (first, second)
        for part in self.parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move all parameters."""
        for part in self.parts:
            part.step()
