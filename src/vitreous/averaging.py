"""A moving average of the weights, which is what a run gives in their place (Polyak and Juditsky 1992)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.parallel import local


class Average:
    """The exponential moving average of a module's trained parameters, laid out as they are."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        """`decay` is the share of the average in [0, 1) that a step leaves."""
        self.decay = decay
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.tensors = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, skipped: Float[Tensor, ""]) -> None:
        """Move towards the weights, unless `skipped` is 1: then the step did not happen."""
        if skipped.device.type == "cpu" and bool(skipped):  # there, looking is free, and 0 times NaN would be NaN
            return
        averages, weights = self._parts()
        towards = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(towards, (1 - self.decay) * (1 - skipped.to(averages[0].dtype)))
        torch._foreach_add_(averages, towards)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The average stands in place of the weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        averages, weights = self._parts()
        kept = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, averages)
        torch._foreach_copy_(averages, kept)

    def _parts(self) -> tuple[list[Tensor], list[Tensor]]:
        averages = [local(tensor) for tensor in self.tensors.values()]
        return averages, [local(parameter.detach()) for parameter in self.parameters.values()]
