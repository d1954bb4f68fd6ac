"""What a model costs, from its shape alone."""

from dataclasses import dataclass

import torch

from vitreous.classifier import ClassifierConfig
from vitreous.feed_forward import SwiGLU


@dataclass(frozen=True)
class Cost:
    """The size of a classifier and the work of one forward pass."""

    parameters: int
    """Trained numbers, head included."""
    gflops: float
    """Billions of floating-point operations an image (two per multiply-add), at `image_size`."""
    tokens: int
    """Sequence length at `image_size`."""


def cost(config: ClassifierConfig, *, image_size: int | None = None) -> Cost:
    """Parameters, GFLOPs and tokens, without allocating a weight.

    Counted: patch projection, the four attention projections, the two attention products, the feed-forward
    layers and the scores; not counted, as in the published tables: norms, softmax, GELU, biases, and what a pooling
    or a hidden layer of the head adds.
    """
    encoder = config.encoder
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in config.build().parameters())
    patches = ((image_size or encoder.image_size) // encoder.patch_size) ** 2
    tokens = patches + encoder.class_token + encoder.num_registers
    project = patches * encoder.channels * encoder.patch_size**2 * encoder.width
    matrices = 3 if isinstance(encoder.feed_forward, SwiGLU) else 2
    block = tokens * (4 * encoder.width**2 + matrices * encoder.width * encoder.mlp_dim)
    block += 2 * tokens**2 * encoder.width
    multiply_adds = project + encoder.depth * block + encoder.width * config.num_classes
    return Cost(parameters, 2 * multiply_adds / 1e9, tokens)
