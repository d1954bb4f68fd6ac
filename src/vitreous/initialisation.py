"""How the parameters of a fresh ViT are drawn: as the paper's code draws them, or as timm does."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from vitreous.block import Attention, Residual
from vitreous.config import Config

if TYPE_CHECKING:
    from vitreous.vit import ViT

NORMS = (nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True, kw_only=True)
class Initialisation(Config):
    """Which numbers an encoder starts from."""

    @abstractmethod
    def fill(self, vit: "ViT") -> None:
        """Draw every parameter of `vit` from torch's generator."""


@dataclass(frozen=True, kw_only=True)
class PaperInitialisation(Initialisation):
    """The paper's code: Xavier-uniform for each of query, key and value by itself; the class token starts at zero.

    Biases of the feed-forward layers are normal with 1e-6, positions and registers normal with 0.02, the stem is
    LeCun normal.
    """

    def fill(self, vit: "ViT") -> None:
        vit.stem.init_weights()  # pyright: ignore[reportCallIssue]
        nn.init.zeros_(vit.prefix)
        nn.init.normal_(vit.prefix[int(vit.config.class_token) :], std=0.02)
        vit.position.init_weights()
        attention_layers = set()
        for module in (*vit.blocks.modules(), *vit.stem_norm.modules(), *vit.norm.modules()):
            if isinstance(module, Attention):
                for weight in (*module.qkv.weight.chunk(3), module.out.weight):
                    nn.init.xavier_uniform_(weight)
                for layer in (module.qkv, module.out):
                    _set_bias(layer, std=0.0)
                    attention_layers.add(layer)
            elif isinstance(module, NORMS):
                module.reset_parameters()
            elif isinstance(module, Residual) and module.scale is not None:
                nn.init.constant_(module.scale, module.initial or 0.0)
        for layer in vit.blocks.modules():
            if isinstance(layer, nn.Linear) and layer not in attention_layers:
                nn.init.xavier_uniform_(layer.weight)
                _set_bias(layer, std=1e-6)


@dataclass(frozen=True, kw_only=True)
class TimmInitialisation(Initialisation):
    """timm's default: truncated normals with 0.02 and zero biases; torch's own for the patch projection.

    Class token and registers are normal with 1e-6. A ResNet stem starts as the paper's code starts it.
    """

    def fill(self, vit: "ViT") -> None:
        PaperInitialisation().fill(vit)
        nn.init.normal_(vit.prefix, std=1e-6)
        for parameter in vit.position.parameters():
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in (*vit.blocks.modules(), *vit.position.modules()):
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                _set_bias(module, std=0.0)
        if isinstance(vit.stem, nn.Conv2d):
            vit.stem.reset_parameters()


def _set_bias(layer: nn.Linear, *, std: float) -> None:
    if layer.bias is not None:
        nn.init.normal_(layer.bias, std=std) if std else nn.init.zeros_(layer.bias)
