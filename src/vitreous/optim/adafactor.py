"""Adafactor as big Vision Transformers are pre-trained with it: squares of gradients by row and column alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.config import BELOW_ONE, check_ranges
from vitreous.optim.base import Decoupled

LEAST_SIDE = 32
"""Matrices with a shorter side keep the squares of all of their gradients."""
LEAST_SQUARE = 1e-30


@dataclass(frozen=True, kw_only=True)
class Adafactor(Decoupled):
    """Momentum in half precision over gradients that are scaled by a factored second moment.

    "Scaling Vision Transformers" (arXiv:2106.04560, Sec. 3.4), after arXiv:1804.04235: the second moment is averaged
    over `1 - step^-0.8`, capped; there is no relative step size. Half the memory of Adam's state, and less.
    """

    weight_decay: float = 0.1
    """Decay of matrices and convolutions, times the learning rate; vectors and positions are left alone."""
    momentum: float = 0.9
    """Averaging of the scaled gradients, kept in bfloat16."""
    most_averaging: float = 0.999
    """Limit of the averaging of squares, which grows with the number of steps."""

    heeds_found_inf: ClassVar[bool] = False
    needs_whole_matrices: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, momentum=(0, BELOW_ONE), most_averaging=(0, BELOW_ONE))

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        return FactoredMoments(self.groups(parameters), momentum=self.momentum, most_averaging=self.most_averaging)


class FactoredMoments(torch.optim.Optimizer):
    """The steps of `Adafactor`."""

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, most_averaging: float) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "most_averaging": most_averaging})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if (gradient := parameter.grad) is not None:
                    self._move(parameter, gradient, group)

    def _move(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["momentum"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
            state |= _no_squares(parameter)
        state["step"] += 1
        averaging = min(group["most_averaging"], 1 - float(state["step"]) ** -0.8)
        scaled = _scaled(gradient, state, averaging)
        momentum = state["momentum"].to(scaled.dtype).lerp_(scaled, 1 - group["momentum"])
        state["momentum"].copy_(momentum)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(momentum, alpha=-group["lr"])


def _sides(tensor: Tensor) -> tuple[int, int] | None:
    """The two longest axes, the longest last; None if one is too short to be worth it."""
    order = sorted(range(tensor.ndim), key=lambda axis: tensor.shape[axis])[-2:]  # stable, as NumPy's for few axes
    return (order[0], order[1]) if len(order) == 2 and tensor.shape[order[0]] >= LEAST_SIDE else None


def _no_squares(parameter: Tensor) -> dict[str, Tensor]:
    if (sides := _sides(parameter)) is None:
        return {"squares": torch.zeros_like(parameter)}
    short, long = sides
    return {"rows": torch.zeros_like(parameter.sum(long)), "columns": torch.zeros_like(parameter.sum(short))}


def _scaled(gradient: Float[Tensor, "..."], state: dict[str, Tensor], averaging: float) -> Float[Tensor, "..."]:
    """`gradient` over the root of its mean square, which is updated in `state` first (arXiv:1804.04235, Alg. 4)."""
    squares = gradient.square() + LEAST_SQUARE
    if (sides := _sides(gradient)) is None:
        return gradient * state["squares"].lerp_(squares, 1 - averaging).rsqrt()
    short, long = sides
    rows = state["rows"].lerp_(squares.mean(long), 1 - averaging)
    columns = state["columns"].lerp_(squares.mean(short), 1 - averaging)
    mean = rows.mean(short - (long < short), keepdim=True)
    return gradient * (rows / mean).rsqrt().unsqueeze(long) * columns.rsqrt().unsqueeze(short)
