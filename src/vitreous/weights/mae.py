"""The layout of masked autoencoders' pre-training (MAE, arXiv:2111.06377); its fine-tuned files are timm's."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitreous.weights.infer import Foreign
from vitreous.weights.timm import IMAGENET
from vitreous.weights.timm_tensors import from_timm


def fits(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a decoder of MAE's is there."""
    return "decoder_embed.weight" in tensors


def read(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> Foreign:
    """The encoder; the decoder and the mask token stay behind."""
    encoder = {n: t for n, t in tensors.items() if not n.startswith(("decoder_", "mask_token"))}
    return Foreign(
        tensors=from_timm(encoder),
        resampling="bicubic",
        view=IMAGENET | {"crop_ratio": 224 / 256, "interpolation": "bicubic"},
        left=("the decoder", "the mask token"),
        assumed=("ImageNet mean and deviation", "bicubic resize", "crop ratio 0.875"),
    )
