"""Inference on AMD processors: oneDNN's matrix products, with weights packed once and the GELU inside.

For float32 torch asks MKL, which is at home on Intel's processors. oneDNN comes with torch too; its operators are those
that torch's compiler calls.
"""

import functools
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.classifier import Classifier
from vitreous.feed_forward import MLP


def pays(device: torch.device) -> bool:
    """Whether packed products are faster here than torch's own: on AMD's x86 processors."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    if device.type != "cpu" or not x86 or not torch.backends.mkldnn.is_available():
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:  # no Linux
        return "AuthenticAMD" in platform.processor()


def packed(classifier: Classifier) -> Classifier:
    """A classifier of the same function to rounding, for inference in float32 alone.

    It shares every tensor with `classifier` but the packed weights of linear layers, which are copies.
    """
    with torch.device("meta"):
        twin = classifier.config.build()
    twin.load_state_dict(classifier.state_dict(), assign=True)
    for module in list(twin.modules()):
        gelu = None
        if isinstance(module, MLP) and isinstance(module.activation, functools.partial):
            assert module.activation.func is F.gelu
            gelu, module.activation = module.activation.keywords["approximate"], nn.Identity()
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child, gelu=gelu if name == "up" else None))
    return twin.eval()


class PackedLinear(nn.Module):
    """A linear layer, and after it GELU where `gelu` names its form."""

    def __init__(self, linear: nn.Linear, *, gelu: str | None = None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.post = ("none", "") if gelu is None else ("gelu", gelu)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        attribute, algorithm = self.post
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, attribute, [], algorithm)
