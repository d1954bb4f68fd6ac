"""What every optimizer has: which parameters it decays, and how fast each layer learns."""

import math
import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from vitreous.config import Config, check_ranges
from vitreous.errors import InputError
from vitreous.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """Which optimizer moves the weights. Its learning rate comes from the run's schedule."""

    weight_decay: float = 0.0
    """Decay of matrices and convolutions, times the learning rate; vectors and positions are left alone."""
    decayed: Literal["matrices", "all"] = "matrices"
    """What decays: matrices and convolutions, or every parameter."""
    head_decay: float | None = None
    """Decay of the head's matrices in place of `weight_decay` (arXiv:2106.04560, Sec. 3.1); None: the same."""
    layer_decay: float = 1.0
    """Learning rate of each layer as a part of that of the layer above it; the head learns at the full rate
    (arXiv:2106.08254). For fine-tuning."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient (the paper's Sec. B.1); None does not clip."""

    heeds_found_inf: ClassVar[bool] = True
    """Whether its step changes nothing where its `found_inf` is 1, without the host having to know."""
    needs_whole_matrices: ClassVar[bool] = False
    """Whether it must see all of a matrix at once, which sharded weights do not show."""

    def __post_init__(self) -> None:
        check_ranges(self, weight_decay=(0, math.inf), head_decay=(0, math.inf))
        check_ranges(self, layer_decay=(1e-6, 1), clip_norm=(1e-12, math.inf))

    @abstractmethod
    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of these parameters, by their names."""

    def groups(self, parameters: Mapping[str, nn.Parameter]) -> list[dict]:
        """Parameters with the same decay and the same `rate_ratio`, their part of the learning rate, in each.

        Raises:
            InputError: if there is a `layer_decay`, but the layers are not those of a ViT.
        """
        found: dict[tuple[float, float], list[nn.Parameter]] = {}
        ratios = _rate_ratios(parameters, self.layer_decay) if self.layer_decay < 1 else {}
        for name, parameter in parameters.items():
            group = (self._decay(name, parameter), ratios.get(name, 1.0))
            found.setdefault(group, []).append(parameter)
        return [
            {"params": members, "weight_decay": decay, "rate_ratio": ratio} for (decay, ratio), members in found.items()
        ]

    def _decay(self, name: str, parameter: nn.Parameter) -> float:
        token = "position" in name or name.endswith(("prefix", "probe"))
        if self.decayed == "matrices" and (parameter.ndim < 2 or token):
            return 0.0
        return self.weight_decay if self.head_decay is None or not _is_head(name) else self.head_decay

    def set_rate(self, optimizer: torch.optim.Optimizer, schedule: Schedule, progress: float) -> None:
        """Have the next step take the learning rate of `schedule` at `progress`."""
        rate = schedule(progress)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate_ratio"]


@dataclass(frozen=True, kw_only=True)
class Decoupled(OptimizerConfig):
    """An optimizer whose decay takes a part of the weights themselves (arXiv:1711.05101)."""

    decay_by_rate: bool = True
    """Whether a step takes `weight_decay` times the learning rate, as in torch; or, as in big_vision, times what the
    rate is of its peak, so that another peak does not change the decay."""

    def set_rate(self, optimizer: torch.optim.Optimizer, schedule: Schedule, progress: float) -> None:
        super().set_rate(optimizer, schedule, progress)
        if not self.decay_by_rate:
            for group in optimizer.param_groups:
                group.setdefault("decay", group["weight_decay"])
                group["weight_decay"] = group["decay"] / (schedule.highest * group["rate_ratio"])


def _is_head(name: str) -> bool:
    return name.startswith("head.") or ".head." in name


def _rate_ratios(parameters: Mapping[str, nn.Parameter], layer_decay: float) -> dict[str, float]:
    """Each parameter's part of the learning rate: stem and positions are below the first block, the rest above all."""
    blocks = {name: int(found[1]) for name in parameters if (found := re.search(r"encoder\.blocks\.(\d+)\.", name))}
    if not blocks:
        raise InputError("layer_decay needs the blocks of a ViT, which this encoder lacks; leave it at 1")
    top = max(blocks.values()) + 2

    def layer(name: str) -> int:
        below = "encoder." in name and "encoder.norm." not in name
        return blocks[name] + 1 if name in blocks else 0 if below else top

    return {name: layer_decay ** (top - layer(name)) for name in parameters}
