"""A classifier: encoder, pooling and head. What is fine-tuned, measured, shipped and served."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from vitreous.config import Config, check_ranges
from vitreous.errors import InputError
from vitreous.head import DistilledHead, Head, LinearHead
from vitreous.pooling import ClassAndDistillation, ClassToken, FirstPrefix, Pooling
from vitreous.tokens import Encoder
from vitreous.vit import ViTConfig


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(Config):
    """The parts of a classifier."""

    encoder: Encoder = ViTConfig()
    """The Vision Transformer, or the ResNet it is compared to."""
    pooling: Pooling = ClassToken()
    """From tokens to one vector."""
    head: Head = LinearHead()
    """From that vector to class scores."""
    num_classes: int = 1000
    """Classes told apart."""

    def __post_init__(self) -> None:
        check_ranges(self, num_classes=(1, math.inf))
        if isinstance(self.head, DistilledHead) and not isinstance(self.pooling, ClassAndDistillation):
            raise InputError("a DistilledHead scores two tokens; set pooling to ClassAndDistillation")

    def build(self) -> "Classifier":
        """A freshly initialised classifier."""
        return Classifier(self)


class Classifier(nn.Module):
    """Images of any size that divides into patches to class logits."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build()
        self.pooling = config.pooling.build(config.encoder)
        self.head = config.head.build(config.pooling.features(config.encoder), config.num_classes)

    def features(self, images: Float[Tensor, "batch channels height width_px"]) -> Float[Tensor, "batch features"]:
        """One vector an image: what the head sees, and what embeddings are."""
        if self.training and isinstance(self.pooling, FirstPrefix):  # nobody reads what would become of the patches
            return self.pooling(self.encoder(images, prefix_only=True))
        return self.pooling(self.encoder(images))

    def forward(self, images: Float[Tensor, "batch channels height width_px"]) -> Float[Tensor, "batch num_classes"]:
        return self.head(self.features(images))


def class_probabilities(logits: Float[Tensor, "*batch cls"], *, multi_label: bool) -> Float[Tensor, "*batch cls"]:
    """In float64, on the CPU, since Apple's GPUs have none: they sum to 1, or each class stands by itself."""
    fine = logits.cpu().double()
    return fine.sigmoid() if multi_label else fine.softmax(-1)
