"""Numbers that are none never reach the weights."""

import torch
from jaxtyping import Float
from torch import Tensor


class Guard:
    """Says of each step whether it must not happen: its loss or its gradient is not finite.

    The device decides and nothing waits for it: a fused optimizer changes nothing where its `found_inf` is 1.
    After more than `most` such steps in a row every later step is refused as well, so that, whenever somebody looks,
    the state is that of the last good step.
    """

    def __init__(self, device: torch.device, most: int) -> None:
        self.most = most
        self.in_a_row = torch.zeros((), device=device)
        """Steps just skipped, one after another."""
        self.halted = torch.zeros((), device=device)
        """1 once there were too many."""

    def refuses(self, loss: Float[Tensor, ""], grad_norm: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """1 if the step must not happen, else 0; both numbers are those of all processes."""
        bad = 1 - torch.isfinite(loss + grad_norm).float()
        self.in_a_row = (self.in_a_row + 1) * torch.maximum(bad, self.halted)
        self.halted = torch.maximum(self.halted, (self.in_a_row > self.most).float())
        return torch.maximum(bad, self.halted)
